"""Guesser: guesses on the device, before the step that verifies them, as a chain of small passes.

Each pass computes one more token of each row that guesses, and draws it with the parameters and the
noise that the target will draw with at that place: where both think alike they draw alike, at any
temperature. Guesses go into the device's table of tokens, so that edits of logits see them as the
history that they will be if they are right. What is computed, a `Head` knows; none of it can
change a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...reference.ops import Batch, KVCache, Ops, SamplingRows, StepRows
from ..plan import StepPlan
from ..request import IntArray
from .link import Link
from .sampler import Source, draw
from .sampling_rows import NUM_PARAMETERS, SamplingTable, StepExtras
from .state import DeviceTable

Editor = Callable[[StepExtras], Callable[[Tensor], Source] | None]
"""What changes the logits of some rows; see ModelRunner."""


class Pass(NamedTuple):
    """Rows that compute one token more: its place is the last one that is known or guessed."""

    slots: IntArray
    """[rows] and"""
    places: IntArray
    """[rows] the position of that token."""


NO_ROWS = Pass(np.zeros(0, np.int32), np.zeros(0, np.int32))


class Watched(NamedTuple):
    """What a head wants of the target's computing."""

    taps: tuple[int, ...]
    """Layers whose inputs it wants,"""
    needs_last: bool
    """and whether it wants what logits are computed from, of all tokens."""


class Seen(NamedTuple):
    """What the target computed of a step, for heads that go on from it."""

    features: tuple[Tensor, ...]
    """[tokens, hidden] dtype each, of all of the step's tokens: what the head watches,"""
    batch: Batch
    """and where these are;"""
    samples: Tensor
    """[samples] int64, the indices of those that yield a sample,"""
    slots: Tensor
    """[samples] int32, their slots; -1: padding,"""
    places: Tensor
    """[samples] int32, and the positions that were drawn for."""


class Head(Protocol):
    """What a guess is computed by: a model of its own, or a layer on top of the target's."""

    @property
    def watched(self) -> Watched | None:
        """What `observe` is told; None: nothing, ever."""

    @property
    def caches(self) -> Sequence[KVCache]:
        """Its KV memory, in the blocks of the target's: copied with them."""

    @property
    def table_bytes(self) -> int:
        """Memory of what it keeps of each slot."""

    def begin(self, plan: StepPlan) -> bool:
        """Take in a step, before anything is copied or computed; whether `first` is needed even
        where nobody guesses."""

    def first(self, rows: Pass) -> Tensor:
        """Compute what is missing of rows up to the last known token.

        Returns [rows, hidden], of that token. May be asked of no rows.
        """

    def go_on(self, rows: Pass) -> Tensor:
        """Compute one token more, of the first of the rows that were computed last."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [rows, vocab of the target] of what first and go_on gave."""

    def observe(self, seen: Seen) -> None:
        """Take in what the target has computed, once its tokens are drawn and in the table."""


class Places(NamedTuple):
    """Where a runner's sequences are: tokens and blocks by slot."""

    ops: Ops
    link: Link
    table: DeviceTable
    block_size: int

    def prepare(self, rows: Pass, starts: IntArray) -> tuple[Tensor, Batch]:
        """Gather what rows compute from starts [rows] to their places: (tokens [n] int32, Batch),
        row after row."""
        size = len(starts)
        ends = np.zeros(size + 1, np.int32)
        np.cumsum(rows.places + 1 - starts, out=ends[1:])
        words = self.link.upload(np.concatenate((rows.slots, starts, ends)).astype(np.int32))
        laid = StepRows(words[:size], words[size : 2 * size], words[2 * size :])
        table = self.table
        return self.ops.prepare(
            laid, table.tokens, table.block_tables, self.block_size, int(ends[-1])
        )


class HeadMaker(Protocol):
    """Makes the head of one runner, whose KV memory has num_blocks."""

    def __call__(self, places: Places, num_blocks: int) -> Head: ...


class Guesser:
    """Guesses of one runner's rows."""

    def __init__(self, head: Head, places: Places, sampling: SamplingTable) -> None:
        self.head = head
        self._ops, self._link, self._table = places.ops, places.link, places.table
        self._sampling = sampling
        self._needed = False

    def begin(self, plan: StepPlan) -> None:
        """Take in a step, before anything is copied or computed."""
        self._needed = self.head.begin(plan)

    def guess(self, plan: StepPlan, edit: Editor) -> Tensor | None:
        """Guess what a plan leaves to the device, row after row: [guesses] int32, None for none.

        They are in the table of tokens, too.
        """
        drafts = plan.drafts
        if drafts is None or drafts.token_ids is not None:
            if self._needed:
                self.head.first(NO_ROWS)
            return None
        rows = np.flatnonzero(drafts.counts)
        # The longest come first, so that those that go on are the first ones.
        order = rows[np.argsort(-drafts.counts[rows], kind="stable")]
        counts = drafts.counts[order]
        offsets = (drafts.counts.cumsum() - drafts.counts)[order].astype(np.int64)
        last = (plan.starts + plan.num_tokens - drafts.counts)[order] - 1
        given = Pass(plan.slots[order], last)
        hidden = self.head.first(given)
        guesses = torch.zeros(int(counts.sum()), dtype=torch.int32, device=self._link.device)
        for number in range(int(counts[0])):
            size = int(np.count_nonzero(counts > number))
            given = Pass(given.slots[:size], given.places[:size])
            if number:
                hidden = self.head.go_on(given)
            given = given._replace(places=given.places + 1)
            tokens = self._draw(given, self.head.logits(hidden), edit)
            guesses.put_(self._link.upload(offsets[:size] + number), tokens)
        return guesses

    def _draw(self, rows: Pass, logits: Tensor, edit: Editor) -> Tensor:
        """Draw the tokens at the places of rows, and put them into the table."""
        size, link = len(rows.slots), self._link
        parameters = np.empty((NUM_PARAMETERS, size), np.int32)
        seeds: NDArray[np.int64] = np.empty(size, np.int64)
        extras = self._sampling.fill(rows.slots, rows.places, parameters, seeds)
        sent = link.upload(parameters.ravel()).view(NUM_PARAMETERS, size)
        temperature, top_k, top_p, min_p, indices = sent.unbind()
        sampling = SamplingRows(
            temperature=temperature.view(torch.float32),
            top_k=top_k,
            top_p=top_p.view(torch.float32),
            min_p=min_p.view(torch.float32),
            seeds=link.upload(seeds),
            indices=indices,
        )
        tokens = draw(self._ops, logits, sampling, None, edit(extras)).tokens.clamp_(min=0)
        slots, places = link.upload(rows.slots.copy()), link.upload(rows.places.copy())
        self._ops.store_tokens(self._table.tokens, slots, places, tokens)
        return tokens
