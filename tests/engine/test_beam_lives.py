"""Beam searches as they come and go: in a loop, aborted, left, recorded, amid steps that die."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from quire import LLM, AsyncEngine, BeamSearchParams, SamplingParams
from quire.engine.core import EngineCore
from quire.engine.replay import replay
from quire.engine.request import Request, RequestOutput, TokenEvents
from quire.engine.trace import read_log
from quire.fuzz.beam_runs import OPTIONS, PROMPTS, Oracle, assert_empty, found


async def collect(engine: AsyncEngine, prompt: Any, name: str, params: Any) -> list[RequestOutput]:
    return [output async for output in engine.beam_search(prompt, name, params)]


async def test_a_search_in_a_loop_gives_its_answers_at_the_end(ending: Path, llm: LLM) -> None:
    engine: AsyncEngine
    params = BeamSearchParams(beam_width=3, max_tokens=8)
    expected = llm.beam_search(PROMPTS, params)
    async with AsyncEngine(model=str(ending), **OPTIONS, num_kv_blocks=128) as engine:
        many = await asyncio.gather(
            *(collect(engine, prompt, f"r{i}", params) for i, prompt in enumerate(PROMPTS))
        )
        for i, ((output,), theirs) in enumerate(zip(many, expected, strict=True)):
            assert output.finished and output.request_id == f"r{i}"
            assert [one.index for one in output.outputs] == [0, 1, 2]
            for one, sequence in zip(output.outputs, theirs.sequences, strict=True):
                assert (*output.prompt_token_ids, *one.token_ids) == sequence.tokens
                assert one.cumulative_logprob == sequence.cum_logprob
                assert (one.logprobs, one.seed) == (sequence.logprobs, None)
            assert output.timeline is not None and output.timeline.events[-1].name == "ended"
        assert engine.num_unfinished == 0


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
@pytest.mark.parametrize("overlap", [1, 2])
def test_an_aborted_search_leaves_nothing(ending: Path, num_steps: int, overlap: int) -> None:
    """Whatever it was doing; what it had found so far is told."""
    options = OPTIONS | {"overlap": overlap, "num_kv_blocks": 128}
    params = BeamSearchParams(beam_width=4, max_tokens=50, ignore_eos=True)
    with LLM(str(ending), **options) as llm:
        front, core = llm._front, llm.core
        search = front.add(front.prepare(PROMPTS[0], params, "x"), 0.0)
        other = front.add(front.prepare(PROMPTS[1], params, "y"), 0.0)
        for _ in range(num_steps):
            core.launch()
            front.deliver(core.land(), 0.0)
        core.launch()
        assert front.abort("x", 0.0) == ["x"]
        assert front.abort("x", 0.0) == []
        reasons = {one.finish_reason for one in search.output().outputs}
        assert search.finished and reasons == {"abort"}
        while core.has_unfinished:
            core.launch()
            front.deliver(core.land(), 0.0)
        assert other.finished and other.output().outputs[0].finish_reason == "length"
        assert_empty(llm)


async def test_closing_the_stream_ends_a_search(ending: Path) -> None:
    engine: AsyncEngine
    params = BeamSearchParams(beam_width=4, max_tokens=200, ignore_eos=True)
    async with AsyncEngine(model=str(ending), **OPTIONS, num_kv_blocks=128) as engine:
        task = asyncio.create_task(collect(engine, PROMPTS[0], "x", params))
        scheduler = engine.front.core.scheduler
        while scheduler.stats.num_steps < 4:  # noqa: ASYNC110 - a step has no event
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.num_unfinished == 0
        (output,) = await collect(
            engine, PROMPTS[0], "x", BeamSearchParams(beam_width=2, max_tokens=3)
        )
        assert output.finished
        assert scheduler.num_free_blocks == scheduler.num_blocks


def test_a_step_that_dies_ends_the_searches_in_it(ending: Path) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=8, ignore_eos=True)
    with LLM(str(ending), **OPTIONS, num_kv_blocks=128) as llm:
        front, core = llm._front, llm.core
        search = front.add(front.prepare(PROMPTS[0], params, "x"), 0.0)
        for _ in range(3):
            core.launch()
            front.deliver(core.land(), 0.0)
        core.launch()
        front.deliver(die(core), 0.0)
        output = search.output()
        assert output.error == "the device died"
        assert [one.finish_reason for one in output.outputs] == ["error"] * 3
        assert_empty(llm)


class Added:
    """An observer that keeps what is added, and hears nothing else."""

    def __init__(self) -> None:
        self.requests: list[tuple[Request, str | None]] = []

    def added(self, request: Request, parent_id: str | None) -> None:
        self.requests.append((request, parent_id))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_what_a_request_says_of_itself_holds_for_all_its_sequences(ending: Path) -> None:
    """Its priority, its salt and its tenant; all but the first are forks of one before."""
    params = BeamSearchParams(beam_width=3, max_tokens=4, ignore_eos=True)
    with LLM(str(ending), **OPTIONS, num_kv_blocks=128) as llm:
        front, added = llm._front, Added()
        llm.core.watch(added)
        options: dict[str, Any] = {"priority": 3, "cache_salt": "s", "tenant": "t"}
        front.add(front.prepare(PROMPTS[0], params, "x", **options), 0.0)
        llm._run(0, use_tqdm=False)
        assert len(added.requests) == 1 + 3 * 3
        names = [request.request_id for request, _ in added.requests]
        assert len(set(names)) == len(names)
        for place, (request, parent) in enumerate(added.requests):
            assert (request.priority, request.cache_salt, request.tenant) == (3, "s", "t")
            assert (parent in names[:place]) if place else parent is None
        (first, second) = (
            llm.beam_search(PROMPTS[0], params, cache_salt=salt) for salt in ("s", "other")
        )
        assert first == second
        assert_empty(llm)


def test_a_recorded_search_replays_to_the_same_plans_and_bits(ending: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    options = OPTIONS | {"num_kv_blocks": 24, "max_model_len": 90, "overlap": 2}
    with LLM(str(ending), **options, record=str(path)) as llm:
        llm.beam_search(PROMPTS, BeamSearchParams(beam_width=4, max_tokens=6))
    verdict = replay(read_log(path), {})
    assert verdict.mismatch is None
    assert verdict.num_requests > len(PROMPTS)


def die(core: EngineCore) -> TokenEvents:
    """Let the oldest step die, and all behind it with it."""
    plan, future = core._in_flight.popleft()
    future.exception()
    core._drain()
    return core._fail(plan, "the device died")


@pytest.mark.parametrize("seed", range(6))
def test_searches_come_and_go_in_any_order(ending: Path, oracle: Oracle, seed: int) -> None:
    """Beside others, aborted at any time, in little memory, with steps that die."""
    dice = random.Random(seed)
    options = OPTIONS | {
        "block_size": dice.choice((1, 2, 4, 8)),
        "max_model_len": 64,
        "max_num_seqs": dice.choice((1, 2, 3, 8)),
        "max_num_batched_tokens": dice.choice((1, 7, 64)),
        "enable_prefix_caching": dice.random() < 0.5,
        "overlap": dice.choice((1, 2)),
        "scheduling_policy": dice.choice(("fcfs", "priority")),
    }
    options["num_kv_blocks"] = dice.choice((64, 80, 150)) // options["block_size"]
    sampling = SamplingParams(max_tokens=20, ignore_eos=True, detokenize=False)
    params = {width: BeamSearchParams(beam_width=width, max_tokens=5) for width in (1, 2, 3)}
    open_: dict[str, tuple[list[int], int, Any]] = {}
    num_whole = 0
    with LLM(str(ending), **options) as llm:
        front, core = llm._front, llm.core
        for step in range(10_000):
            begins = step < 150
            if not (begins or core.has_unfinished):
                break
            if begins and dice.random() < 0.1:
                front.add(front.prepare([dice.randrange(90)], sampling, f"s{step}"), 0.0)
            if begins and dice.random() < 0.15:
                prompt, width, name = dice.choice(PROMPTS), dice.choice((1, 2, 3)), f"r{step}"
                prepared = front.prepare(prompt, params[width], name, priority=dice.randrange(3))
                open_[name] = prompt, width, front.add(prepared, 0.0)
            if open_ and begins and dice.random() < 0.02:
                front.abort(dice.choice(list(open_)), 0.0)
            core.launch()
            if core.oldest is not None:
                dies = begins and dice.random() < 0.01
                front.deliver(die(core) if dies else core.land(), 0.0)
            llm.scheduler.check()
            for name in [name for name, (_, _, search) in open_.items() if search.finished]:
                prompt, width, search = open_.pop(name)
                output = search.output()
                reasons = {one.finish_reason for one in output.outputs}
                if not reasons & {"abort", "error"}:
                    num_whole += 1
                    told = found(llm._as_beams(output), prompt)
                    assert told == oracle.find(prompt, params[width])
        assert num_whole > 3 and not open_, (num_whole, open_)
        assert_empty(llm)
