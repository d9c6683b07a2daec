"""Finds tags in text that comes in pieces: what may still become one has to wait. Pure."""

from __future__ import annotations

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
        self._firsts = frozenset(tag[0] for tag in self._tags)
        self._beginnings = frozenset(
            tag[:size] for tag in self._tags for size in range(1, len(tag))
        )

    def at(self, text: str, place: int, *, final: bool) -> str | None:
        """Return the tag at a place; "" where more text decides, None if there is none.

        final: no more text comes.
        """
        if place >= len(text):
            return None if final else ""
        if text[place] not in self._firsts:
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
        place = self._next(text, 0)
        while place < len(text):
            tag = self.at(text, place, final=final)
            if tag is not None:
                return Found(place, tag)
            place = self._next(text, place + 1)
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

    def _next(self, text: str, start: int) -> int:
        """Return the next place where a tag may begin, or the text's length."""
        places = [text.find(first, start) for first in self._firsts]
        return min((place for place in places if place >= 0), default=len(text))


def skip_space(text: str, place: int = 0) -> int:
    """Return the first place that is no space."""
    while place < len(text) and text[place] in SPACE:
        place += 1
    return place
