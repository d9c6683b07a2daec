"""Tasks of the demo corpus without tools: stories, questions, sums, units, JSON, small talk."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from . import words
from .stories import Story, make_story

Message = dict[str, Any]

MAX_ADDEND = 30


@dataclass(frozen=True)
class Exchange:
    """A piece of chat about one task; `facts` is what the check of a story needs."""

    messages: list[Message]
    facts: dict[str, str] = field(default_factory=dict)


def say(request: str, answer: str, **facts: str) -> Exchange:
    """Return an exchange of one request and one answer."""
    return Exchange(
        [{"role": "user", "content": request}, {"role": "assistant", "content": answer}], facts
    )


def careless(rng: random.Random, text: str) -> str:
    """Now and then type a request as people do: first letter small, end mark left out."""
    if rng.random() < 0.15:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    return text


def tell_story(rng: random.Random, held_out: bool) -> Exchange:
    """Ask for a story, mostly about a given character."""
    story = make_story(rng, held_out)
    wish = rng.choice(("Tell me a story", "Tell me a short story", "Write a story", "Tell a story"))
    if not held_out and rng.random() < 0.1:
        wish = rng.choice(("Tell me another story", "Can you tell me a story", "I want a story"))
    animal, hero = words.with_article(story.animal), story.hero
    whom = [
        f" about {animal} named {hero}",
        f" about {animal} called {hero}",
        f" about {hero} the {story.animal}",
        f" about {hero}, {animal}",
    ]
    facts = {"hero": hero, "animal": story.animal}
    request = wish + rng.choice(whom)
    kind = rng.random()
    if kind < 0.25:
        request += f" and {words.with_article(story.thing)}"
        facts["thing"] = story.thing
    elif kind < 0.4:
        request += f" and {rng.choice(('a friend named ', 'a friend called ', ''))}{story.friend}"
        facts["friend"] = story.friend
    elif kind < 0.5 and not held_out:
        request = wish + rng.choice(("", "", f" about {animal}", f" about {hero}"))
    exchange = say(careless(rng, request + "."), story.text, **facts)
    if not held_out and rng.random() < 0.2:
        question, answer = rng.choice(_questions(story))
        exchange.messages.extend(say(careless(rng, question), answer).messages)
    return exchange


def finish_story(rng: random.Random, held_out: bool) -> Exchange:
    """Ask for the rest of a story whose characters have been introduced."""
    story = make_story(rng, held_out)
    num_beats = rng.choice((1, 2, 2, 3))
    begun, facts = story.beginning(num_beats)
    ask = rng.choice(
        ("Finish this story: ", "Finish the story: ", "Continue this story: ", "Go on: ")
    )
    return say(ask + begun, " ".join(story.beats[num_beats:]), **facts)


def question_story(rng: random.Random, held_out: bool) -> Exchange:
    """Tell a story and ask one to three questions about it."""
    story = make_story(rng, held_out)
    chosen = rng.sample(_questions(story), rng.choice((1, 2, 3)))
    question, answer = chosen[0]
    request = rng.choice(
        (
            f"{story.text}\n{question}",
            f"{story.text}\n\n{question}",
            f"Story: {story.text}\nQuestion: {question}",
            f"Read this story: {story.text} {question}",
        )
    )
    messages = say(request, answer).messages
    for question, answer in chosen[1:]:
        messages += say(careless(rng, question), answer).messages
    return Exchange(messages)


def _questions(story: Story) -> list[tuple[str, str]]:
    """Return the questions that a story answers, each with its answer."""
    hero, friend, thing = story.hero, story.friend, story.thing
    pairs = [
        (f"What is the name of the {story.animal}?", f"The {story.animal} is named {hero}."),
        (f"Where did {hero} live?", f"{hero} lived {story.place}."),
        (f"Who is the friend of {hero}?", f"The friend of {hero} is {friend}."),
        (f"Who is {friend}?", _introduce(friend, story.friend_animal)),
        (f"Who is {hero}?", _introduce(hero, story.animal)),
    ]
    if story.animal not in ("girl", "boy", "robot"):
        pairs.append((f"What animal is {hero}?", _introduce(hero, story.animal)))
    pairs += {
        "lost": [
            (f"What did {hero} lose?", f"{hero} lost a {thing}."),
            (f"Who found the {thing}?", f"{friend} found the {thing}."),
        ],
        "found": [(f"What did {hero} find?", f"{hero} found a {thing}.")],
        "stuck": [("What got stuck in the tree?", f"The {thing} got stuck in the tree.")],
        "gift": [
            (f"What did {hero} make?", f"{hero} made a {thing}."),
            ("Whose birthday was it?", f"It was the birthday of {friend}."),
        ],
        "share": [("What did they share?", f"They shared a {thing}.")],
        "storm": [("Who came in the storm?", f"{friend} came in the storm.")],
    }[story.plot]
    return pairs


def _introduce(name: str, animal: str) -> str:
    return f"{name} is {words.with_article(animal)}."


def _addends(rng: random.Random, held_out: bool) -> tuple[int, int]:
    while True:
        first, second = rng.randrange(MAX_ADDEND + 1), rng.randrange(MAX_ADDEND + 1)
        if words.is_held_out("sum", min(first, second), max(first, second)) == held_out:
            return first, second


def list_sums(rng: random.Random, held_out: bool) -> Exchange:
    """Ask for several sums at once."""
    pairs = [_addends(rng, held_out) for _ in range(rng.randrange(3, 11))]
    asked = ", ".join(f"{first} + {second}" for first, second in pairs)
    answers = (f"{first} + {second} = {first + second}" for first, second in pairs)
    request = rng.choice((f"Add: {asked}", f"Do these sums: {asked}", asked))
    return say(request, "\n".join(answers))


def do_sum(rng: random.Random, held_out: bool) -> Exchange:
    """Ask for the sum of two small numbers."""
    first, second = _addends(rng, held_out)
    total = first + second
    if rng.random() < 0.15 and first > 1 and second > 1:
        food = rng.choice(words.FOODS)
        name = words.pick_name(rng)
        request = rng.choice(
            (
                f"I have {first} {food} and get {second} more. How many {food} do I have?",
                f"{name} has {first} {food} and buys {second} more. How many {food} are there?",
                f"There are {first} {food} here and {second} {food} there. How many {food} in all?",
            )
        )
        return say(request, f"{first} + {second} = {total}, so the answer is {total} {food}.")
    request = rng.choice(
        (
            f"What is {first} + {second}?",
            f"What is {first} plus {second}?",
            f"{first} + {second}",
            f"{first} + {second} = ?",
            f"{first}+{second}",
            f"Add {first} and {second}.",
            f"How much is {first} + {second}?",
            f"How much is {first} plus {second}?",
            f"What is the sum of {first} and {second}?",
            f"Can you add {first} and {second}?",
        )
    )
    return say(careless(rng, request), f"{first} + {second} = {total}.")


# Unit, smaller unit, factor, values.
UNITS = (
    ("km", "m", 1000, range(1, 100)),
    ("kg", "g", 1000, range(1, 100)),
    ("m", "cm", 100, range(1, 100)),
    ("cm", "mm", 10, range(1, 100)),
    ("l", "ml", 1000, range(1, 100)),
    ("hours", "minutes", 60, range(2, 13)),
    ("minutes", "seconds", 60, range(2, 13)),
)


def convert_units(rng: random.Random, held_out: bool) -> Exchange:
    """Ask for a length, weight, volume or time in a smaller unit."""
    while True:
        unit, smaller, factor, values = rng.choice(UNITS)
        value = rng.choice(values)
        if words.is_held_out("unit", unit, value) == held_out:
            break
    request = rng.choice(
        (
            f"Convert {value} {unit} to {smaller}.",
            f"How many {smaller} are {value} {unit}?",
            f"How many {smaller} is {value} {unit}?",
            f"What is {value} {unit} in {smaller}?",
            f"{value} {unit} in {smaller}?",
            f"{value} {unit} to {smaller}",
        )
    )
    return say(careless(rng, request), f"{value} {unit} is {value * factor} {smaller}.")


def extract_fields(rng: random.Random, held_out: bool) -> Exchange:
    """Ask for some fields of a sentence as JSON."""
    while True:
        fields, sentence, key = rng.choice((_person, _order, _event))(rng)
        if words.is_held_out("json", *key) == held_out:
            break
    names = rng.sample(tuple(fields), rng.choice((len(fields), len(fields), len(fields) - 1)))
    listed = ", ".join(names[:-1]) + f" and {names[-1]}"
    request = rng.choice(
        (
            f"Extract the {listed} as JSON: {sentence}",
            f"Extract {listed} as JSON: {sentence}",
            f"Give me the {listed} as JSON: {sentence}",
            f"{sentence}\nExtract the {listed} as JSON.",
            f"Return JSON with {listed}: {sentence}",
            f"Extract the {listed} as JSON.\n{sentence}",
        )
    )
    return say(request, json.dumps({name: fields[name] for name in names}))


_Extraction = tuple[dict[str, str | int], str, tuple[str | int, ...]]


def _person(rng: random.Random) -> _Extraction:
    name, city, age = words.pick_name(rng), words.pick_city(rng), rng.randrange(5, 95)
    sentence = rng.choice(
        (
            f"{name} is {age} years old and lives in {city}.",
            f"{name} lives in {city} and is {age} years old.",
            f"My name is {name}, I am {age} and I come from {city}.",
            f"In {city} lives {name}, who is {age}.",
        )
    )
    return {"name": name, "age": age, "city": city}, sentence, (name, age, city)


def _order(rng: random.Random) -> _Extraction:
    item, count, price = rng.choice(words.ITEMS), rng.randrange(2, 60), rng.randrange(2, 99)
    name = words.pick_name(rng)
    sentence = rng.choice(
        (
            f"{name} ordered {count} pieces of the {item} for {price} euros.",
            f"{name} bought the {item} {count} times and paid {price} euros.",
            f"The {item} was ordered {count} times by {name} and costs {price} euros.",
        )
    )
    fields: dict[str, str | int] = {"name": name, "item": item, "count": count, "price": price}
    return fields, sentence, (name, item, count, price)


def _event(rng: random.Random) -> _Extraction:
    event, day, city = rng.choice(words.EVENTS), rng.choice(words.DAYS), words.pick_city(rng)
    sentence = rng.choice(
        (
            f"The {event} is on {day} in {city}.",
            f"On {day} there is a {event} in {city}.",
            f"We go to {city} on {day} for the {event}.",
        )
    )
    return {"event": event, "day": day, "city": city}, sentence, (event, day, city)
