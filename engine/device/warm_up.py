"""Two small steps that touch every operation: what ModelRunner.warm_up executes.

A prefill of two sequences (of two and one tokens) with the parameters that choose different code,
then a decode step of both with a copied block. Constants only.
"""

from __future__ import annotations

import numpy as np

from ..params import SamplingParams
from ..plan import Admitted, StepPlan
from ..request import IntArray

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
