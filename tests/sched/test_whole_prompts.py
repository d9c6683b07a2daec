"""Prompts that must be computed in one step: whatever else runs, none is cut, and each gets on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from quire.engine.params import SamplingParams
from quire.fuzz.oracles import Rig
from quire.fuzz.strategies import make_limits, make_request


@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=12),
    spare=st.integers(0, 30),
    overlap=st.integers(1, 2),
    more_blocks=st.integers(0, 12),
)
def test_no_prompt_is_cut(lengths: list[int], spare: int, overlap: int, more_blocks: int) -> None:
    limits = make_limits(
        budget=23 + spare, overlap=overlap, max_model_len=24, num_blocks=6 + more_blocks
    )
    rig = Rig(replace(limits, whole_prompts=True, enable_prefix_caching=False))
    params = SamplingParams(max_tokens=1)
    for index, length in enumerate(lengths):
        rig.add(make_request(f"r{index}", range(length), params=params, seed=index))
    order: list[int] = []
    while rig.scheduler.has_unfinished:
        plan = rig.launch() if len(rig.flying) < overlap else None
        if plan is None:
            rig.land()
            continue
        assert plan.samples.all() and not plan.starts.any()
        order += plan.num_tokens.tolist()
    assert order == lengths
