"""Where the end of a text stood before: chains of places with the same last tokens, as in LZ77.

A place is a number of tokens: what follows it starts there. For the last 1, 2, 4 and 8 tokens
before each place there is a chain through all places that have the same, newest first. A search
takes the longest of these that occurs, visits its newest WIDTH places, and compares how far each
goes on alike: so the longest match is found with all places that have it, the older of more than
WIDTH aside. Chains are told apart by a hash alone, and what is visited in vain is left out.

A suffix automaton or a trie with counts finds the same without a bound, but costs a dict for each
state, several hundred bytes and microseconds a token in Python, and neither can forget. A token
costs 36 to 52 bytes here, up to 170 where most were forgotten; forgetting is a number, which chains
end at.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..request import IntArray

if TYPE_CHECKING:
    Text = array[int]
    """Of int32."""

SIZES = (1, 2, 4, 8)
"""Tokens that the places of a chain have in common."""
MARGIN = max(SIZES)
"""So many ENDs stand before a text, so that each place has as many tokens before it."""
END = -1
"""No token: what stands between texts."""
WIDTH = 32
"""Enough to tell how often each token follows; a visit costs a quarter of a microsecond."""
LEAST_BUCKETS = 64
MOST_BASE = 2**30
"""Numbers of places begin anew before they have more than 31 bits."""
FACTORS = (
    0x9E3779B97F4A7C15,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0xD6E8FEB86659FD93,
    0xA0761D6478BD642F,
    0xE7037ED1A0B428DB,
    0x8EBC6AF09C88C6E3,
    0x589965CC75374CC3,
)
"""Of the last token, the one before it, and so on. Odd, with bits in all places: of a sum of
products modulo 2**64 the upper 31 bits are the hash."""
MULTIPLIERS = np.array(FACTORS, np.uint64)[:, None]
DISTANCES = np.arange(1, MARGIN + 1)[:, None]
COLUMNS = np.array(SIZES) - 1
WORD, SHIFT = 2**64 - 1, 33


class Match(NamedTuple):
    """The longest end of a text that was found elsewhere."""

    length: int
    """Tokens that are alike; 0: nothing was found."""
    places: list[int]
    """Where, newest first."""


NOTHING = Match(0, [])


class SuffixIndex:
    """Tokens, and the chains through those of them that were linked so far."""

    __slots__ = ("_base", "_before", "_heads", "_oldest", "_width", "due", "linked", "text")

    def __init__(self, width: int = WIDTH) -> None:
        """width: places that a search visits at most."""
        self._width = width
        self.text: Text = array("i", [END] * MARGIN)
        self.linked = MARGIN + 1
        """Places before it are in the chains. A place without a token before it is in none."""
        self.due = self.linked
        """Places before it are to be linked by `link`."""
        self._oldest = MARGIN
        """Places up to this one are forgotten."""
        self._base = 0
        """The number of a place is that of its tokens in `text`, and of those taken from there."""
        self._heads = zeros(LEAST_BUCKETS)
        """For each size, hash -> number of the newest place; 0: none."""
        self._before = zeros(self.linked)
        """For each size, place -> number of the newest one before it in its chain; 0: none."""

    @property
    def num_tokens(self) -> int:
        """Tokens, and ENDs between them, that are not forgotten."""
        return len(self.text) - self._oldest

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays, without what they have in reserve."""
        arrays = (self.text, *self._heads, *self._before)
        return sum(len(one) * one.itemsize for one in arrays)

    def write(self, token_ids: IntArray) -> None:
        """Append tokens [n] int32, without linking them."""
        self.text.frombytes(token_ids.tobytes())

    def link(self, most: int) -> int:
        """Put up to `most` of the places that are due into the chains; return how many."""
        self._skip_forgotten()
        num = min(most, self.due - self.linked)
        if num <= 0:
            return 0
        self._chain_many(hashes(self.text, self.linked, self.linked + num))
        return num

    def chain(self, columns: Sequence[Sequence[int]]) -> None:
        """Put the next few places into the chains: columns[size][place], their hashes."""
        start = self.linked + self._base
        self._grow(len(columns[0]))
        for heads, before, column in zip(self._heads, self._before, columns, strict=True):
            mask = len(heads) - 1
            for place, value in enumerate(column, start):
                bucket = value & mask
                before.append(heads[bucket])
                heads[bucket] = place

    def _chain_many(self, columns: NDArray[np.int64]) -> None:
        """Do what `chain` does, for many places: columns [sizes, places]."""
        start, num = self.linked + self._base, columns.shape[1]
        self._grow(num)
        for array_, before, column in zip(self._heads, self._before, columns, strict=True):
            heads = np.frombuffer(array_, np.int32)
            # By bucket, and in each by place.
            both = (column & (len(heads) - 1)) << 32 | np.arange(start, start + num)
            both.sort()
            buckets, places = both >> 32, both & 0xFFFFFFFF
            lasts = np.append(buckets[1:] != buckets[:-1], True)
            earlier = np.empty(num, np.int32)
            earlier[1:] = places[:-1]
            firsts = np.append(0, lasts.nonzero()[0][:-1] + 1)
            earlier[firsts] = heads[buckets[firsts]]
            heads[buckets[lasts]] = places[lasts]
            ordered = np.empty(num, np.int32)
            ordered[places - start] = earlier
            before.frombytes(ordered.tobytes())

    def _grow(self, num: int) -> None:
        """Count `num` more places as linked; have at least one bucket for each."""
        self.linked += num
        for heads in self._heads:
            while len(heads) < self.linked:
                # Both halves go on with the old chains; what they have in vain is left out.
                heads.extend(heads)

    def find(self, values: Sequence[int], tail: Text) -> Match:
        """Find the longest end of `tail`, whose hashes are `values`, one for each size."""
        most = len(tail)
        for index in range(len(SIZES) - 1, -1, -1):
            if SIZES[index] > most:
                continue
            heads, before = self._heads[index], self._before[index]
            place, places = heads[values[index] & (len(heads) - 1)] - self._base, []
            for _ in repeat(None, self._width):
                if place <= self._oldest:
                    break
                places.append(place)
                place = before[place] - self._base
            if places:
                match = self._longest(places, tail, SIZES[index])
                if match.places:
                    return match
        return NOTHING

    def forget(self, num: int) -> None:
        """Forget the oldest `num` tokens, the last of which is an END.

        Places that were linked may be due again: of so few that they need a smaller table.
        """
        assert 0 <= num <= self.num_tokens, (num, self.num_tokens)
        self._oldest += num
        if 2 * (self._oldest - MARGIN) > len(self.text):
            self._compact()

    def _compact(self) -> None:
        """Give back the memory of what was forgotten: all places move."""
        self._skip_forgotten()
        shift = self._oldest - MARGIN
        self.linked -= shift
        self.due -= shift
        self._oldest = MARGIN
        del self.text[:shift]
        if len(self._heads[0]) > max(LEAST_BUCKETS, 8 * len(self.text)):
            self.linked = MARGIN + 1
            self._heads, self._before, self._base = zeros(LEAST_BUCKETS), zeros(self.linked), 0
            return
        for before in self._before:
            del before[:shift]
        self._base += shift
        if self._base > MOST_BASE:
            for one in (*self._before, *self._heads):
                numbers = np.frombuffer(one, np.int32)
                np.maximum(numbers - self._base, 0, out=numbers)
            self._base = 0

    def _skip_forgotten(self) -> None:
        """Leave places that were forgotten before they were linked out of the chains."""
        num = self._oldest + 1 - self.linked
        if num > 0:
            self.linked += num
            self.due = max(self.due, self.linked)
            for before in self._before:
                before.frombytes(bytes(4 * num))

    def _longest(self, places: Iterable[int], tail: Text, least: int) -> Match:
        """Keep those of `places` with the longest common end, of `least` tokens or more."""
        text, most, length = self.text, len(tail), least
        pattern, kept = tail[-length:], list[int]()
        for place in places:
            if text[place - length : place] != pattern:
                continue
            grown = length
            while grown < most and text[place - grown - 1] == tail[-grown - 1]:
                grown += 1
            if grown > length:
                length, pattern, kept = grown, tail[-grown:], []
            kept.append(place)
        return Match(length, kept)


def zeros(num: int) -> list[Text]:
    """Make an array of zeros for each size."""
    return [array("i", bytes(4 * num)) for _ in SIZES]


def hashes(text: Text, start: int, end: int) -> NDArray[np.int64]:
    """Hash what stands before each place in [start, end): [sizes, places], 31 bits."""
    tokens = np.frombuffer(text, np.int32)
    window = tokens[np.arange(start, end) - DISTANCES]
    sums = (window.astype(np.uint64) * MULTIPLIERS).cumsum(axis=0, dtype=np.uint64)
    found: NDArray[np.int64] = (sums[COLUMNS] >> np.uint64(SHIFT)).astype(np.int64)
    return found


def few_hashes(text: Text, start: int, end: int) -> list[list[int]]:
    """Do what `hashes` does, sooner where it is for few places."""
    columns: list[list[int]] = [[], [], [], []]
    ones, twos, fours, eights = columns
    first, second, third, fourth, fifth, sixth, seventh, eighth = FACTORS
    for place in range(start, end):
        h, g, f, e, d, c, b, a = text[place - MARGIN : place]
        value = a * first
        ones.append((value & WORD) >> SHIFT)
        value += b * second
        twos.append((value & WORD) >> SHIFT)
        value += c * third + d * fourth
        fours.append((value & WORD) >> SHIFT)
        value += e * fifth + f * sixth + g * seventh + h * eighth
        eights.append((value & WORD) >> SHIFT)
    return columns


def most_frequent(rows: list[Text], most: int, least: float) -> list[int]:
    """Go on as most of `rows` do, up to `most` tokens; who is first decides where many are.

    Ends where fewer than least * len(rows) of them go on alike.
    """
    floor, guesses = least * len(rows), list[int]()
    for index in range(most):
        counts: dict[int, int] = {}
        for row in rows:
            if index < len(row) and row[index] >= 0:
                token = row[index]
                counts[token] = counts.get(token, 0) + 1
        if not counts:
            break
        best = max(counts, key=counts.__getitem__)
        if counts[best] < floor:
            break
        guesses.append(best)
        if counts[best] < len(rows):
            rows = [row for row in rows if index < len(row) and row[index] == best]
    return guesses
