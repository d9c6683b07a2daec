"""Each request's story: what happened to it, in which step, and how long it waited for others."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from quire import LLM, RequestOutput, SamplingParams
from quire.engine import timeline
from quire.engine.request import Timeline

OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "num_threads": 1,
    "block_size": 4,
    "max_model_len": 40,
    "num_kv_blocks": 10,
}


def make_params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0)


def told(output: RequestOutput) -> Timeline:
    assert output.timeline is not None
    return output.timeline


def names(story: Timeline) -> list[str]:
    return [event.name for event in story.events]


def test_a_request_alone_is_computed_in_chunks_and_never_stalls(tiny: Path) -> None:
    with LLM(str(tiny), max_num_batched_tokens=8, **OPTIONS) as llm:
        prompt = list(range(1, 21))
        story = told(llm.generate([prompt], make_params(5), use_tqdm=False)[0])
        again = told(llm.generate([prompt], make_params(5), use_tqdm=False)[0])
    chunks = [event.num_tokens for event in story.events if event.name == "computed"]
    assert chunks == [8, 8, 4]
    assert names(story) == ["queued", "admitted", *["computed"] * 3, "first token", "ended"]
    assert (story.num_steps, story.num_stalled_steps) == (3 + 4, 0)
    times = [event.at_ms for event in story.events]
    assert times == sorted(times)
    assert times[0] >= 0
    assert story.events[-1].detail == "length"
    assert story.events[-1].num_tokens == 5
    admitted = next(event for event in again.events if event.name == "admitted")
    assert admitted.num_tokens == 19, "of the prefix cache"
    assert again.num_steps == 1 + 4


@pytest.mark.parametrize("overlap", [1, 2])
def test_stories_agree_with_the_scheduler(tiny: Path, overlap: int) -> None:
    """With preemptions: every step of every request is told once."""
    options = OPTIONS | {"overlap": overlap, "max_num_batched_tokens": 7}
    with LLM(str(tiny), **options) as llm:
        prompts = [[i + 1, *range(1, 3 * i + 3)] for i in range(6)]
        outputs = llm.generate(prompts, make_params(12), use_tqdm=False)
        stats = llm.scheduler.stats
    stories = [told(output) for output in outputs]
    assert sum(names(story).count("preempted") for story in stories) == stats.num_preemptions > 0
    for story, output in zip(stories, outputs, strict=True):
        admitted = [event.num_tokens for event in story.events if event.name == "admitted"]
        assert admitted[0] == output.num_cached_tokens
        assert len(admitted) == names(story).count("preempted") + 1
        assert story.num_stalled_steps >= 0
    assert any(story.num_stalled_steps for story in stories), "preempted ones waited"
    computed = sum(
        event.num_tokens or 0
        for story in stories
        for event in story.events
        if event.name == "computed"
    )
    decoded = sum(story.num_steps - names(story).count("computed") for story in stories)
    assert computed + decoded == stats.num_scheduled_tokens


def test_a_request_that_waits_for_others_says_so(tiny: Path) -> None:
    """A budget of 2 tokens: two decode in every step, and a prompt of three gets nothing."""
    with LLM(str(tiny), max_num_batched_tokens=2, **OPTIONS) as llm:
        outputs = llm.generate([[1], [2, 3], [4]], make_params(6), use_tqdm=False)
    assert [told(output).num_stalled_steps for output in outputs] == [0, 0, 0]
    waits = [told(output).events[1].step for output in outputs]
    assert waits == sorted(waits, key=lambda step: step or 0)
    assert (waits[2] or 0) > 4, "it was not admitted before one of the others had ended"


def test_a_story_is_bounded(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr(timeline, "MAX_EVENTS", 4)
    with LLM(str(tiny), max_num_batched_tokens=2, **OPTIONS) as llm:
        story = told(llm.generate([list(range(1, 21))], make_params(2), use_tqdm=False)[0])
    assert names(story) == ["queued", "admitted", "computed", "computed", "ended"]
    assert story.num_dropped_events == 8 + 1


def test_ended_stories_are_kept_for_a_while() -> None:
    ticks = itertools.count()
    kept = timeline.Timelines(lambda: float(next(ticks)))
    from quire.fuzz.strategies import make_request

    for index in range(timeline.NUM_ENDED + 3):
        kept.added(make_request(f"r{index}", [1]), None)
        kept.end(f"r{index}", "abort", 0)
    assert len(kept.ended) == timeline.NUM_ENDED
    assert kept.ended[-1].state == "ended"
    assert kept.living == []
