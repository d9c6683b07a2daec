"""Word lists of the demo corpus, and the rule that decides what is held out of training."""

from __future__ import annotations

import random
import zlib


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _listed(
    "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo June Kai Lena Max Nora Otto Pia Quinn Rosa Sam Tess "
    "Uma Vic Wes Xena Yara Zoe Amir Bela Carl Dora Emil Fay Gina Hugo Iris Jack Kira Leo Mia Nico "
    "Olga Paul Ruth Sofia Tom Ursula Vera Will Anna Bob Clara David Ella Frank Grace Henry Alice "
    "Jonas Kate Lucas Maria Noah Oscar Peter Lily"
)

FRIEND_NAMES = _listed(
    "Pip Dot Bo Moss Fern Juno Wren Tilly Rufus Daisy Hazel Robin Poppy Milo Basil Ruby"
)
"""Friends in stories are named so, and nobody else."""

CITIES = (
    *_listed(
        "Paris London Berlin Madrid Rome Vienna Prague Oslo Stockholm Helsinki Copenhagen "
        "Dublin Lisbon Athens Warsaw Budapest Zurich Geneva Munich Hamburg Amsterdam Brussels "
        "Milan Naples Venice Boston Chicago Denver Seattle Dallas Miami Toronto Montreal Tokyo "
        "Kyoto Osaka Seoul Beijing Delhi Mumbai Cairo Nairobi Sydney Lima Bogota Porto Krakow "
        "Bergen Leipzig Cologne"
    ),
    "New York",
    "San Francisco",
    "Los Angeles",
    "Hong Kong",
    "Cape Town",
    "Mexico City",
)

ANIMALS = _listed(
    "fox bear rabbit owl mouse hedgehog squirrel frog cat dog duck badger otter turtle hen goat "
    "lamb pony beaver deer girl boy dragon robot lion tiger elephant wolf pig cow horse monkey "
    "penguin bee snail crow"
)

THINGS = _listed(
    "kite ball drum lamp hat scarf basket key bell boat book flute crown map ring cup coat "
    "blanket lantern spoon wagon button whistle pillow"
)

PLACES = (
    "in the green forest",
    "by the blue lake",
    "near the old mill",
    "on a windy hill",
    "in a small village",
    "at the edge of a meadow",
    "under a big oak tree",
    "by the quiet river",
    "in a warm valley",
    "near the sea",
    "behind the tall mountain",
    "next to the castle",
)

TRAITS = _listed("little brave kind clever shy happy young curious gentle funny")

SPOTS = (
    "under a bush",
    "behind a rock",
    "in the tall grass",
    "near the bridge",
    "next to a log",
    "in a hollow tree",
    "under the leaves",
    "on the path",
)

ITEMS = (
    *THINGS,
    *_listed("table chair phone clock shirt bike camera guitar bottle mirror"),
)

FOODS = _listed("apples pears eggs cookies plums cakes nuts carrots oranges muffins")

DAYS = _listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

EVENTS = _listed("concert meeting party lesson picnic dinner game wedding market parade")

MESSAGES = (
    "I am at home",
    "I will be late",
    "I miss you",
    "see you tomorrow",
    "call me back",
    "good night",
    "happy birthday",
    "thank you for the gift",
    *(
        f"{subject} {predicate}"
        for subject in ("the train", "the dinner", "the cake", "the bus", "the show", "the meeting")
        for predicate in ("is late", "is ready", "starts soon", "is over", "was great")
    ),
)

SKIES = _listed("sunny cloudy rainy windy foggy snowy clear stormy")

_ONSETS = _listed("b br c d dr f g gr h j k l m n p r s st t tr v w z sh th")
_VOWELS = _listed("a e i o u ai ea oo")
_CODAS = (*_listed("n r s l t m x nd ck"), "", "", "", "")

# One combination in this many is kept out of the training corpus.
HELD_OUT_EVERY = 8


def is_held_out(*parts: object) -> bool:
    """Tell whether a combination belongs to the held-out prompts; the same on every machine."""
    key = "|".join(str(part) for part in parts)
    return zlib.crc32(key.encode()) % HELD_OUT_EVERY == 0


def made_up_word(rng: random.Random) -> str:
    """Return a pronounceable capitalised word that is on no list."""
    num_syllables = rng.choice((2, 2, 3))
    syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(num_syllables))
    return ("".join(syllables) + rng.choice(_CODAS)).capitalize()


def pick_name(rng: random.Random) -> str:
    """Return a person's name: mostly a listed one, now and then a made-up one."""
    return made_up_word(rng) if rng.random() < 0.05 else rng.choice(NAMES)


def pick_city(rng: random.Random) -> str:
    """Return a city's name: mostly a listed one, now and then a made-up one."""
    return made_up_word(rng) if rng.random() < 0.05 else rng.choice(CITIES)


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return ("an " if noun[0] in "aeio" else "a ") + noun
