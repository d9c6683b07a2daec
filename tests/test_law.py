"""The law: a request's tokens and log probabilities are functions of the request alone, bit for
bit.

Every run below must equal the dense oracle, which knows no batch, no block, no chunk and no cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from quire.fuzz.checkpoints import KINDS, VOCAB_SIZE, make_checkpoint
from quire.fuzz.engine_runs import Answer, Asked, expect, make_requests, run
from quire.fuzz.heads import HEAD_KINDS, make_guessing

MAX_TOKENS = 6
LEAST_POOL = {"num_kv_blocks": 54, "max_model_len": 216}


class Way(NamedTuple):
    """Options of a run, and the scheduler's counters that must have moved in it."""

    options: dict[str, Any]
    proves: tuple[str, ...] = ()


WAYS = {
    "together": Way({}),
    "alone": Way({"alone": True}, ("prefix_hits", "num_copies")),
    "one slot": Way({"max_num_seqs": 1}, ("prefix_hits", "num_copies")),
    "overlap 2": Way({"overlap": 2}),
    "small chunks": Way({"max_num_batched_tokens": 7}, ("num_copies",)),
    "chunks of one": Way({"max_num_batched_tokens": 1, "enable_prefix_caching": False}),
    "block size 1": Way({"block_size": 1, "num_kv_blocks": 512}, ("prefix_hits",)),
    "block size 8, no cache": Way({"block_size": 8, "enable_prefix_caching": False}),
    "few blocks": Way({"block_size": 4, **LEAST_POOL}, ("num_preemptions",)),
    "few blocks, overlap 2": Way(
        {"block_size": 4, **LEAST_POOL, "overlap": 2, "max_num_batched_tokens": 24},
        ("num_preemptions", "resumed_hits"),
    ),
    "few blocks of 1, no cache": Way(
        {"block_size": 1, "num_kv_blocks": 216, "enable_prefix_caching": False},
        ("num_preemptions",),
    ),
    "two threads": Way({"num_threads": 2}),
    "reference": Way(
        {"backend": "reference", "block_size": 8, "max_num_batched_tokens": 64}, ("prefix_hits",)
    ),
    "priority": Way({"scheduling_policy": "priority", "max_num_batched_tokens": 33}),
}
SPECULATIVE_WAYS = {
    "together": Way({}),
    "alone": Way({"alone": True}, ("prefix_hits", "num_copies")),
    "overlap 2": Way({"overlap": 2}),
    "small chunks": Way({"max_num_batched_tokens": 7}),
    "few blocks": Way({"block_size": 4, **LEAST_POOL}, ("num_preemptions",)),
    "few blocks of 1, overlap 2, no cache": Way(
        {"block_size": 1, "num_kv_blocks": 216, "enable_prefix_caching": False, "overlap": 2},
        ("num_preemptions",),
    ),
    "two threads, one guess": Way({"num_threads": 2, "num_drafts": 1}),
    "reference": Way({"backend": "reference", "block_size": 8}, ("prefix_hits",)),
    "suffixes": Way({"method": "suffix", "alone": True}, ("prefix_hits",)),
    "suffixes, few blocks, overlap 2": Way(
        {"method": "suffix", "block_size": 4, **LEAST_POOL, "overlap": 2}, ("num_preemptions",)
    ),
}
DEVICE_WAYS = ("together", "alone", "overlap 2", "few blocks", "reference")
"""Of these, the ones for guesses of the device."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3."""
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("qwen3"))


class Case(NamedTuple):
    """Requests (greedy and sampled), and what the oracle answers with these numbers."""

    numbers: dict[str, Any]
    asked: list[Asked]
    expected: list[Answer]


@pytest.fixture(
    scope="module", params=[("float32", "auto"), ("bfloat16", "pairs"), ("bfloat16", "tiles")]
)
def case(request: pytest.FixtureRequest, checkpoint: Path) -> Case:
    """One for every kind of number and every order of its sums."""
    dtype, sums = request.param
    asked = make_requests(VOCAB_SIZE, seed=1, max_tokens=MAX_TOKENS, sampled=True)
    numbers = {"dtype": dtype, "bfloat16_sums": sums}
    return Case(numbers, asked, expect(checkpoint, asked, dtype, sums))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_oracles_bits(way: str, checkpoint: Path, case: Case) -> None:
    numbers, asked, expected = case
    common = {"num_threads": 1, "num_kv_blocks": 64, "max_model_len": 216}
    outcome = run(checkpoint, asked, **(numbers | common | WAYS[way].options))
    assert outcome.answers == expected
    for counter in WAYS[way].proves:
        assert getattr(outcome.stats, counter) > 0, (counter, outcome.stats)


@pytest.mark.parametrize("way", SPECULATIVE_WAYS)
def test_guesses_change_no_bit(way: str, checkpoint: Path, case: Case) -> None:
    """Right ones and wrong ones, in grammars, behind penalties and for those who are told more."""
    numbers, asked, expected = case
    common = {"num_threads": 1, "num_kv_blocks": 64, "max_model_len": 216}
    options = dict(SPECULATIVE_WAYS[way].options)
    # Costs as given: those of a loaded machine might keep everybody from guessing.
    wanted: dict[str, Any] = {"costs": {}}
    wanted["num_speculative_tokens"] = options.pop("num_drafts", 4)
    told, rounds = expected, 1
    if "method" in options:
        # No drafter that knows it all: the second round is guessed from the first.
        wanted["method"], told, rounds = options.pop("method"), [], 2
    options["speculative_config"] = wanted
    outcome = run(checkpoint, asked * rounds, told=told, **(numbers | common | options))
    assert outcome.answers == expected * rounds
    assert outcome.stats.num_accepted_tokens > 0
    assert outcome.stats.num_draft_tokens > outcome.stats.num_accepted_tokens
    for counter in SPECULATIVE_WAYS[way].proves:
        assert getattr(outcome.stats, counter) > 0, (counter, outcome.stats)


@pytest.fixture(scope="module", params=HEAD_KINDS)
def guessing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A checkpoint, and what guesses for it on the device."""
    path = make_checkpoint("qwen3", tmp_path_factory.mktemp("guessing"))
    return path, make_guessing(request.param, path)


@pytest.mark.parametrize("case", [("bfloat16", "pairs")], indirect=True)
@pytest.mark.parametrize("way", DEVICE_WAYS)
def test_guesses_of_the_device_change_no_bit(
    way: str, guessing: tuple[Path, dict[str, Any]], case: Case
) -> None:
    """A draft model's, and those of heads in every layout: by the noise of the target."""
    (path, config), (numbers, asked, expected) = guessing, case
    common = {"num_threads": 1, "num_kv_blocks": 64, "max_model_len": 216}
    options = dict(SPECULATIVE_WAYS[way].options)
    config = config | {"num_speculative_tokens": options.pop("num_drafts", 4)}
    outcome = run(path, asked, speculative_config=config, **(numbers | common | options))
    assert outcome.answers == expected
    assert outcome.stats.num_accepted_tokens > 0
    assert outcome.stats.num_draft_tokens > outcome.stats.num_accepted_tokens
    for counter in SPECULATIVE_WAYS[way].proves:
        assert getattr(outcome.stats, counter) > 0, (counter, outcome.stats)


def test_warm_cache_gives_the_oracles_bits(checkpoint: Path, case: Case) -> None:
    """The same prompts twice in one engine: the second round reads what the first wrote."""
    numbers, asked, expected = case
    outcome = run(checkpoint, asked * 2, **numbers, num_threads=1, max_num_seqs=3)
    assert outcome.answers == expected * 2
    assert outcome.stats.num_copies > 0, "hits inside a block"


@pytest.mark.parametrize("family", sorted(set(KINDS) - {"qwen3"}))
def test_other_families_keep_the_law(family: Any, tmp_path: Path) -> None:
    """Windows, biases and scaled rotations have no way of their own to break it."""
    path = make_checkpoint(family, tmp_path)
    asked = make_requests(VOCAB_SIZE, seed=2, max_tokens=4, sampled=True)
    expected = expect(path, asked, "bfloat16")
    ways: tuple[dict[str, Any], ...] = (
        {"block_size": 8, "max_num_batched_tokens": 13, "overlap": 2},
        {"block_size": 16, "max_num_seqs": 2},
    )
    for options in ways:
        outcome = run(path, asked, dtype="bfloat16", num_threads=1, **options)
        assert outcome.answers == expected
