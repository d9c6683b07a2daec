"""The law on a GPU in what the engine does beside plain requests: guesses, other families, vectors,
beams.

A GPU has bits of its own, so one request at a time, without graphs, is the oracle. All of it needs
a GPU; the same runs on the CPU's kernels are in tests/test_law.py, tests/test_law_of_vectors.py,
and with CUDA pretended in tests/device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quire import LLM, BeamSearchParams, PoolingParams
from quire.fuzz.checkpoints import KINDS, VOCAB_SIZE, make_checkpoint
from quire.fuzz.engine_runs import Answer, Asked, make_requests, run
from quire.fuzz.heads import HEAD_KINDS, HeadKind, make_guessing
from quire.fuzz.pooled_checkpoints import make_pooled

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

COMMON: dict[str, Any] = {"device": DEVICE, "num_kv_blocks": 64, "max_model_len": 240}
ALONE: dict[str, Any] = {"alone": True, "enforce_eager": True, "overlap": 1}
WAYS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "one step in flight": {"overlap": 1},
    "eager": {"enforce_eager": True},
    "few blocks": {"block_size": 4, "num_kv_blocks": 60},
    "one slot": {"max_num_seqs": 1},
}
RAW = PoolingParams(normalize=False, use_activation=False)


def asked_of(seed: int) -> list[Asked]:
    """Greedy and sampled, with grammars, penalties, thoughts, processors, told prompts."""
    return make_requests(VOCAB_SIZE, seed=seed, max_tokens=12, sampled=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3."""
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def base(request: pytest.FixtureRequest, checkpoint: Path) -> tuple[Any, list[Answer]]:
    """A dtype, and what requests are answered one at a time."""
    dtype = request.param
    return dtype, run(checkpoint, asked_of(1), dtype=dtype, **COMMON, **ALONE).answers


@pytest.mark.parametrize("way", WAYS)
def test_guesses_change_no_bit(way: str, checkpoint: Path, base: tuple[Any, list[Answer]]) -> None:
    """Right ones and wrong ones of the host."""
    dtype, wanted = base
    options = COMMON | WAYS[way] | {"dtype": dtype}
    options["speculative_config"] = {"num_speculative_tokens": 4, "costs": {}}
    outcome = run(checkpoint, asked_of(1), told=wanted, **options)
    assert outcome.answers == wanted
    assert outcome.stats.num_draft_tokens > outcome.stats.num_accepted_tokens > 0


def test_chunks_by_graphs_change_no_bit(checkpoint: Path, base: tuple[Any, list[Answer]]) -> None:
    """A size's first step runs as it is, the second is captured: later ones are replayed."""
    dtype, wanted = base
    options = COMMON | {"dtype": dtype, "alone": True, "enable_prefix_caching": False}
    assert run(checkpoint, asked_of(1) * 4, **options).answers == wanted * 4


@pytest.mark.parametrize("method", ["ngram", "suffix"])
def test_guesses_with_measured_costs_change_no_bit(
    method: str, checkpoint: Path, base: tuple[Any, list[Answer]]
) -> None:
    """As an engine starts: it times steps with guesses first."""
    dtype, wanted = base
    options = COMMON | {"dtype": dtype, "speculative_config": {"method": method}}
    assert run(checkpoint, asked_of(1) * 2, **options).answers == wanted * 2


@pytest.mark.parametrize("way", ["graphs", "few blocks"])
@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_guesses_of_the_device_change_no_bit(kind: HeadKind, way: str, tmp_path: Path) -> None:
    path = make_checkpoint("qwen3", tmp_path)
    config = make_guessing(kind, path)
    asked = asked_of(1)
    wanted = run(path, asked, dtype="bfloat16", **COMMON, **ALONE).answers
    options = COMMON | WAYS[way]
    outcome = run(path, asked, dtype="bfloat16", speculative_config=config, **options)
    assert outcome.answers == wanted
    assert outcome.stats.num_draft_tokens > outcome.stats.num_accepted_tokens > 0


@pytest.mark.parametrize("family", sorted(set(KINDS) - {"qwen3"}))
def test_other_families_keep_the_law(family: Any, tmp_path: Path) -> None:
    path, asked = make_checkpoint(family, tmp_path), asked_of(2)
    wanted = run(path, asked, dtype="bfloat16", **COMMON, **ALONE).answers
    for way in ("graphs", "few blocks"):
        assert run(path, asked, dtype="bfloat16", **(COMMON | WAYS[way])).answers == wanted, way


def prompts() -> list[list[int]]:
    """Lengths on both sides of tiles, and prompts that begin alike."""
    rng = np.random.default_rng(5)
    made = [rng.integers(3, VOCAB_SIZE, size).tolist() for size in (1, 2, 17, 33, 64, 65, 90)]
    return [*made, made[4][:40], made[4]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "kind", ["bert-mean-dense", "xlmr-cross", "bert-masked", "qwen3-last", "llama-mean"]
)
def test_vectors_are_functions_of_their_prompts(kind: str, dtype: Any, tmp_path: Path) -> None:
    """And those of the CPU, but for roundings."""
    path = make_pooled(kind, tmp_path).path

    def vectors(alone: bool = False, **options: Any) -> list[Any]:
        with LLM(str(path), skip_tokenizer_init=True, dtype=dtype, **options) as llm:
            groups = [[one] for one in prompts()] if alone else [prompts()]
            given = [one for group in groups for one in llm.encode(group, RAW, use_tqdm=False)]
            assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks
        return [np.asarray(one.outputs.data) for one in given]

    wanted = vectors(alone=True, device=DEVICE)
    ways: list[dict[str, Any]] = [{}, {"max_num_seqs": 2}, {"overlap": 1, "block_size": 8}]
    for options in ways:
        given = vectors(device=DEVICE, **options)
        assert all(map(np.array_equal, given, wanted)), options
    room = 1e-4 if dtype == "float32" else 0.1
    for one, other in zip(wanted, vectors(device="cpu"), strict=True):
        assert np.abs(one - other).max() <= room * max(1.0, float(np.abs(other).max()))


def test_a_model_that_generates_embeds_beside(checkpoint: Path) -> None:
    def embed(prepare: Callable[[LLM], Any], **options: Any) -> list[Any]:
        with LLM(str(checkpoint), skip_tokenizer_init=True, **(COMMON | options)) as llm:
            prepare(llm)
            return [one.outputs.data for one in llm.encode(prompts(), RAW, use_tqdm=False)]

    wanted = embed(lambda llm: None, enforce_eager=True, max_num_seqs=1)
    given = embed(lambda llm: llm.generate(prompts()[:3], use_tqdm=False))
    assert all(map(np.array_equal, given, wanted))


def test_beams_do_not_depend_on_graphs_and_neighbours(checkpoint: Path) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=9, ignore_eos=True)

    def search(groups: list[list[list[int]]], **options: Any) -> list[Any]:
        with LLM(str(checkpoint), skip_tokenizer_init=True, **(COMMON | options)) as llm:
            given = [output for group in groups for output in llm.beam_search(group, params)]
            assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks
        return [[(one.tokens, one.cum_logprob) for one in output.sequences] for output in given]

    asked = prompts()[2:6]
    wanted = search([[one] for one in asked], enforce_eager=True, overlap=1)
    assert search([asked]) == wanted
    assert search([asked], block_size=4, num_kv_blocks=120, enable_prefix_caching=False) == wanted
