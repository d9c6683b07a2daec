"""When a sequence ends: a vector test finds the few candidates, a scalar rule judges each.

Owns the rules. A stop token ends a sequence: before min_tokens it is drawn only where a grammar
leaves nothing else. The length ends it in any case; a repetition where neither does, past
min_tokens. Rules read known tokens alone.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kv.block_pool import IdArray
from ..params import RepetitionDetectionParams
from ..request import FinishReason, IntArray
from .sequence import Sequence

logger = logging.getLogger("quire")

_MASK = 0xFFFF
NOT_FINITE = "The model's output was not finite (NaN or infinity)."


class Verdict(NamedTuple):
    """Why a sequence ends."""

    reason: FinishReason
    stop_reason: int | str | None = None
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


def quiet_length(sequence: Sequence) -> int:
    """Give the longest length at which nothing but a stop token can end a sequence."""
    request, longest = sequence.request, sequence.max_len - 1
    rule = request.params.repetition_detection
    if rule is None or not rule.max_pattern_size:
        return longest
    least = max(request.params.min_tokens, max(1, rule.min_pattern_size) * rule.min_count)
    return min(longest, len(request.prompt_token_ids) + least - 1)


def judge(sequence: Sequence, tokens: IntArray) -> Verdict | None:
    """Decide whether the last of all known tokens [n], prompt and outputs, ends the sequence.

    A rule that fails ends the sequence whose rule it is.
    """
    if tokens[-1] < 0:
        return Verdict("error", None, NOT_FINITE)
    try:
        return _apply(sequence, tokens)
    except Exception as error:
        logger.exception("a stop rule of request %s failed", sequence.request_id)
        return Verdict("error", None, f"A stop rule failed: {type(error).__name__}: {error}")


def _apply(sequence: Sequence, tokens: IntArray) -> Verdict | None:
    request = sequence.request
    params, token_id = request.params, int(tokens[-1])
    outputs = tokens[len(request.prompt_token_ids) :]
    if not params.ignore_eos and token_id in request.eos_token_ids:
        return Verdict("stop")
    if token_id in (params.stop_token_ids or ()):
        return Verdict("stop", token_id)
    if len(tokens) >= sequence.max_len:
        return Verdict("length")
    rule = params.repetition_detection
    if rule is not None and len(outputs) >= params.min_tokens and repeats(outputs, rule):
        return Verdict("repetition", "repetition_detected")
    return None


def repeats(outputs: IntArray, rule: RepetitionDetectionParams) -> bool:
    """Tell whether outputs [n] end with as many copies of a pattern as the rule looks for."""
    shortest, copies = max(1, rule.min_pattern_size), rule.min_count
    longest = min(rule.max_pattern_size, len(outputs) // max(1, copies))
    if longest < shortest:
        return False
    # Few sizes have the last token where the copy before would have it.
    before = outputs[len(outputs) - 1 - longest : len(outputs) - shortest][::-1]
    for size in ((before == outputs[-1]).nonzero()[0] + shortest).tolist():
        rest = outputs[len(outputs) - size * copies :]
        if (rest[size:] == rest[:-size]).all():
            return True
    return False


def ended(filter_: StopFilter, token_ids: IntArray, lengths: IdArray, quiet: IdArray) -> list[int]:
    """Give the rows that may have ended: lengths [n] with the token, quiet [n] quiet_length."""
    rows: list[int] = (filter_.suspects(token_ids) | (lengths > quiet)).nonzero()[0].tolist()
    return rows
