"""Logits processors: the last word on a row's logits, from Python, and alone when they fail."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from quire import LLM, AsyncEngine, RequestOutput, SamplingParams
from quire.api.replaying import replay_file
from quire.engine import trace
from quire.engine.errors import ParamsError
from quire.engine.replay import replay_requests
from quire.fuzz.engine_runs import go_on, leave_prompt
from torch import Tensor

OPTIONS: dict[str, Any] = {"skip_tokenizer_init": True, "num_threads": 1, "block_size": 4}
PROMPTS = [[*range(start, start + 5 + 6 * start)] for start in range(1, 6)]
WAYS: dict[str, dict[str, Any]] = {
    "kernels": {},
    "reference": {"backend": "reference"},
    "overlap 2": {"overlap": 2},
    "reference, overlap 2": {"backend": "reference", "overlap": 2},
    "small chunks": {"max_num_batched_tokens": 5, "overlap": 2},
    "few blocks": {"num_kv_blocks": 20, "max_model_len": 64, "overlap": 2},
}


def sampled(*processors: Any, **changes: Any) -> SamplingParams:
    given = {"temperature": 1.0, "seed": 11, "max_tokens": 9, "ignore_eos": True, "logprobs": 2}
    return SamplingParams(
        **(given | changes), detokenize=False, logits_processors=processors or None
    )


def answers(outputs: list[RequestOutput]) -> list[Any]:
    return [[(one.token_ids, one.logprobs) for one in output.outputs] for output in outputs]


def only(token: int) -> Any:
    """Make a processor that leaves one token."""

    def processor(outputs: list[int], logits: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).index_fill(0, torch.tensor(token), 1.0)

    return processor


class FailsAt:
    """Raises at one token of the answer; counts its calls."""

    def __init__(self, index: int) -> None:
        self.index, self.num_calls = index, 0

    def __call__(self, prompt: list[int], outputs: list[int], logits: Tensor) -> Tensor:
        self.num_calls += 1
        logits += 1.0
        if len(outputs) == self.index:
            raise KeyError("planted")
        return logits


@pytest.fixture(scope="module")
def expected(tiny: Path) -> list[Any]:
    """Each request in an engine of its own."""
    found = []
    for prompt, params in zip(PROMPTS, asked(), strict=True):
        with LLM(str(tiny), **OPTIONS, num_kv_blocks=64) as llm:
            found += answers(llm.generate([prompt], params, use_tqdm=False))
    return found


def asked() -> list[SamplingParams]:
    return [
        sampled(go_on),
        sampled(),
        sampled(go_on, leave_prompt, n=3),
        sampled(leave_prompt, temperature=0.0, frequency_penalty=1.5),
        sampled(n=2),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_of_each_request_alone(way: str, tiny: Path, expected: list[Any]) -> None:
    with LLM(str(tiny), **(OPTIONS | {"num_kv_blocks": 128} | WAYS[way])) as llm:
        assert answers(llm.generate(PROMPTS, asked(), use_tqdm=False)) == expected
        assert answers(llm.generate(PROMPTS, asked(), use_tqdm=False)) == expected
        if way == "few blocks":
            assert llm.scheduler.stats.num_preemptions > 0


@pytest.mark.parametrize("index", [0, 4])
@pytest.mark.parametrize("way", WAYS)
def test_a_processor_that_raises_ends_its_request_alone(
    way: str, index: int, tiny: Path, expected: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    params = asked()
    params.insert(2, sampled(go_on, bad := FailsAt(index)))
    prompts = [*PROMPTS[:2], [9, 8, 7], *PROMPTS[2:]]
    with (
        caplog.at_level(logging.CRITICAL, "quire"),
        LLM(str(tiny), **(OPTIONS | {"num_kv_blocks": 128} | WAYS[way])) as llm,
    ):
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks
        failed = outputs.pop(2)
        assert answers(outputs) == expected
        # Whoever gets the slot next is not to blame.
        again = llm.generate(PROMPTS, asked(), use_tqdm=False)
        assert answers(again) == expected
    assert failed.outputs[0].finish_reason == "error"
    assert failed.error == "Its logits processors failed: KeyError: 'planted'"
    assert len(failed.outputs[0].token_ids) == index
    assert bad.num_calls == index + 1, "not asked again for a step in flight"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "TypeError: it returned NoneType: it must be a tensor of "),
        (torch.zeros(3), r"TypeError: it returned \(3,\): it must be a tensor of"),
        (torch.nan, "ValueError: it returned NaN or infinity"),
        (torch.inf, "ValueError: it returned NaN or infinity"),
        (-torch.inf, "ValueError: it returned NaN or infinity, or left no token"),
    ],
)
def test_what_is_not_logits_is_refused(
    given: Any, message: str, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def processor(outputs: list[int], logits: Tensor) -> Any:
        return logits.fill_(given) if isinstance(given, float) else given

    with caplog.at_level(logging.CRITICAL, "quire"), LLM(str(tiny), **OPTIONS) as llm:
        bad, good = llm.generate([[1, 2]] * 2, [sampled(processor), sampled()], use_tqdm=False)
    assert good.error is None and bad.outputs[0].finish_reason == "error"
    assert bad.error is not None and re.search(message, bad.error), bad.error


def test_processors_see_the_tokens_and_each_others_logits(tiny: Path) -> None:
    """With steps in flight the newest token too; what they do to their lists hurts nobody."""
    seen: list[tuple[list[int], list[int]]] = []

    def note(prompt: list[int], outputs: list[int], logits: Tensor) -> Tensor:
        seen.append((list(prompt), list(outputs)))
        prompt.clear()
        outputs.append(3)
        assert logits.dtype == torch.float32 and logits.dim() == 1
        return logits.bfloat16()

    def check(outputs: list[int], logits: Tensor) -> Tensor:
        assert outputs == seen[-1][1]
        assert logits.isfinite().sum() == 1
        return logits

    with LLM(str(tiny), **OPTIONS, overlap=2) as llm:
        params = sampled(only(6), note, check, max_tokens=4)
        (output,) = llm.generate([[5, 6, 7]], params, use_tqdm=False)
    assert output.error is None
    assert output.outputs[0].token_ids == (6, 6, 6, 6)
    assert seen[:4] == [([5, 6, 7], [6] * count) for count in range(4)]
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None and logprobs[0][6].logprob < 0, "of the raw logits"


def test_the_last_word_is_that_of_min_tokens(tiny: Path) -> None:
    params = sampled(only(6), min_tokens=2, stop_token_ids=[6])
    with LLM(str(tiny), **OPTIONS) as llm:
        (output,) = llm.generate([[5]], params, use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"


async def test_forks_ask_the_same_processors(tiny: Path) -> None:
    engine: AsyncEngine
    async with AsyncEngine(model=str(tiny), **OPTIONS, num_kv_blocks=128) as engine:
        stream = engine.generate([5, 6, 7], sampled(go_on, max_tokens=40), "root")
        async for output in stream:
            if len(output.outputs[0].token_ids) >= 6:
                break
        branch = engine.fork("root", sampled(go_on, seed=3), "branch")
        known = branch.request.prompt_token_ids.tolist()
        forked = [one async for one in engine.generate(branch)][-1]
        await stream.aclose()
        alone = [one async for one in engine.generate(known, sampled(go_on, seed=3))][-1]
        assert answers([forked]) == answers([alone])


@pytest.mark.parametrize("given", [5, [5], [lambda: 0], [lambda a, b, c, d: 0], [go_on] * 65])
def test_processors_are_checked(given: Any) -> None:
    with pytest.raises(ParamsError, match="logits_processors is .* at most 64 callables of"):
        SamplingParams(logits_processors=given)
    assert SamplingParams(logits_processors=[]) == SamplingParams()


def test_a_log_tells_what_cannot_be_run_again(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    options = OPTIONS | {"num_kv_blocks": 64, "record": str(path)}
    with LLM(str(tiny), **options) as llm:
        llm.generate(PROMPTS[:3], [sampled(), sampled(go_on), sampled()], use_tqdm=False)
    log = trace.read_log(path)
    assert log.is_whole and not log.is_foldable
    assert log.unrecorded == ["request-1"]
    with pytest.raises(ParamsError, match="'request-1' cannot be run again: .* Python"):
        replay_requests(log, {}, "request-1")
    assert replay_file(str(path), {}) == 0
    told = capsys.readouterr().out
    assert "Logits processors are gone" in told and "2 requests, 18 tokens compared" in told
    assert "left out (request-1)" in told and "All are equal" in told
    assert replay_file(str(path), {}, "request-2") == 0
