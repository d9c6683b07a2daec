"""Speculative decoding as users turn it on: the same answers, and numbers that tell of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from quire import LLM, AsyncEngine, SamplingParams
from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.fuzz.checkpoints import make_checkpoint
from quire.fuzz.heads import make_guessing

COSTS: dict[str, float] = {}
"""Those of a quiet machine: what is measured depends on what runs beside it."""
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "costs": COSTS}
SUFFIX = {"method": "suffix", "num_speculative_tokens": 4, "costs": COSTS}
PROMPT = [5, 6, 7, 8, 9, 10] * 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("tiny"))


def options(tiny: Path, **others: Any) -> dict[str, Any]:
    return {"model": str(tiny), "skip_tokenizer_init": True, "num_threads": 1, **others}


def repeating(**others: Any) -> SamplingParams:
    """Draws few tokens, so that the answer repeats itself and its prompt."""
    wanted: dict[str, Any] = {
        "allowed_token_ids": [5, 6, 7, 8, 9, 10],
        "temperature": 0.3,
        "seed": 4,
    }
    return SamplingParams(max_tokens=40, ignore_eos=True, detokenize=False, **wanted, **others)


def figures(engine: AsyncEngine) -> dict[str, float]:
    """What the metrics tell of guesses."""
    pairs = [line.rsplit(" ", 1) for line in engine.metrics.render().decode().splitlines()]
    found = {name.split("{")[0]: value for name, value in pairs}
    names = ("drafts", "draft_tokens", "accepted_tokens")
    return {name: float(found[f"quire:spec_decode_num_{name}_total"]) for name in names}


@pytest.mark.parametrize("wanted", [NGRAM, SUFFIX], ids=["ngram", "suffix"])
@pytest.mark.parametrize("overlap", [1, 2])
def test_lookup_gives_the_same_answers_in_fewer_steps(
    tiny: Path, overlap: int, wanted: dict[str, Any]
) -> None:
    params, found = [repeating(logprobs=2), repeating(n=3), repeating(stop_token_ids=[8])], []
    num_steps = []
    for config in (None, wanted):
        with LLM(**options(tiny, speculative_config=config, overlap=overlap)) as llm:
            outputs = llm.generate([PROMPT] * len(params), params, use_tqdm=False)
            found.append([one.outputs for one in outputs])
            num_steps.append(llm.scheduler.stats.num_steps)
            right = llm.scheduler.stats.num_accepted_tokens
    assert found[0] == found[1]
    assert right > 20
    # With two steps in flight, who guesses is in every other one: smaller steps, but more of them.
    assert overlap == 2 or num_steps[1] < num_steps[0]


async def test_streams_and_metrics_tell_of_it(tiny: Path) -> None:
    async with AsyncEngine(**options(tiny, speculative_config=NGRAM)) as engine:
        outputs = [one async for one in engine.generate(PROMPT, repeating())]
        sizes = [len(one.outputs[0].token_ids) for one in outputs]
        assert sizes[-1] == 40 and sizes == sorted(sizes) and len(sizes) < 40
        drafts, tokens, accepted = figures(engine).values()
    assert 0 < drafts <= tokens and 0 < accepted <= tokens


def test_a_timeline_counts_steps_not_guesses(tiny: Path) -> None:
    with LLM(**options(tiny, speculative_config=NGRAM)) as llm:
        (output,) = llm.generate([PROMPT], repeating(), use_tqdm=False)
        stats = llm.scheduler.stats
    assert output.timeline is not None and stats.num_accepted_tokens > 5
    assert output.timeline.num_steps == stats.num_steps < 40
    assert output.timeline.num_stalled_steps == 0
    assert output.timeline.num_guesses == stats.num_draft_tokens
    assert output.timeline.num_right_guesses == stats.num_accepted_tokens
    assert stats.num_accepted_tokens == sum(stats.accepted_at)
    assert list(stats.accepted_at) == sorted(stats.accepted_at, reverse=True)
    computed = [event for event in output.timeline.events if event.name == "computed"]
    assert [event.num_tokens for event in computed] == [len(PROMPT)], "of the prompt alone"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "magic"}, "method"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "must be from 1 to 16"),
        ({"suffix_decoding_max_tree_depth": 1}, "depth is 1: it must be from 2 to 64"),
        ({"suffix_decoding_max_cached_requests": -1}, "requests is -1: it must be from 0"),
        ({"suffix_decoding_max_spec_factor": float("nan")}, "factor is nan"),
        ({"suffix_decoding_min_token_prob": 1.5}, "prob is 1.5: it must be from 0 to 1"),
        ({"suffix_decoding_min_token_prob": "x"}, "Expected `float`"),
        ({"prompt_lookup_min": 5, "prompt_lookup_max": 2}, "prompt_lookup_max is 2"),
        ({"size": "x"}, "unknown field"),
        ({"method": "ngram", "model": "x"}, "ngram takes no model"),
        ({"method": "mtp", "model": "x"}, "mtp takes no model"),
        ({"method": "eagle3"}, "eagle3 needs model"),
        ({"method": "draft_model"}, "draft_model needs model"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match="speculative_config") as caught:
        EngineConfig(speculative_config=given)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["ngram", "suffix", "draft_model", "eagle3", "mimo"])
@pytest.mark.parametrize("overlap", [1, 2])
def test_a_run_with_guesses_is_replayed(kind: Any, overlap: int, tmp_path: Path) -> None:
    """Without what guessed on the device: its guesses are in the log."""
    from quire.engine.replay import replay, replay_requests
    from quire.engine.trace import read_log

    tiny = make_checkpoint("qwen3", tmp_path / "tiny")
    config = {"ngram": NGRAM, "suffix": SUFFIX}.get(kind) or make_guessing(kind, tiny)
    path = tmp_path / "log"
    given = options(tiny, speculative_config=config, record=str(path), overlap=overlap)
    with LLM(**given) as llm:
        for _ in range(2):
            llm.generate([PROMPT, PROMPT[:7]], [repeating(), repeating(n=2)], use_tqdm=False)
        assert llm.scheduler.stats.num_accepted_tokens > 0
    log = read_log(path)
    if "model" in config:
        shutil.rmtree(str(config["model"]))
    for verdict in (replay(log, {}), replay_requests(log, {"speculative_config": None})):
        assert verdict.mismatch is None and verdict.num_tokens >= 120


def test_an_answer_given_before_is_guessed_whole(tiny: Path) -> None:
    """Of one asked again hardly a token is computed alone, however unlike its prompt it is."""
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=33, ignore_eos=True)
    num_steps = []
    with LLM(**options(tiny, speculative_config={**SUFFIX, "num_speculative_tokens": 8})) as llm:
        outputs = []
        for _ in range(2):
            before = llm.scheduler.stats.num_steps
            outputs += llm.generate([list(range(90))], params, use_tqdm=False)
            num_steps.append(llm.scheduler.stats.num_steps - before)
    assert outputs[0].outputs[0].token_ids == outputs[1].outputs[0].token_ids
    assert num_steps[0] > 28 and num_steps[1] < 12, num_steps


@pytest.mark.parametrize("others", [{"cache_salt": "b"}, {"tenant": "b"}])
async def test_an_answer_is_guessed_for_nobody_else(tiny: Path, others: dict[str, Any]) -> None:
    """The third asks as the first did, and what was said to the second is not among its guesses."""
    params = SamplingParams(
        temperature=1.0, seed=3, max_tokens=20, ignore_eos=True, detokenize=False
    )
    async with AsyncEngine(**options(tiny, speculative_config=SUFFIX)) as engine:
        right = []
        for given in ({}, others, {}):
            before = figures(engine)["accepted_tokens"]
            async for _ in engine.generate(list(range(90)), params, **given):
                pass
            right.append(figures(engine)["accepted_tokens"] - before)
    assert right[0] == right[1] < right[2] - 8, right
