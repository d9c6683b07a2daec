"""Values of options on the command line, from text. ArgumentTypeError says what is allowed."""

from __future__ import annotations

import argparse
import math
from typing import TypeVar

import msgspec

T = TypeVar("T")


def read_port(text: str) -> int:
    """A port, 0 too."""
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: it must be from 0 to 65535")
    return port


def read_count(text: str) -> int:
    """How many at once."""
    count = int(text)
    if not 1 <= count <= 2**16:
        raise argparse.ArgumentTypeError(f"{text} must be an integer, 1 to {2**16}")
    return count


def read_seconds(text: str) -> float:
    """A time from 0 up."""
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise argparse.ArgumentTypeError(f"{text} must be a number of seconds from 0 up")
    return seconds


def read_bytes(text: str) -> int:
    """A size, with a unit or without."""
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    power = {"k": 10, "m": 20, "g": 30, "t": 40}.get(number[-1:], 0)
    try:
        return int(float(number[:-1] if power else number) * 2**power)
    except (ValueError, OverflowError):
        message = f"{text} is not a size: write 2GiB, 512MiB or 1000000"
        raise argparse.ArgumentTypeError(message) from None


def read_weights(text: str) -> dict[str, float]:
    """An object of numbers."""
    try:
        return msgspec.json.decode(text, type=dict[str, float])
    except msgspec.MsgspecError as error:
        message = f'{text} is not an object of numbers, as {{"name": 2}}: {error}'
        raise argparse.ArgumentTypeError(message) from None


def read_object(kind: type[T], text: str) -> T:
    """An object of a kind."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
