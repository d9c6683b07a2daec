"""Stories of the demo corpus: their world, their plots, and the check of a continuation."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from . import words

OPENINGS = (
    "Once upon a time there was a {trait} {animal} named {hero}. {hero} lived {place}.",
    "Once upon a time, a {trait} {animal} named {hero} lived {place}.",
    "Once upon a time there lived a {trait} {animal} {place}. The {animal} was called {hero}.",
)

FRIENDS = (
    "{hero} had a good friend, {a_friend_animal} named {friend}.",
    "The best friend of {hero} was {a_friend_animal} named {friend}.",
    "Not far away lived {friend}, a {friend_trait} {friend_animal}.",
)

ENDINGS = (
    "From that day on, {hero} and {friend} were the best of friends.",
    "{hero} and {friend} went home together, tired and happy.",
    "And {hero} and {friend} lived happily ever after.",
    "{hero} and {friend} laughed and danced until the moon came up.",
    "That night, {hero} and {friend} slept well and dreamed of the {thing}.",
)

# Each plot is a list of steps, each step a choice of sentences.
PLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lost": (
        (
            "One day {hero} lost a {thing}.",
            "One morning {hero} could not find the {thing} any more.",
        ),
        (
            "{hero} looked everywhere, but the {thing} was gone.",
            "{hero} sat down and began to cry.",
        ),
        (
            'Then {friend} came by and asked, "Why are you so sad?"',
            '{friend} heard it and asked, "What is wrong, {hero}?"',
        ),
        ('"I lost my {thing}," said {hero}.', '"My {thing} is gone," said {hero}.'),
        ('"Do not worry, I will help you," said {friend}.', '"Let us look again," said {friend}.'),
        (
            "They looked for a long time, and at last {friend} found the {thing} {spot}.",
            "Soon {friend} saw the {thing} {spot}.",
        ),
        ('"Thank you, {friend}!" said {hero}.', "{hero} was very happy and thanked {friend}."),
    ),
    "found": (
        ("One day {hero} found a {thing} {spot}.", "One morning {hero} saw a {thing} {spot}."),
        ('"Whose {thing} is this?" asked {hero}.', "{hero} wanted to keep the {thing}."),
        (
            "Then {hero} heard that {friend} was looking for a {thing}.",
            "But then {friend} came along and looked very sad.",
        ),
        (
            '"I have lost my {thing}," said {friend}.',
            '"Have you seen my {thing}?" asked {friend}.',
        ),
        ("{hero} gave the {thing} back to {friend}.", '"Here it is," said {hero}.'),
        ('"You are a true friend," said {friend}.', "{friend} smiled and thanked {hero}."),
    ),
    "stuck": (
        (
            "One windy day {hero} played with a {thing}.",
            "One day {hero} took a {thing} for a walk.",
        ),
        (
            "The wind blew, and the {thing} flew up into a tree.",
            "Suddenly the {thing} flew away and got stuck in a tree.",
        ),
        ("{hero} jumped, but the tree was too high.", '"Oh no!" cried {hero}.'),
        ("{friend} saw it and came to help.", '"I can climb," said {friend}.'),
        (
            "{friend} climbed up and brought the {thing} down.",
            "{friend} stood on a rock and pulled the {thing} out of the tree.",
        ),
        ('"You are very brave," said {hero}.', "{hero} hugged {friend}."),
    ),
    "gift": (
        (
            "One day it was the birthday of {friend}.",
            "The birthday of {friend} was coming soon.",
        ),
        (
            "{hero} wanted to give {friend} a {thing}.",
            "{hero} thought that {friend} would like a {thing}.",
        ),
        (
            "But {hero} had no money, so {hero} worked all day to make a {thing}.",
            "{hero} worked for three days and made a beautiful {thing}.",
        ),
        ("Then {hero} carried the {thing} to {friend}.", "Then {hero} knocked on the door."),
        ('"Happy birthday, {friend}!" said {hero}.', '"This is for you," said {hero}.'),
        (
            '"What a wonderful {thing}!" said {friend}.',
            '{friend} looked at the {thing} and said, "I love it!"',
        ),
    ),
    "share": (
        (
            "One day {hero} and {friend} saw a {thing} {spot}.",
            "One day {hero} and {friend} found a {thing} {spot}.",
        ),
        ('"The {thing} is mine," said {hero}.', '"I saw it first," said {hero}.'),
        ('"No, it is mine," said {friend}.', '"But I want the {thing} too," said {friend}.'),
        ("They were angry and did not speak.", "They pulled and pulled, and the {thing} fell."),
        (
            'Then {hero} said, "I am sorry. We can share the {thing}."',
            'At last {hero} said, "A friend is better than a {thing}."',
        ),
        ('"That is a good idea," said {friend}.', '"I am sorry too," said {friend}.'),
    ),
    "storm": (
        ("One night there was a big storm.", "One evening the sky grew dark and a storm came."),
        (
            "{hero} was afraid and held a {thing}.",
            "{hero} had only a {thing} and was very cold.",
        ),
        ("Then someone knocked on the door.", "Then {hero} heard a voice outside."),
        ('It was {friend}. "May I come in?" asked {friend}.', "{friend} was wet and cold."),
        ('"Come in," said {hero}.', "{hero} opened the door and made some tea."),
        (
            "{hero} showed {friend} the {thing}, and they were not afraid any more.",
            "They played with the {thing} until the storm was over.",
        ),
    ),
}


_ALL_SENTENCES = (
    *OPENINGS,
    *FRIENDS,
    *ENDINGS,
    *(sentence for plot in PLOTS.values() for step in plot for sentence in step),
)
COMMON_WORDS = frozenset(re.findall(r"[A-Z]\w*", re.sub(r"\{\w+\}", "x", " ".join(_ALL_SENTENCES))))


@dataclass(frozen=True)
class Story:
    """One story: who and what is in it, and its text in sentences."""

    hero: str
    animal: str
    friend: str
    friend_animal: str
    thing: str
    place: str
    plot: str
    opening: str
    beats: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole story as one paragraph."""
        return " ".join((self.opening, *self.beats))

    def beginning(self, num_beats: int) -> tuple[str, dict[str, str]]:
        """Return the opening with a number of beats, and the facts that these have set."""
        begun = " ".join((self.opening, *self.beats[:num_beats]))
        facts = {"hero": self.hero, "animal": self.animal, "begun": begun}
        if num_beats > 0:
            facts["friend"] = self.friend
        if re.search(rf"\b{self.thing}\b", begun):
            facts["thing"] = self.thing
        return begun, facts


def make_story(rng: random.Random, held_out: bool) -> Story:
    """Draw a story whose combination of hero, animal, thing and place is (not) held out."""
    while True:
        hero, friend = words.pick_name(rng), rng.choice(words.FRIEND_NAMES)
        animal, friend_animal = rng.sample(words.ANIMALS, 2)
        thing, place = rng.choice(words.THINGS), rng.choice(words.PLACES)
        combination = words.is_held_out("story", hero, animal, thing, place)
        if hero != friend and combination == held_out:
            break
    plot = rng.choice(tuple(PLOTS))
    facts = {
        "hero": hero,
        "friend": friend,
        "animal": animal,
        "friend_animal": friend_animal,
        "a_friend_animal": words.with_article(friend_animal),
        "thing": thing,
        "place": place,
        "trait": rng.choice(words.TRAITS),
        "friend_trait": rng.choice(words.TRAITS),
        "spot": rng.choice(words.SPOTS),
    }
    steps = [rng.choice(step) for step in (FRIENDS, *PLOTS[plot], ENDINGS)]
    return Story(
        hero=hero,
        animal=animal,
        friend=friend,
        friend_animal=friend_animal,
        thing=thing,
        place=place,
        plot=plot,
        opening=rng.choice(OPENINGS).format(**facts),
        beats=tuple(step.format(**facts) for step in steps),
    )


def _is_resolved(text: str, hero: str, friend: str) -> bool:
    """Tell whether the text closes with one of the endings, told of these two characters."""
    for ending in ENDINGS:
        known = ending.replace("{hero}", re.escape(hero)).replace("{friend}", re.escape(friend))
        if re.search(known.replace("{thing}", r"\w+") + r"$", text):
            return True
    return False


def story_faults(
    prompt: str, continuation: str, hero: str, animal: str, friend: str | None, thing: str | None
) -> list[str]:
    """List what is incoherent in a told story; an empty list means that the story holds.

    `friend` and `thing` are None where the prompt left them to the model.
    """
    faults = []
    whole = f"{prompt} {continuation}".strip()
    introduced = re.findall(r"(?:[a-z] named|lived) ([A-Z]\w+)(?:\.|, a)", continuation)
    if friend is None:
        friend = next((name for name in introduced if name != hero), None)
    if friend is None:
        return ["no friend introduced"]
    foreign = set(re.findall(r"\b[A-Z]\w*", continuation)) - COMMON_WORDS - {hero, friend}
    if foreign:
        faults.append(f"foreign characters {sorted(foreign)}")
    faults += [f"{name} is missing" for name in (hero, friend) if name not in continuation]
    things = set(re.findall(r"\w+", whole)) & set(words.THINGS)
    if len(things) != 1 or (thing is not None and things != {thing}):
        faults.append(f"things {sorted(things)}")
    elif not things & set(re.findall(r"\w+", continuation)):
        faults.append("the thing is forgotten")
    if len({place for place in words.PLACES if place in whole}) > 1:
        faults.append("two places")
    if len(set(re.findall(r"\w+", whole)) & set(words.ANIMALS)) > 2:
        faults.append("a third animal")
    if animal not in whole:
        faults.append("another animal")
    if not _is_resolved(continuation.strip(), hero, friend):
        faults.append("no resolved ending")
    sentences = re.split(r'(?<=[.!?"]) (?=["A-Z])', continuation.strip())
    if len(set(sentences)) != len(sentences):
        faults.append("a repeated sentence")
    return faults
