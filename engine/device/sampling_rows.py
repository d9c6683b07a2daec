"""SamplingTable: how each slot draws its tokens, as arrays; rows of a step are gathers from it.

Owns the sampling parameters by slot, on the host; changes only on admission. A feature that nobody
in a step uses costs one comparison.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...reference.ops import Ops
from ..plan import Admitted
from ..request import IntArray
from .grammar_rows import GrammarRows, MaskedRows
from .link import Link
from .logit_edits import EditTable, Forbidden, StepEdits

NO_LOGPROBS = -1
NUM_PARAMETERS = 5
"""Words of a row: temperature, top_k, top_p, min_p (floats by their bits) and the index."""
_NUM_COLUMNS = 8
"""Words of a slot: the first four of a row, num_prompt_tokens, min_tokens, num_logprobs, what else
it has: HAS_EDITS, HAS_GRAMMAR and POOLS."""
HAS_EDITS, HAS_GRAMMAR, POOLS = 1, 2, 4
PADDING = np.array([0.0, 0.0, 1.0, 0.0, 0.0], dtype=np.float32).view(np.int32)[:, None]
"""[NUM_PARAMETERS, 1] a row that is drawn greedily. A zero has no bits, of whatever type."""


class StepExtras(NamedTuple):
    """What of a step's drawing is rare."""

    forbidden: Forbidden | None
    num_logprobs: int
    """The most that any row asked for; NO_LOGPROBS where none asked at all."""
    edits: StepEdits | None = None
    masked: MaskedRows | None = None
    told: NDArray[np.int64] | None = None
    """[m] rows that asked for log probabilities; None where all or none did."""
    pools: bool = False
    """Whether a row wants its vector."""


PLAIN = StepExtras(None, NO_LOGPROBS)
"""Nothing of it."""


class SamplingTable:
    """One entry a slot in every array."""

    def __init__(self, ops: Ops, link: Link, num_slots: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.edits = EditTable(ops, link, vocab_size)
        self.grammars = GrammarRows(link, vocab_size)
        # One array, so that a step gathers once; what each line is called, are views.
        self._words = np.zeros((_NUM_COLUMNS, num_slots), dtype=np.int32)
        self._temperature = self._words[0].view(np.float32)
        self._top_k = self._words[1]
        self._top_p = self._words[2].view(np.float32)
        self._min_p = self._words[3].view(np.float32)
        self._num_prompt_tokens = self._words[4]
        self._min_tokens = self._words[5]
        self._num_logprobs = self._words[6]
        self._features = self._words[7]
        self._seeds = np.zeros(num_slots, dtype=np.int64)
        self.pool_starts = np.zeros(num_slots, dtype=np.int32)
        """Where what vectors are made of begins."""
        self._top_p[:] = 1.0
        self._num_logprobs[:] = NO_LOGPROBS
        self._stop_token_ids: list[tuple[int, ...]] = [()] * num_slots

    def admit(self, admitted: Admitted) -> None:
        """Take a sequence's parameters into its slot."""
        slot, params = admitted.slot, admitted.params
        self._temperature[slot] = params.temperature
        self._top_k[slot] = max(params.top_k, 0)
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seeds[slot] = np.uint64(admitted.seed).view(np.int64)
        self._num_prompt_tokens[slot] = admitted.num_prompt_tokens
        self._min_tokens[slot] = params.min_tokens
        num_logprobs = NO_LOGPROBS if params.logprobs is None else params.logprobs
        self._num_logprobs[slot] = max(num_logprobs, admitted.num_candidates or NO_LOGPROBS)
        edits, grammar = self.edits.admit(admitted), self.grammars.admit(admitted)
        pools = admitted.pool is not None
        self.pool_starts[slot] = admitted.pool or 0
        self._features[slot] = HAS_EDITS * edits | HAS_GRAMMAR * grammar | POOLS * pools
        self._stop_token_ids[slot] = tuple(
            token for token in admitted.stop_token_ids if token < self._vocab_size
        )

    def has_grammars(self, slots: IntArray) -> bool:
        """Whether any of slots [n] has a grammar."""
        return bool((self._features[slots] & HAS_GRAMMAR).any())

    def fill(
        self,
        slots: IntArray,
        positions: IntArray,
        parameters: IntArray,
        seeds: NDArray[np.int64],
        guesses: IntArray | None = None,
    ) -> StepExtras:
        """Write the rows that draw the tokens at positions [n > 0] of slots [n].

        Into the first n columns of parameters [NUM_PARAMETERS, >= n] and of seeds [>= n]. guesses:
        [n] which each comes behind, or -1; None: nobody guesses.
        """
        size = len(slots)
        words = self._words[:, slots]
        indices = positions - words[4]
        parameters[:4, :size] = words[:4]
        parameters[4, :size] = indices
        seeds[:size] = self._seeds[slots]
        early: NDArray[Any] = indices < words[5]
        flags = edits = masked = None
        pools = False
        if words[7].any():
            pools = bool((words[7] & POOLS).any())
            flags = words[7] & HAS_EDITS
            rows = np.flatnonzero(words[7] & HAS_GRAMMAR)
            if len(rows):
                masked = MaskedRows(
                    rows.tolist(),
                    slots[rows].tolist(),
                    early[rows].tolist(),
                    () if guesses is None else guesses[rows].tolist(),
                )
                early[rows] = False  # their masks say it
        forbidden = self._forbid(slots, np.flatnonzero(early)) if early.any() else None
        if forbidden is not None:
            flags = early if flags is None else flags | early
        if flags is not None and flags.any():
            edits = self.edits.of_step(slots, positions, flags)
        asked = np.flatnonzero(words[6] != NO_LOGPROBS)
        told = None if len(asked) in (0, size) else asked
        return StepExtras(forbidden, int(words[6].max()), edits, masked, told, pools)

    def _forbid(self, slots: IntArray, early: NDArray[np.int64]) -> Forbidden | None:
        """Collect the stop tokens of the rows in early."""
        stops = [(int(row), self._stop_token_ids[slots[row]]) for row in early]
        pairs = [(row, token) for row, tokens in stops for token in tokens]
        if not pairs:
            return None
        rows, tokens = np.array(pairs, dtype=np.int64).T.copy()
        return Forbidden(rows, tokens)
