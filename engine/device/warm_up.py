"""Steps that are run before the first request: small ones that touch everything, and the largest.

PLANS is what ModelRunner.warm_up executes: a prefill of two sequences (of two and one tokens) with
the parameters that choose different code, then a decode step of both with a copied block.
The others are what a GPU's memory is measured by. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from msgspec.structs import replace

from ..params import SamplingParams
from ..plan import Admitted, Drafts, Scored, StepPlan
from ..request import IntArray

Plans = Iterable[StepPlan]

PLAIN = SamplingParams(temperature=1.0, max_tokens=None)
"""As most rows are: without any feature that is rare."""
NUM_SLOTS = 2
NUM_BLOCKS = 3
MAX_MODEL_LEN = 4


def _ints(*values: int) -> IntArray:
    return np.array(values, dtype=np.int32)


_GREEDY = Admitted(
    slot=0,
    token_ids=_ints(0, 1),
    num_prompt_tokens=2,
    params=SamplingParams(temperature=0.0),
    seed=0,
    stop_token_ids=(),
)
_DRAWN = Admitted(
    slot=1,
    token_ids=_ints(1),
    num_prompt_tokens=1,
    params=SamplingParams(top_k=8, top_p=0.9, min_p=0.01, min_tokens=1, logprobs=1),
    seed=1,
    stop_token_ids=(0,),
)

PLANS = (
    StepPlan(
        step=0,
        admitted=(_GREEDY, _DRAWN),
        released=_ints(),
        block_slots=_ints(0, 1),
        block_indices=_ints(0, 0),
        block_ids=_ints(0, 1),
        copy_sources=_ints(),
        copy_targets=_ints(),
        slots=_ints(0, 1),
        starts=_ints(0, 0),
        num_tokens=_ints(2, 1),
        samples=np.array([True, True]),
    ),
    StepPlan(
        step=1,
        admitted=(),
        released=_ints(),
        block_slots=_ints(),
        block_indices=_ints(),
        block_ids=_ints(),
        copy_sources=_ints(0),
        copy_targets=_ints(2),
        slots=_ints(0, 1),
        starts=_ints(2, 1),
        num_tokens=_ints(1, 1),
        samples=np.array([True, True]),
    ),
)


def largest_steps(
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    num_logprobs: int,
    num_scored: int,
    num_drafts: int = 0,
    guess: bool = False,
) -> Iterator[StepPlan]:
    """Yield prefill steps of the most tokens, in one row and in all rows, and one that draws the
    most, with num_drafts guesses a row (guess: which the device makes).

    All rows sample, with every feature. All slots use block 0: what they read is undefined. Of the
    first row num_scored tokens are scored as those of a prompt, as far as it has them.
    """
    most = min(max_num_seqs, max_num_batched_tokens)
    params = SamplingParams(
        temperature=1.0,
        top_k=50,
        top_p=0.9,
        min_p=0.01,
        min_tokens=max_num_batched_tokens,
        logprobs=num_logprobs,
        max_tokens=None,
    )
    for step, num_rows in enumerate(sorted({1, most})):
        size = max(1, min(max_num_batched_tokens // num_rows, max_model_len - 1))
        plan = _step(step, num_rows, size, size < max_model_len, _admit(num_rows, params))
        scored = Scored(0, 1, min(size, num_scored + 1), num_logprobs)
        yield replace(plan, scored=(scored,)) if scored.end > 1 else plan
    if num_drafts:
        num_drawn = min(max_num_batched_tokens, most * (1 + num_drafts))
        yield from drawing_steps((num_drawn,), max_model_len, params, num_drafts, guess=guess)


def row_steps(
    max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int, most_split_rows: int
) -> Iterator[StepPlan]:
    """Yield steps of one or two tokens in each of 1, 2, 3, 4, 6, 8, .. rows, and most_split_rows.

    What attention takes beside the rest depends on the number of rows, and is not the most where
    these are, but where the most are split.
    """
    most = min(max_num_seqs, max_num_batched_tokens)
    params = SamplingParams(temperature=0.0, max_tokens=None)
    counts = {most, max(1, min(most, most_split_rows))}
    counts |= {n for i in range(most.bit_length()) for n in (2**i, 3 * 2**i) if n < most}
    for step, num_rows in enumerate(sorted(counts)):
        size = max(1, min(2, max_num_batched_tokens // num_rows, max_model_len - 1))
        yield _step(step, num_rows, size, size < max_model_len, _admit(num_rows, params))


def drawing_steps(
    counts: Iterable[int],
    max_model_len: int,
    params: SamplingParams = PLAIN,
    num_drafts: int = 0,
    *,
    guess: bool = False,
) -> Iterator[StepPlan]:
    """Yield decode steps that draw so many tokens, behind num_drafts guesses a row.

    guess: leave these to the device. num_drafts is at most max_model_len - 2, or 0.
    """
    size = 1 + num_drafts
    for step, count in enumerate(counts):
        num_rows = -(-count // size)
        plan = _step(step, num_rows, size, max_model_len > 1, _admit(num_rows, params))
        plan.num_tokens[-1] = count - size * (num_rows - 1)
        of_rows = plan.num_tokens - 1
        if of_rows.any():
            tokens = None if guess else np.zeros(int(of_rows.sum()), np.int32)
            plan = replace(plan, drafts=Drafts(of_rows, tokens))
        yield plan


def chunk_steps(max_num_seqs: int, num_tokens: int, max_model_len: int) -> Iterator[StepPlan]:
    """Yield steps of num_tokens, or as many as there can be, in few rows and in many."""
    for step, num_rows in enumerate((1, max(1, min(max_num_seqs, num_tokens // 2)))):
        size = max(1, min(num_tokens // num_rows, max_model_len - 1))
        yield _step(step, num_rows, size, size < max_model_len, _admit(num_rows, PLAIN))


def _admit(num_rows: int, params: SamplingParams) -> tuple[Admitted, ...]:
    """Put a token into each of the first slots."""
    return tuple(Admitted(slot, _ints(0), 1, params, slot, (0,)) for slot in range(num_rows))


def _step(
    step: int, num_rows: int, size: int, samples: bool, admitted: tuple[Admitted, ...]
) -> StepPlan:
    """Compute positions 0 .. size - 1 of the first slots, whatever tokens they hold."""
    return StepPlan(
        step=step,
        admitted=admitted,
        released=_ints(),
        block_slots=_ints(),
        block_indices=_ints(),
        block_ids=_ints(),
        copy_sources=_ints(),
        copy_targets=_ints(),
        slots=np.arange(num_rows, dtype=np.int32),
        starts=np.zeros(num_rows, dtype=np.int32),
        num_tokens=np.full(num_rows, size, dtype=np.int32),
        samples=np.full(num_rows, samples),
    )
