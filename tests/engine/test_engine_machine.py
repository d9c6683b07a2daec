"""The whole engine under random orders of calls, against requests answered alone. Short, fixed."""

from __future__ import annotations

from collections import Counter

import pytest
from quire.engine.params import SamplingParams
from quire.fuzz.engine_machine import EngineMachine, ModelKey
from quire.fuzz.held_executor import FAULTS, Fault
from quire.fuzz.run import cover
from quire.fuzz.strategies import make_limits


def test_engine_keeps_the_law_under_any_order_of_calls() -> None:
    """Tokens and log probabilities, bit for bit, whatever happens to others and between steps."""
    wanted = (
        *("preemptions", "copies", "forks", "evictions", "aborts", "hit tokens"),
        *("guesses", "right guesses"),
    )
    cover(EngineMachine, wanted, num_examples=20, num_steps=25)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("overlap", [1, 2])
def test_a_step_that_dies_takes_only_those_in_flight_with_it(fault: Fault, overlap: int) -> None:
    """With steps behind it, and with requests that run but have no tokens in any of them."""
    before = Counter(EngineMachine.totals)
    machine = EngineMachine()
    machine.start(
        limits=make_limits(budget=2, overlap=overlap, max_model_len=40),
        key=ModelKey("qwen3", "bfloat16", "kernels"),
        decoding="padded",
    )
    params = SamplingParams(max_tokens=8, temperature=0.7, logprobs=1)
    for prompt in ([1, 2, 3], [1, 2, 3, 4, 5, 6, 7, 1], [4], [2, 2]):
        request = machine.make(prompt, params, eos=(), priority=0, salt=None)
        machine.core.add(request)
        machine.enter(request)
    machine.step(5, True)
    machine.fail(fault, True)
    machine.teardown()
    counts = EngineMachine.totals - before
    assert counts[f"failures {fault} the device"] >= 1, counts
    assert counts["requests that outlive a failure"] >= 1, counts
    assert (counts["steps behind a failed one"] >= 1) == (overlap == 2), counts
