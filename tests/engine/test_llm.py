"""LLM: order, errors before anything runs, interruptions that leave the engine empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quire import LLM, SamplingParams
from quire.engine.errors import ConfigError, ParamsError
from quire.fuzz.checkpoints import VOCAB_SIZE

OPTIONS: dict[str, Any] = {"skip_tokenizer_init": True, "num_threads": 1, "num_kv_blocks": 128}


@pytest.fixture
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(str(tiny), **OPTIONS) as made:
        yield made
        assert made.scheduler.num_free_blocks == made.scheduler.num_blocks
        made.scheduler.check()


def greedy(max_tokens: int = 4, **changes: Any) -> SamplingParams:
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, **changes
    )


def test_a_thousand_prompts_come_back_in_order(llm: LLM) -> None:
    prompts = [[index % 150 + 2, index // 150 + 2, 7] for index in range(1000)]
    outputs = llm.generate(prompts, greedy(2), use_tqdm=False)
    assert [list(output.prompt_token_ids) for output in outputs] == prompts
    assert all(output.finished and len(output.outputs[0].token_ids) == 2 for output in outputs)


def test_one_prompt_and_one_params_each(llm: LLM) -> None:
    one = llm.generate([5, 6, 7], greedy(3), use_tqdm=False)
    both = llm.generate([[5, 6, 7], [5, 6, 7]], [greedy(3), greedy(1)], use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in both] == [3, 1]
    assert one[0].outputs[0].token_ids == both[0].outputs[0].token_ids


@pytest.mark.parametrize(
    ("prompts", "params", "said"),
    [
        ([[1, 2], []], None, "at least one token"),
        ([[1, 2], [VOCAB_SIZE]], None, f"0 to {VOCAB_SIZE - 1}"),
        ([[1, 2], [-1]], None, f"0 to {VOCAB_SIZE - 1}"),
        ([[1] * 320], None, "at most 319"),
        (["text"], None, "no tokenizer"),
        ([[1], [2]], [SamplingParams()], "1 entries for 2 prompts"),
        ([[1, 2.5]], None, "token id"),
    ],
)
def test_bad_prompt_is_refused_before_anything_runs(
    llm: LLM, prompts: Any, params: Any, said: str
) -> None:
    with pytest.raises(ParamsError, match=said):
        llm.generate(prompts, params, use_tqdm=False)
    assert not llm.scheduler.has_unfinished
    assert llm.scheduler.stats.num_steps == 0


def test_interrupted_call_leaves_an_empty_engine(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle: the next call must find no request of the last one."""
    core = llm._front.core
    land, count = core.land, iter(range(100))

    def interrupt() -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return land()

    monkeypatch.setattr(core, "land", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1, 2, 3]] * 4, greedy(20), use_tqdm=False)
    monkeypatch.undo()
    assert llm.scheduler.num_running == llm.scheduler.num_waiting == 0
    assert len(llm.generate([[4, 5]], greedy(), use_tqdm=False)[0].outputs[0].token_ids) == 4


def test_seed_in_the_output_replays_it(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False)
    first = llm.generate([[9, 8]], params, use_tqdm=False)[0].outputs[0]
    again = llm.generate(
        [[9, 8]],
        SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False, seed=first.seed),
        use_tqdm=False,
    )[0].outputs[0]
    other = llm.generate([[9, 8]], params, use_tqdm=False)[0].outputs[0]
    assert again.token_ids == first.token_ids
    assert other.seed != first.seed


def test_min_tokens_holds_back_stops(llm: LLM) -> None:
    """A stop token that greedy decoding draws first is not drawn before min_tokens."""
    first = llm.generate([[3, 4]], greedy(1), use_tqdm=False)[0].outputs[0].token_ids[0]
    at_once = llm.generate([[3, 4]], greedy(8, stop_token_ids=[first]), use_tqdm=False)[0].outputs[
        0
    ]
    held = llm.generate([[3, 4]], greedy(8, stop_token_ids=[first], min_tokens=3), use_tqdm=False)[
        0
    ].outputs[0]
    assert (at_once.token_ids, at_once.finish_reason) == ((first,), "stop")
    assert at_once.stop_reason == first
    assert first not in held.token_ids[:3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block_size": 0}, "block_size is 0"),
        ({"overlap": 3}, "overlap is 3"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"max_model_len": 100000}, "at most 320"),
        ({"max_model_len": 300, "num_kv_blocks": 2}, "one sequence of max_model_len 300"),
        ({"linear_segments": 7}, "linear_segments is 7"),
    ],
)
def test_impossible_options_name_themselves(tiny: Path, options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LLM(str(tiny), **(OPTIONS | options))
