"""Beam search: the dense model's answers, however the engine computes them, and nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from quire import LLM, BeamSearchParams, SamplingParams
from quire.engine.errors import ParamsError
from quire.fuzz.beam_runs import EOS, OPTIONS, PROMPTS, Oracle, assert_empty, found, load_oracle
from quire.fuzz.checkpoints import VOCAB_SIZE, make_checkpoint


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"length_penalty": 0.0},
        {"length_penalty": 2.5},
        {"length_penalty": -1.5},
        {"ignore_eos": True},
        {"early_stopping": True},
        {"max_tokens": 1},
        {"max_tokens": 2},
    ],
    ids=str,
)
def test_answers_are_the_dense_models(
    llm: LLM, oracle: Oracle, width: int, changes: dict[str, Any]
) -> None:
    """Several prompts at once, sequences and log probabilities bit for bit."""
    params = BeamSearchParams(**({"beam_width": width, "max_tokens": 8} | changes))
    outputs = llm.beam_search(PROMPTS, params)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert found(output, prompt) == oracle.find(prompt, params), (prompt, changes)
    assert_empty(llm)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_answers_are_the_dense_models_of_other_weights(tmp_path: Path, seed: int) -> None:
    path = make_checkpoint("qwen3", tmp_path, seed=seed, eos_token_id=list(EOS))
    oracle, params = load_oracle(path), BeamSearchParams(beam_width=3, max_tokens=7)
    with LLM(str(path), **OPTIONS, num_kv_blocks=256) as llm:
        for prompt, output in zip(PROMPTS, llm.beam_search(PROMPTS, params), strict=True):
            assert found(output, prompt) == oracle.find(prompt, params)


WAYS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"overlap": 2}, ("num_copies",)),
    ({"enable_prefix_caching": False}, ("num_copies",)),
    ({"max_num_batched_tokens": 5}, ()),
    ({"max_num_batched_tokens": 1, "enable_prefix_caching": False, "overlap": 2}, ()),
    ({"max_num_seqs": 1}, ()),
    ({"max_num_seqs": 2, "overlap": 2}, ()),
    ({"block_size": 1, "num_kv_blocks": 512}, ()),
    ({"block_size": 16}, ()),
    ({"num_kv_blocks": 14, "max_model_len": 56}, ()),
    ({"num_kv_blocks": 14, "max_model_len": 56, "overlap": 2, "enable_prefix_caching": False}, ()),
    ({"backend": "reference"}, ()),
    ({"scheduling_policy": "priority"}, ()),
]


@pytest.mark.parametrize(("ways", "proves"), WAYS, ids=str)
def test_every_way_gives_the_same(
    ending: Path, oracle: Oracle, ways: dict[str, Any], proves: tuple[str, ...]
) -> None:
    """Beside others that sample, however blocks and steps are cut."""
    params = BeamSearchParams(beam_width=4, max_tokens=8)
    sampling = SamplingParams(max_tokens=12, seed=1, ignore_eos=True, detokenize=False)
    with LLM(str(ending), **(OPTIONS | {"num_kv_blocks": 256} | ways)) as llm:
        front = llm._front
        prompts = [*PROMPTS, *PROMPTS[:2]]
        states = [front.add(front.prepare(prompt, params), 0.0) for prompt in PROMPTS]
        states += [front.add(front.prepare(prompt, sampling), 0.0) for prompt in PROMPTS[:2]]
        llm._run(0, use_tqdm=False)
        for prompt, state in zip(prompts[: len(PROMPTS)], states, strict=False):
            output = llm._as_beams(state.output())
            assert found(output, prompt) == oracle.find(prompt, params), prompt
        for name in proves:
            assert getattr(llm.scheduler.stats, name) > 0, name
        assert_empty(llm)


@pytest.mark.parametrize("overlap", [1, 2])
@pytest.mark.parametrize("caching", [True, False])
def test_preempted_sequences_give_the_same(
    ending: Path, oracle: Oracle, overlap: int, caching: bool
) -> None:
    """A long answer beside a search, in a pool for little more than one of them."""
    params = BeamSearchParams(beam_width=4, max_tokens=10, ignore_eos=True)
    options = OPTIONS | {
        "num_kv_blocks": 24,
        "max_model_len": 90,
        "overlap": overlap,
        "enable_prefix_caching": caching,
    }
    with LLM(str(ending), **options) as llm:
        front = llm._front
        sampling = SamplingParams(max_tokens=50, ignore_eos=True, detokenize=False)
        for i in range(3):
            front.add(front.prepare([i, 2, 3], sampling), 0.0)
        states = [front.add(front.prepare(prompt, params), 0.0) for prompt in PROMPTS]
        llm._run(0, use_tqdm=False)
        for prompt, state in zip(PROMPTS, states, strict=True):
            assert found(llm._as_beams(state.output()), prompt) == oracle.find(prompt, params)
        assert llm.scheduler.stats.num_preemptions > 0
        assert_empty(llm)


def test_a_search_ends_when_no_better_answer_can_come(llm: LLM, oracle: Oracle) -> None:
    """Long before its last step, with the answers that all steps would give."""
    for penalty in (1.0, 0.0, -1.0):
        params = BeamSearchParams(beam_width=2, max_tokens=24, length_penalty=penalty)
        before = llm.scheduler.stats.num_steps
        (output,) = llm.beam_search([7, 8, 9], params)
        assert found(output, [7, 8, 9]) == oracle.find([7, 8, 9], params)
        assert llm.scheduler.stats.num_steps - before < 20


def test_one_beam_is_the_greedy_answer(llm: LLM) -> None:
    """Tokens, log probabilities and ends, where no token ends it."""
    params = BeamSearchParams(beam_width=1, max_tokens=12, ignore_eos=True)
    sampling = SamplingParams(
        temperature=0.0, max_tokens=12, logprobs=2, detokenize=False, ignore_eos=True
    )
    beams = llm.beam_search(PROMPTS, params)
    for beam, answer in zip(beams, llm.generate(PROMPTS, sampling, use_tqdm=False), strict=True):
        (sequence,), (one,) = beam.sequences, answer.outputs
        assert sequence.tokens[len(answer.prompt_token_ids) :] == one.token_ids
        assert sequence.logprobs == one.logprobs
        assert sequence.cum_logprob == one.cumulative_logprob
        assert sequence.finish_reason == one.finish_reason


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("overlap", [1, 2])
def test_nothing_is_computed_or_stored_twice(ending: Path, caching: bool, overlap: int) -> None:
    """The prompt once, then one token a beam and step; the prompt's blocks are held once."""
    prompt, width, num_steps = [5 + i % 90 for i in range(111)], 4, 6
    options = OPTIONS | {"enable_prefix_caching": caching, "overlap": overlap}
    params = BeamSearchParams(beam_width=width, max_tokens=num_steps, ignore_eos=True)
    with LLM(str(ending), **options, num_kv_blocks=128) as llm:
        front, core, scheduler = llm._front, llm.core, llm.scheduler
        search = front.add(front.prepare(prompt, params), 0.0)
        most = 0
        while core.has_unfinished:
            core.launch()
            most = max(most, scheduler.num_blocks - scheduler.num_free_blocks)
            front.deliver(core.land(), 0.0)
        assert search.finished
        stats = scheduler.stats
        assert stats.num_scheduled_tokens == len(prompt) + (num_steps - 1) * width
        assert stats.num_steps == num_steps
        # 27 full blocks together. Then each beam's own: one or two, and its parent's until it is
        # copied.
        assert most <= 27 + 2 * 2 * width, most
        assert_empty(llm)


def test_bad_searches_are_refused(llm: LLM) -> None:
    given: dict[str, Any]
    for field, value in (
        ("beam_width", 0),
        ("beam_width", 129),
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("length_penalty", 17),
        ("length_penalty", float("nan")),
        ("early_stopping", "always"),
        ("ignore_eos", 1),
        ("logprobs", -2),
    ):
        given = {"beam_width": 2, "max_tokens": 4, field: value}
        with pytest.raises(ParamsError, match=field) as caught:
            BeamSearchParams(**given)
        assert caught.value.param == field
    front, params = llm._front, BeamSearchParams(beam_width=2, max_tokens=None)
    front.add(front.prepare([1, 2], params, "x"), 0.0)
    with pytest.raises(ParamsError, match="in use"):
        front.add(front.prepare([1, 2], params, "x"), 0.0)
    with pytest.raises(ParamsError, match="beam search"):
        front.fork("x")
    front.abort("x", 0.0)
    assert_empty(llm)


@pytest.mark.parametrize("caching", [True, False])
def test_memory_for_one_sequence_is_enough(ending: Path, oracle: Oracle, caching: bool) -> None:
    """Up to the model length, where nobody says less."""
    options = OPTIONS | {"num_kv_blocks": 4, "max_model_len": 16, "enable_prefix_caching": caching}
    params = BeamSearchParams(beam_width=4, max_tokens=None, ignore_eos=True)
    with LLM(str(ending), **options) as llm:
        (output,) = llm.beam_search([1, 2, 3], params)
        assert found(output, [1, 2, 3]) == oracle.find([1, 2, 3], replace(params, max_tokens=13))
        assert_empty(llm)


def test_the_likeliest_beside_each_token_are_as_many_as_asked(llm: LLM) -> None:
    for asked, told in ((None, 6), (0, 0), (2, 2), (20, 20)):
        params = BeamSearchParams(beam_width=3, max_tokens=4, logprobs=asked)
        (output,) = llm.beam_search([1, 2, 3], params)
        for sequence in output.sequences:
            for row in sequence.logprobs:
                assert told <= len(row) <= told + 1
                ranks = [one.rank for one in list(row.values())[1:]]
                assert ranks == sorted(ranks, key=lambda rank: rank or 0)


def test_a_beam_wider_than_the_vocabulary_has_the_whole_of_it(tmp_path: Path) -> None:
    path = make_checkpoint("llama2", tmp_path, vocab_size=24, eos_token_id=1)
    oracle, params = (
        load_oracle(path),
        BeamSearchParams(beam_width=40, max_tokens=3, ignore_eos=True),
    )
    with LLM(str(path), **OPTIONS, num_kv_blocks=256) as llm:
        (output,) = llm.beam_search([1, 2, 3], params)
        assert found(output, [1, 2, 3]) == oracle.find([1, 2, 3], params)
        assert len(output.sequences) == 40


@pytest.mark.parametrize("width", [20, 128])
def test_wide_beams_ask_for_more_than_a_request_may(llm: LLM, width: int) -> None:
    """Up to the whole vocabulary, which has 157 tokens."""
    params = BeamSearchParams(beam_width=width, max_tokens=3, ignore_eos=True)
    (output,) = llm.beam_search([7, 8, 9], params)
    assert len({one.tokens for one in output.sequences}) == width
    assert min(len(row) for one in output.sequences for row in one.logprobs) == min(
        2 * width, VOCAB_SIZE
    )
    scores = [one.cum_logprob for one in output.sequences]
    assert scores == sorted(scores, reverse=True)
    assert_empty(llm)


@pytest.mark.parametrize("sums", ["pairs", "tiles"])
def test_answers_are_the_dense_models_in_bfloat16(ending: Path, sums: Any) -> None:
    """Whose logits are often equal: the order of ties is the reference's."""
    oracle = load_oracle(ending, "bfloat16", sums)
    params = BeamSearchParams(beam_width=4, max_tokens=6)
    options = OPTIONS | {"dtype": "bfloat16", "bfloat16_sums": sums, "num_kv_blocks": 256}
    with LLM(str(ending), **options) as llm:
        for prompt, output in zip(PROMPTS, llm.beam_search(PROMPTS, params), strict=True):
            assert found(output, prompt) == oracle.find(prompt, params)
