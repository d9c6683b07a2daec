"""Finds tags in text that comes in pieces: what may still become one has to wait. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

SPACE = " \t\r\n"


class Found(NamedTuple):
    """A place in a text, and the tag that stands there: "" if one may still come, None if none."""

    place: int
    tag: str | None


class TagSet:
    """Some tags. Of those that begin at one place the longest counts."""

    __slots__ = ("_beginnings", "_firsts", "_lengths", "_tags")

    def __init__(self, tags: Iterable[str]) -> None:
        self._tags = frozenset(tags)
        assert all(self._tags), self._tags
        self._lengths = sorted({len(tag) for tag in self._tags}, reverse=True)
        firsts = sorted({tag[0] for tag in self._tags})
        # Without tags a pattern that nothing fits.
        self._firsts = re.compile(
            "[" + "".join(map(re.escape, firsts)) + "]" if firsts else r"(?!)"
        )
        self._beginnings = frozenset(
            tag[:size] for tag in self._tags for size in range(1, len(tag))
        )

    def at(self, text: str, place: int, *, final: bool) -> str | None:
        """Return the tag at a place; "" where more text decides, None if there is none.

        final: no more text comes.
        """
        if place >= len(text):
            return None if final else ""
        if not self._firsts.match(text, place):
            return None
        if not final and len(text) - place < self._lengths[0] and text[place:] in self._beginnings:
            return ""
        for length in self._lengths:
            one = text[place : place + length]
            if one in self._tags:
                return one
        return None

    def find(self, text: str, *, final: bool) -> Found:
        """Find the first tag, or else how far no tag can begin."""
        first = self._firsts.search(text)
        while first is not None:
            tag = self.at(text, first.start(), final=final)
            if tag is not None:
                return Found(first.start(), tag)
            first = self._firsts.search(text, first.end())
        return Found(len(text), None)

    def begins(self, text: str) -> bool:
        """Tell whether a text is empty or the beginning of a tag."""
        return not text or text in self._beginnings

    def without(self, text: str) -> str:
        """Return a text without these tags."""
        kept: list[str] = []
        while True:
            found = self.find(text, final=True)
            kept.append(text[: found.place])
            if not found.tag:
                return "".join(kept)
            text = text[found.place + len(found.tag) :]


def skip_space(text: str, place: int = 0) -> int:
    """Return the first place that is no space."""
    while place < len(text) and text[place] in SPACE:
        place += 1
    return place
