"""Logits processors: callables of the program that holds the engine, on single rows of a step.

They need the newest token's value. On a CPU the device's table is the host's memory; on a GPU each
such row is read from it, which waits for all that was queued before, so that steps with such rows
do not run behind the host. Steps without any pay nothing. They are called in the executor's thread,
also for a token that is thrown away because its request has ended meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..params import LogitsProcessor, takes_prompt


class ProcessedRow(NamedTuple):
    """A row of a step with processors, on the host."""

    row: int
    slot: int
    length: int
    """Known tokens."""
    num_prompt: int
    processors: Sequence[LogitsProcessor]


class Failed(NamedTuple):
    """A row whose processors failed."""

    slot: int
    error: Exception


def process(x: Tensor, known: Tensor, rows: Iterable[ProcessedRow]) -> list[Failed]:
    """Give rows of x [rows, vocab] float32 to their processors, one after the other.

    known: [slots, width], the tokens of each slot. A row whose processor raises, or returns what is
    not logits, stays as it is.
    """
    failed = []
    for one in rows:
        tokens: list[int] = known[one.slot, : one.length].tolist()
        try:
            x[one.row] = _run(one, tokens, x[one.row])
        except Exception as error:
            failed.append(Failed(one.slot, error))
    return failed


def _run(one: ProcessedRow, tokens: list[int], old: Tensor) -> Tensor:
    """Return what a row's processors make of its logits [vocab], which stay as they are."""
    new = old.clone()
    for processor in one.processors:
        # Lists of their own: a processor may keep or change what it is given.
        prompt, outputs = tokens[: one.num_prompt], tokens[one.num_prompt :]
        given: Any = processor(*((prompt,) if takes_prompt(processor) else ()), outputs, new)
        if not isinstance(given, Tensor) or given.shape != old.shape:
            shown = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"it returned {shown}: it must be a tensor of {tuple(old.shape)}")
        new = given.to(dtype=old.dtype, device=old.device)
    if torch.isfinite(old.amax()) and not torch.isfinite(new.amax()):
        raise ValueError("it returned NaN or infinity, or left no token to draw")
    return new
