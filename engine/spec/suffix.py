"""Suffix decoding: what mostly followed where a text of the same tenant ended as this one does.

Oliaro et al. 2024, arXiv:2411.04975, with vLLM's options. A sequence is looked up in its own prompt
and output and in the latest outputs of those that share its tenant and cache salt, and in no other:
who waits less for a guess would else learn what strangers were told. Good at what is asked again
with small differences: agents, extraction, edits.

Differs: of both kinds of text, the longest match counts; its newest places are counted and no more
(suffix_index); outputs begin with the end of their prompt, so that first tokens are guessed too.

Texts are indexed in slices, some tokens a step, so that a long prompt holds up nobody. Outputs are
indexed in `propose`, which asks for nothing but known tokens and what earlier steps have indexed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..request import IntArray, Request
from .suffix_index import END, MARGIN, WIDTH, SuffixIndex, few_hashes, most_frequent

if TYPE_CHECKING:
    from .suffix_index import Text

SLICE = 2048
"""Tokens that are indexed in a step, of all texts together: about a millisecond."""
MOST_PROMPT = 2**16
"""Of a longer prompt only so many last tokens are indexed."""
MOST_OUTPUT = 2**14
"""Of a longer output only so many first ones are kept,"""
MOST_KEPT = 2**20
"""and of all outputs so many tokens, 40 to 170 MB: beyond, the oldest are forgotten."""
ROUNDING = 1e-6

Key = tuple[str, str | None]
"""Tenant and cache salt: who shares outputs."""


@dataclass(slots=True, eq=False)
class Seat:
    """A sequence in its slot."""

    key: Key
    index: SuffixIndex
    """pass_step links what it knew when it came, then propose what it has drawn since."""
    first: int
    """Its tokens before this one are not in the index."""
    num_prompt: int
    """Tokens of the request's prompt."""


class SuffixDrafter:
    """Guesses as most of the places with the longest match go on."""

    def __init__(
        self,
        *,
        max_tree_depth: int,
        max_cached_requests: int,
        max_spec_factor: float,
        min_token_prob: float,
        most_kept: int = MOST_KEPT,
        width: int = WIDTH,
    ) -> None:
        """See SpeculativeConfig. most_kept: tokens of all outputs. width: SuffixIndex's."""
        self._width = width
        self._depth = max_tree_depth
        self._num_cached = max_cached_requests
        self._factor = max_spec_factor
        self._least = min_token_prob
        self._most_kept = most_kept
        self._seats: dict[int, Seat] = {}
        self._shelves: dict[Key, SuffixIndex] = {}
        """The outputs that are kept, an END behind each."""
        self._ages: deque[tuple[Key, int]] = deque()
        """Whose each output is, and its tokens: the oldest first."""
        self._num_kept = 0
        """Tokens of all outputs."""
        self._pending: deque[SuffixIndex] = deque()
        """Where places are due, in the order that they came."""

    @property
    def num_bytes(self) -> int:
        """Memory of all indices."""
        seats = [seat.index for seat in self._seats.values()]
        return sum(index.num_bytes for index in (*seats, *self._shelves.values()))

    def enter(self, slot: int, request: Request, token_ids: IntArray) -> None:
        """See Drafter."""
        assert slot not in self._seats, slot
        first = max(0, len(token_ids) - MOST_PROMPT)
        key, num_prompt = (request.tenant, request.cache_salt), len(request.prompt_token_ids)
        seat = self._seats[slot] = Seat(key, SuffixIndex(self._width), first, num_prompt)
        self._write(seat.index, token_ids[first:])

    def propose(self, slot: int, token_ids: IntArray, count: int) -> Sequence[int]:
        """See Drafter."""
        seat = self._seats[slot]
        index = seat.index
        text = index.text
        index.write(token_ids[seat.first + len(text) - MARGIN :])
        end = len(text)
        if index.linked < index.due:
            values = [column[0] for column in few_hashes(text, end, end + 1)]
        else:
            columns = few_hashes(text, index.linked, end + 1)
            values = [column.pop() for column in columns]
            index.chain(columns)
        most = min(max(1, self._depth - count), end - MARGIN)
        tail = text[end - most :]
        match = index.find(values, tail)
        shelf = self._shelves.get(seat.key)
        other = match if shelf is None else shelf.find(values, tail)
        length = max(match.length, other.length)
        limit = min(count, self._depth - length, int(length * self._factor + ROUNDING))
        if limit <= 0:
            return []
        rows: list[Text] = []
        if match.length == length:
            rows = [text[place : place + limit] for place in match.places]
        if shelf is not None and other.length == length:
            theirs = shelf.text
            rows += [theirs[place : place + limit] for place in other.places]
        return most_frequent(rows, limit, self._least)

    def leave(self, slot: int, token_ids: IntArray, *, ended: bool) -> None:
        """See Drafter. What has ended is kept for others."""
        seat = self._seats.pop(slot)
        seat.index.due = 0
        # A single token was drawn before anybody could have guessed it.
        if ended and len(token_ids) > seat.num_prompt + 1:
            start = max(0, seat.num_prompt - self._depth)
            self._keep(seat.key, token_ids[start : seat.num_prompt + MOST_OUTPUT])

    def pass_step(self) -> None:
        """See Drafter."""
        left = SLICE
        while self._pending:
            index = self._pending[0]
            left -= index.link(left)
            if index.linked < index.due:
                break
            self._pending.popleft()

    def _keep(self, key: Key, token_ids: IntArray) -> None:
        """Keep an output, and forget the oldest ones where there are too many."""
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = SuffixIndex(self._width)
        output = np.append(token_ids, np.int32(END))
        self._write(shelf, output)
        self._ages.append((key, len(output)))
        self._num_kept += len(output)
        while len(self._ages) > self._num_cached or self._num_kept > self._most_kept:
            key, num = self._ages.popleft()
            self._num_kept -= num
            shelf = self._shelves[key]
            shelf.forget(num)
            if not shelf.num_tokens:
                del self._shelves[key]
            elif shelf.linked < shelf.due and shelf not in self._pending:
                self._pending.append(shelf)

    def _write(self, index: SuffixIndex, token_ids: IntArray) -> None:
        """Write a text, to be linked in slices."""
        if index.linked >= index.due:
            self._pending.append(index)
        index.write(token_ids)
        index.due = len(index.text)
