"""When a sequence ends: a vector test finds the few candidates, a scalar rule judges each.

Owns the rules. A stop token ends a sequence once min_tokens outputs exist; the length ends it in
any case; where both happen at once the reason is "stop".
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kv.block_pool import IdArray
from ..request import FinishReason, IntArray
from .sequence import Sequence

logger = logging.getLogger("quire")

_MASK = 0xFFFF
NOT_FINITE = "The model's output was not finite (NaN or infinity)."


class Verdict(NamedTuple):
    """Why a sequence ends."""

    reason: FinishReason
    stop_reason: int | None = None
    message: str | None = None


class StopFilter:
    """Marks the low 16 bits of every stop token id ever seen: a superset, one lookup a token.

    Exact per-slot comparison costs a gather of [rows, stop ids] in every step; a token that only
    shares its low bits costs one scalar judgement.
    """

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        self._marks = np.zeros(_MASK + 1, np.bool_)
        self._marks[-1 & _MASK] = True

    def add(self, token_ids: tuple[int, ...]) -> None:
        """Mark `token_ids`."""
        for token_id in token_ids:
            self._marks[token_id & _MASK] = True

    def suspects(self, token_ids: IntArray) -> NDArray[np.bool_]:
        """Tell which of token_ids [n] may end a sequence; -1 always does."""
        return self._marks.take(token_ids.astype(np.uint16))


def judge(sequence: Sequence, token_id: int, num_tokens: int) -> Verdict | None:
    """Decide whether `token_id`, the last of `num_tokens` tokens, ends the sequence.

    A rule that fails ends the sequence whose rule it is.
    """
    if token_id < 0:
        return Verdict("error", None, NOT_FINITE)
    try:
        return _apply(sequence, token_id, num_tokens)
    except Exception as error:
        logger.exception("a stop rule of request %s failed", sequence.request_id)
        return Verdict("error", None, f"A stop rule failed: {type(error).__name__}: {error}")


def _apply(sequence: Sequence, token_id: int, num_tokens: int) -> Verdict | None:
    request = sequence.request
    params = request.params
    if num_tokens - len(request.prompt_token_ids) >= params.min_tokens:
        if not params.ignore_eos and token_id in request.eos_token_ids:
            return Verdict("stop")
        if token_id in (params.stop_token_ids or ()):
            return Verdict("stop", token_id)
    if num_tokens >= sequence.max_len:
        return Verdict("length")
    return None


def ended(filter_: StopFilter, token_ids: IntArray, lengths: IdArray, limits: IdArray) -> list[int]:
    """Give the rows that may have ended: lengths [n] with the token, limits [n] the last length."""
    rows: list[int] = (filter_.suspects(token_ids) | (lengths > limits)).nonzero()[0].tolist()
    return rows
