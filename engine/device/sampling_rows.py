"""SamplingTable: how each slot draws its tokens, as arrays; rows of a step are gathers from it.

Owns the sampling parameters by slot; changes only on admission. A feature that nobody in a step
uses costs one comparison.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...reference.ops import SamplingRows
from ..plan import Admitted
from ..request import IntArray

NO_LOGPROBS = -1


class Forbidden(NamedTuple):
    """Entries of the logits that must not be drawn: [n] int64 each."""

    rows: Tensor
    tokens: Tensor


class StepSampling(NamedTuple):
    """How the rows of a step are drawn."""

    rows: SamplingRows
    forbidden: Forbidden | None
    num_logprobs: int
    """The most that any row asked for; NO_LOGPROBS where none asked at all."""


class SamplingTable:
    """One entry a slot in every array."""

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._temperature = np.zeros(num_slots, dtype=np.float32)
        self._top_k = np.zeros(num_slots, dtype=np.int32)
        self._top_p = np.ones(num_slots, dtype=np.float32)
        self._min_p = np.zeros(num_slots, dtype=np.float32)
        self._seeds = np.zeros(num_slots, dtype=np.int64)
        self._num_prompt_tokens = np.zeros(num_slots, dtype=np.int32)
        self._min_tokens = np.zeros(num_slots, dtype=np.int32)
        self._num_logprobs = np.full(num_slots, NO_LOGPROBS, dtype=np.int32)
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
        self._num_logprobs[slot] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        self._stop_token_ids[slot] = tuple(
            token for token in admitted.stop_token_ids if token < self._vocab_size
        )

    def step(self, slots: IntArray, positions: IntArray) -> StepSampling:
        """Gather the rows that draw the tokens at positions [rows] of slots [rows]."""
        indices = positions - self._num_prompt_tokens[slots]
        rows = SamplingRows(
            temperature=torch.from_numpy(self._temperature[slots]),
            top_k=torch.from_numpy(self._top_k[slots]),
            top_p=torch.from_numpy(self._top_p[slots]),
            min_p=torch.from_numpy(self._min_p[slots]),
            seeds=torch.from_numpy(self._seeds[slots]),
            indices=torch.from_numpy(indices),
        )
        early = indices < self._min_tokens[slots]
        forbidden = self._forbid(slots, np.flatnonzero(early)) if early.any() else None
        return StepSampling(rows, forbidden, int(self._num_logprobs[slots].max()))

    def _forbid(self, slots: IntArray, early: NDArray[np.int64]) -> Forbidden | None:
        """Collect the stop tokens of the rows in early."""
        stops = [(int(row), self._stop_token_ids[slots[row]]) for row in early]
        pairs = [(row, token) for row, tokens in stops for token in tokens]
        if not pairs:
            return None
        return Forbidden(*torch.tensor(pairs, dtype=torch.int64).unbind(1))
