"""n answers of one prompt: each as if alone, from one prefill and one copy of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quire import LLM, AsyncEngine, RequestOutputKind, SamplingParams
from quire.engine.request import RequestOutput

OPTIONS: dict[str, Any] = {"skip_tokenizer_init": True, "num_threads": 1, "block_size": 4}
DELTA, FINAL = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY
PROMPT = [*range(5, 44)]
"""39 tokens: nine full blocks and a part of a tenth."""


def sampled(**changes: Any) -> SamplingParams:
    given = {"temperature": 1.0, "seed": 11, "max_tokens": 7, "ignore_eos": True, "logprobs": 2}
    return SamplingParams(**(given | changes), detokenize=False)


def answers(output: RequestOutput) -> list[tuple[Any, ...]]:
    assert [one.index for one in output.outputs] == list(range(len(output.outputs)))
    return [(one.token_ids, one.logprobs, one.seed, one.finish_reason) for one in output.outputs]


@pytest.mark.parametrize(
    "ways",
    [
        {},
        {"overlap": 2},
        {"max_num_batched_tokens": 5},
        {"max_num_seqs": 2},
        {"num_kv_blocks": 24},
        {"enable_prefix_caching": False},
        {"backend": "reference"},
    ],
    ids=str,
)
def test_each_answer_is_that_of_its_seed_alone(tiny: Path, ways: dict[str, Any]) -> None:
    """In a batch with others, however blocks and steps are cut; penalties count what is its own."""
    params = {"frequency_penalty": 1.0, "repetition_penalty": 1.2}
    with LLM(str(tiny), **(OPTIONS | {"num_kv_blocks": 128} | ways)) as llm:
        alone = [
            answers(llm.generate(PROMPT, sampled(seed=11 + i, **params), use_tqdm=False)[0])[0]
            for i in range(5)
        ]
        llm.reset_prefix_cache()
        many = [PROMPT, [7, 8, 9], PROMPT[:20]]
        outputs = llm.generate(many, sampled(n=5, **params), use_tqdm=False)
        assert answers(outputs[0]) == alone
        assert all(output.finished and len(output.outputs) == 5 for output in outputs)
        llm.scheduler.check()
        assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks


@pytest.mark.parametrize("ways", [{}, {"max_num_batched_tokens": 5, "overlap": 2}], ids=str)
def test_the_first_answer_tells_of_the_prompt_for_all(tiny: Path, ways: dict[str, Any]) -> None:
    """And its blocks are shared as ever."""
    with LLM(str(tiny), num_kv_blocks=128, **(OPTIONS | ways)) as llm:
        (alone,) = llm.generate(PROMPT, sampled(prompt_logprobs=3), use_tqdm=False)
        assert alone.prompt_logprobs is not None
        llm.reset_prefix_cache()
        before = llm.scheduler.stats.num_scheduled_tokens
        (output,) = llm.generate(PROMPT, sampled(prompt_logprobs=3, n=3), use_tqdm=False)
        assert output.prompt_logprobs == alone.prompt_logprobs
        assert answers(output)[0] == answers(alone)[0]
        computed = llm.scheduler.stats.num_scheduled_tokens - before
        # The prompt once, its last token for each other one, and what they draw but the last.
        assert computed == len(PROMPT) + 2 + 3 * 6


@pytest.mark.parametrize("caching", [True, False])
def test_eight_answers_take_the_prompts_blocks_once(tiny: Path, caching: bool) -> None:
    """One prefill; a child computes the last token of the prompt again, for its own draw."""
    prompt = [5 + i % 90 for i in range(111)]
    options = OPTIONS | {"num_kv_blocks": 128, "enable_prefix_caching": caching}
    with LLM(str(tiny), **options) as llm:
        front, core, scheduler = llm._front, llm.core, llm.scheduler
        prepared = front.prepare(prompt, sampled(n=8, max_tokens=1 + 4), "x")
        front.add(prepared, 0.0)
        most = 0
        while core.has_unfinished:
            core.launch()
            most = max(most, scheduler.num_blocks - scheduler.num_free_blocks)
            front.deliver(core.land(), 0.0)
        computed = scheduler.stats.num_scheduled_tokens
        assert computed == 111 + 7 + 8 * 4
        # 27 full blocks together; 3 and 4 more tokens in blocks of each one's own.
        assert most == 27 + 8 * 2, most
        assert scheduler.stats.num_copies == 7


async def test_a_stream_tells_which_answer_grows(tiny: Path) -> None:
    engine: AsyncEngine
    async with AsyncEngine(model=str(tiny), **OPTIONS, num_kv_blocks=128) as engine:
        (whole,) = [
            output async for output in engine.generate(PROMPT, sampled(n=3, output_kind=FINAL))
        ]
        grown: list[list[int]] = [[], [], []]
        ended: list[int] = []
        async for output in engine.generate(PROMPT, sampled(n=3, output_kind=DELTA)):
            assert output.outputs, "an output without news"
            for one in output.outputs:
                assert one.index not in ended, "news after the end"
                grown[one.index] += one.token_ids
                if one.finish_reason is not None:
                    ended.append(one.index)
        assert [list(one.token_ids) for one in whole.outputs] == grown
        assert sorted(ended) == [0, 1, 2]


@pytest.mark.parametrize("after", [0, 1, 4])
async def test_closing_a_stream_ends_all_answers(tiny: Path, after: int) -> None:
    """Also those whose turn to begin has not come."""
    engine: AsyncEngine
    async with AsyncEngine(
        model=str(tiny), **OPTIONS, num_kv_blocks=128, max_num_batched_tokens=4
    ) as engine:
        stream = engine.generate(PROMPT, sampled(n=4, max_tokens=50), "x")
        for _ in range(after):
            await anext(stream)
        if not after:
            first = engine.front.add(await engine.prepare(PROMPT, sampled(n=4), "y"), 0.0)
            assert engine.front.abort("y", 0.0) == ["y"]
            assert [one.finish_reason for one in first.output().outputs] == ["abort"] * 4
        await stream.aclose()
        assert engine.num_unfinished == 0
        (output,) = [o async for o in engine.generate(PROMPT, sampled(n=2, output_kind=FINAL))]
        assert output.finished
        scheduler = engine.front.core.scheduler
        assert scheduler.num_free_blocks == scheduler.num_blocks


async def test_ids_of_answers_are_in_use(tiny: Path) -> None:
    engine: AsyncEngine
    async with AsyncEngine(model=str(tiny), **OPTIONS, num_kv_blocks=128) as engine:
        front = engine.front
        front.add(await engine.prepare([1, 2], sampled(), "x#1"), 0.0)
        with pytest.raises(ValueError, match="'x#1' is in use"):
            front.add(await engine.prepare([1, 2], sampled(n=2), "x"), 0.0)
        assert front.abort("x#1", 0.0) == ["x#1"] and front.num_open == 0


async def test_a_branch_continues_what_a_request_has(tiny: Path) -> None:
    """A search over trees: as if its tokens had been the prompt, from the blocks of the other."""
    engine: AsyncEngine
    async with AsyncEngine(
        model=str(tiny), **OPTIONS, num_kv_blocks=128, enable_prefix_caching=False
    ) as engine:
        stream = engine.generate(PROMPT, sampled(max_tokens=40), "root")
        async for output in stream:
            if len(output.outputs[0].token_ids) >= 6:
                break
        known = [*PROMPT, *output.outputs[0].token_ids]
        stats = engine.front.core.scheduler.stats
        branch = engine.fork("root", sampled(seed=3, output_kind=FINAL), "branch")
        assert branch.request.prompt_token_ids.tolist() == known
        (forked,) = [o async for o in engine.generate(branch)]
        now = engine.front.core.scheduler.stats
        assert now.num_scheduled_tokens - stats.num_scheduled_tokens < len(known)
        await stream.aclose()
        (alone,) = [o async for o in engine.generate(known, sampled(seed=3, output_kind=FINAL))]
        assert answers(forked) == answers(alone)
        with pytest.raises(ValueError, match="'root', is not open"):
            engine.fork("root")
        (late,) = [o async for o in engine.generate(branch)]
        assert answers(late) == answers(alone)
