"""Guesser: guesses on the device, before the step that verifies them, as a chain of small passes.

Each pass computes one more token of each row that guesses, and draws it with the parameters and the
noise that the target will draw with at that place: where both think alike they draw alike, at any
temperature. Guesses go into the device's table of tokens, so that edits of logits see them as the
history that they will be if they are right. A pass is packed, padded and captured as a decode step
is. What is computed, a `Head` knows; none of it can change a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from msgspec.structs import replace
from torch import Tensor

from ...reference.ops import Batch, KVCache, SamplingRows
from ..plan import StepPlan
from ..request import IntArray
from .inputs import PackedStep, StepInputs
from .places import Places
from .sampler import Source, draw
from .sampling_rows import SamplingTable, StepExtras

Editor = Callable[[StepExtras], Callable[[Tensor], Source] | None]
"""What changes the logits of some rows; see ModelRunner."""


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
        """Take in a step, before anything is copied or computed; whether to `fill`."""

    def fill(self) -> None:
        """Compute what a step needs even where nobody guesses."""

    def reach(self, slots: IntArray, places: IntArray) -> IntArray:
        """Say from where rows [rows] are computed to go on at their places, known tokens: by the
        next pass, or before."""

    def compute(self, step: PackedStep) -> Tensor:
        """Compute a pass: [samples, hidden]. May run inside a graph."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [rows, vocab of the target] of what compute gave."""

    def observe(self, seen: Seen) -> None:
        """Take in what the target has computed, once its tokens are drawn and in the table."""


class HeadMaker(Protocol):
    """Makes the head of one runner, whose KV memory has num_blocks."""

    def __call__(self, places: Places, num_blocks: int) -> Head: ...


class Run(Protocol):
    """Computes a part of a step, by its graph where it may have one; see ModelRunner."""

    def __call__(self, kind: str, step: PackedStep, compute: Callable[[], Tensor]) -> Tensor: ...


class Guesser:
    """Guesses of one runner's rows, whose inputs are packed as its own."""

    def __init__(
        self, head: Head, places: Places, inputs: StepInputs, sampling: SamplingTable, run: Run
    ) -> None:
        self.head = head
        self._ops, self._table = places.ops, places.table
        self._inputs, self._sampling, self._run = inputs, sampling, run
        self._needed = False

    def begin(self, plan: StepPlan) -> None:
        """Take in a step, before anything is copied or computed."""
        self._needed = self.head.begin(plan)

    def guess(self, plan: StepPlan, edit: Editor) -> Tensor | None:
        """Guess what a plan leaves to the device, row after row: [guesses] int32, None for none.

        They are in the table of tokens, too.
        """
        if self._needed:
            self.head.fill()
        drafts = plan.drafts
        if drafts is None or drafts.token_ids is not None:
            return None
        rows = np.flatnonzero(drafts.counts)
        # The longest come first, so that those that go on are the first ones.
        order = rows[np.argsort(-drafts.counts[rows], kind="stable")]
        counts, slots = drafts.counts[order], plan.slots[order]
        last = (plan.starts + plan.num_tokens - drafts.counts)[order] - 1
        starts = self.head.reach(slots, last)
        for number in range(int(counts[0])):
            size = int(np.count_nonzero(counts > number))
            ends = last[:size] + (number + 1)
            one = replace(
                plan,
                slots=slots[:size],
                starts=starts[:size],
                num_tokens=ends - starts[:size],
                samples=np.ones(size, np.bool_),
                scored=(),
                drafts=None,
            )
            self._pass(one, edit)
            starts = ends
        return self._table.guesses(plan)

    def _pass(self, plan: StepPlan, edit: Editor) -> None:
        """Compute rows, and put the token behind each into the table."""
        step = self._inputs.pack(plan, self._sampling)
        editor = edit(step.extras)
        if editor is None:
            self._run("guess", step, partial(self._draw_plainly, step))
            return
        size, tensors = step.num_samples, step.tensors
        hidden = self._run("hidden guess", step, partial(self.head.compute, step))
        sampling = SamplingRows(*(part[:size] for part in tensors.sampling))
        drawn = draw(self._ops, self.head.logits(hidden[:size]), sampling, None, editor)
        self._store(tensors.sample_slots[:size], tensors.sample_positions[:size], drawn.tokens)

    def _draw_plainly(self, step: PackedStep) -> Tensor:
        tensors = step.tensors
        tokens = self._ops.sample(self.head.logits(self.head.compute(step)), tensors.sampling)
        self._store(tensors.sample_slots, tensors.sample_positions, tokens)
        return tokens

    def _store(self, slots: Tensor, places: Tensor, tokens: Tensor) -> None:
        self._ops.store_tokens(self._table.tokens, slots, places, tokens.clamp(min=0))
