"""When a sequence ends and why."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire.engine.errors import ParamsError
from quire.engine.params import RepetitionDetectionParams, SamplingParams
from quire.engine.plan import StepResult
from quire.engine.request import Finished
from quire.engine.sched.scheduler import Scheduler
from quire.engine.sched.stopping import StopFilter, repeats
from quire.fuzz import oracles
from quire.fuzz.strategies import make_limits, make_request, repetition_rules

HIGH = 2**31 - 1
AGAIN = ("repetition", "repetition_detected")


def twice(longest: int) -> RepetitionDetectionParams:
    return RepetitionDetectionParams(max_pattern_size=longest, min_count=2)


def outcome(
    params: SamplingParams, drawn: list[int], *, max_model_len: int = 64
) -> tuple[int, Finished | None]:
    """Feed `drawn` to a request; gives the number of tokens delivered and its end."""
    scheduler = Scheduler(make_limits(max_model_len=max_model_len))
    scheduler.add(make_request("a", [1, 2, 3], params=params, eos=(5, 6)))
    for count, token in enumerate(drawn, 1):
        decision = scheduler.plan()
        assert decision is not None
        plan = scheduler.commit(decision)
        events = scheduler.retire(plan, StepResult(plan.step, np.array([token], np.int32)))
        scheduler.check()
        if events.finished:
            return count, events.finished[0]
    return len(drawn), None


@pytest.mark.parametrize(
    ("params", "drawn", "count", "reason", "stop_reason"),
    [
        (SamplingParams(max_tokens=9), [1, 6, 1], 2, "stop", None),
        (SamplingParams(max_tokens=9, stop_token_ids=[7]), [1, 7], 2, "stop", 7),
        (SamplingParams(max_tokens=9, stop_token_ids=[5]), [5], 1, "stop", None),
        (SamplingParams(max_tokens=9, stop_token_ids=[5], ignore_eos=True), [5], 1, "stop", 5),
        (SamplingParams(max_tokens=3, ignore_eos=True), [5, 6, 5], 3, "length", None),
        (SamplingParams(max_tokens=3), [1, 1, 5], 3, "stop", None),
        # The device draws one early only where there is nothing else.
        (SamplingParams(max_tokens=9, min_tokens=3), [1, 5, 5], 2, "stop", None),
        (SamplingParams(max_tokens=2, min_tokens=2), [1, 1], 2, "length", None),
        (SamplingParams(max_tokens=9), [70000, 5 + 65536, 1, 5], 4, "stop", None),
        (
            SamplingParams(max_tokens=9, stop_token_ids=[2**31 - 1]),
            [2**31 - 1],
            1,
            "stop",
            2**31 - 1,
        ),
        (SamplingParams(max_tokens=9, repetition_detection=twice(2)), [9, 1, 2, 1, 2], 5, *AGAIN),
        (SamplingParams(max_tokens=9, repetition_detection=twice(2)), [9, 9], 2, *AGAIN),
        # The prompt ends with 3: only the answer's own tokens count.
        (SamplingParams(max_tokens=9, repetition_detection=twice(1)), [3, 1, 1], 3, *AGAIN),
        (
            SamplingParams(max_tokens=5, repetition_detection=twice(1)),
            [1, 2] * 4,
            5,
            "length",
            None,
        ),
        (
            SamplingParams(max_tokens=9, min_tokens=5, repetition_detection=twice(1)),
            [1, 1, 2, 2, 1, 1],
            6,
            *AGAIN,
        ),
        # Other rules come first.
        (SamplingParams(max_tokens=9, repetition_detection=twice(1)), [5, 5], 1, "stop", None),
        (SamplingParams(max_tokens=2, repetition_detection=twice(1)), [1, 1], 2, "length", None),
        (
            SamplingParams(max_tokens=4, repetition_detection=RepetitionDetectionParams()),
            [1] * 4,
            4,
            "length",
            None,
        ),
    ],
)
def test_rules(
    params: SamplingParams, drawn: list[int], count: int, reason: str, stop_reason: int | str | None
) -> None:
    """Case 50."""
    number, finished = outcome(params, drawn)
    assert finished is not None
    assert (number, finished.reason, finished.stop_reason) == (count, reason, stop_reason)


def test_the_model_length_beats_min_tokens() -> None:
    """Case 50."""
    params = SamplingParams(max_tokens=None, min_tokens=50)
    number, finished = outcome(params, [1] * 9, max_model_len=8)
    assert finished is not None
    assert (number, finished.reason) == (5, "length")


def test_logits_that_are_not_finite_end_one_request_with_a_message() -> None:
    """Case 53's way out: an error ends the request, not the engine."""
    _, finished = outcome(SamplingParams(), [1, -1])
    assert finished is not None
    assert finished.reason == "error"
    assert finished.message


def test_the_filter_suspects_a_superset() -> None:
    marks = StopFilter()
    marks.add((7, 70_000))
    ids = np.array([7, 70_000, 70_000 - 65_536, 8, -1, 0], np.int32)
    assert marks.suspects(ids).tolist() == [True, True, True, False, True, False]


@given(rule=repetition_rules(), outputs=st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_repetitions_are_those_of_the_definition(
    rule: RepetitionDetectionParams, outputs: list[int]
) -> None:
    assert repeats(np.array(outputs, np.int32), rule) == oracles.repeats(outputs, rule)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_pattern_size": 2000, "min_count": 2}, "max_pattern_size is 2000: .* 0 to 1024"),
        ({"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 2}, "min_pattern_size is 3"),
        ({"max_pattern_size": 2, "min_count": 1}, "min_count is 1: it must be an integer from 2"),
        ({"max_pattern_size": 2.0, "min_count": 2}, "max_pattern_size is 2.0"),
    ],
)
def test_rules_of_repetition_are_checked(given: dict[str, int], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        RepetitionDetectionParams(**given)
    with pytest.raises(ParamsError, match="repetition_detection is 3: it must be a Rep.* or None"):
        SamplingParams(repetition_detection=3)  # type: ignore[arg-type]
