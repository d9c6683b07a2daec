"""Beam search: the dense model's answers, however the engine computes them, and nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace
from quire import LLM, AsyncEngine, BeamSearchParams, SamplingParams
from quire.engine.errors import ParamsError
from quire.engine.models.loader import load_weights
from quire.engine.models.registry import read_model_config
from quire.engine.opset import choose_ops, choose_sums
from quire.engine.replay import replay
from quire.engine.request import BeamSearchOutput, Request, RequestOutput
from quire.engine.trace import read_log
from quire.fuzz.checkpoints import VOCAB_SIZE, make_checkpoint
from quire.reference.beam_search import Found, Search, beam_search

OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "num_threads": 1,
    "block_size": 4,
    "dtype": "float32",
}
EOS = tuple(range(0, VOCAB_SIZE, 5))
"""A fifth of the vocabulary, so that sequences end."""
PROMPTS = ([*range(5, 44)], [7, 8, 9], [100], [3] * 16, [*range(60, 90, 2)])
"""39 tokens first: nine full blocks and a part of a tenth."""


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of which many tokens end an answer."""
    return make_checkpoint(
        "llama2", tmp_path_factory.mktemp("ending"), seed=3, eos_token_id=list(EOS)
    )


class Oracle(NamedTuple):
    """The dense model of a checkpoint."""

    config: Any
    weights: Any
    known: dict[Any, list[Found]]
    """What was searched before."""

    def find(self, prompt: list[int], params: BeamSearchParams) -> list[Found]:
        """Search over it."""
        key = (tuple(prompt), params)
        if key not in self.known:
            self.known[key] = self._find(prompt, params)
        return self.known[key]

    def _find(self, prompt: list[int], params: BeamSearchParams) -> list[Found]:
        assert params.max_tokens is not None
        search = Search(
            beam_width=params.beam_width,
            max_tokens=params.max_tokens,
            eos_token_ids=() if params.ignore_eos else EOS,
            length_penalty=params.length_penalty,
            stop_early=params.early_stopping is True,
        )
        return beam_search(self.config, self.weights, prompt, search)


@pytest.fixture(scope="module")
def oracle(ending: Path) -> Oracle:
    """The reference."""
    return load_oracle(ending)


def load_oracle(path: Path) -> Oracle:
    config = read_model_config(path, "float32", sums=choose_sums("auto"))
    weights = load_weights(config, choose_ops("cpu", "reference"), progress=False)
    return Oracle(config.decoder, weights, {})


def found(output: BeamSearchOutput, prompt: list[int]) -> list[Found]:
    """Read answers as the reference gives them, and check what they say of themselves."""
    answers = []
    for one in output.sequences:
        assert list(one.tokens[: len(prompt)]) == prompt
        assert one.finish_reason in ("stop", "length")
        answer = one.tokens[len(prompt) :]
        assert len(one.logprobs) == len(answer)
        total = 0.0
        for token, row in zip(answer, one.logprobs, strict=True):
            assert next(iter(row)) == token, "its own is first"
            assert row[token].logprob <= 0.0
            total += row[token].logprob
        assert total == one.cum_logprob
        answers.append(Found(answer, one.cum_logprob, one.finish_reason == "stop"))
    return answers


@pytest.fixture(scope="module")
def llm(ending: Path) -> Iterator[LLM]:
    with LLM(str(ending), **OPTIONS, num_kv_blocks=256) as made:
        yield made


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


def assert_empty(llm: LLM) -> None:
    llm.scheduler.check()
    assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks
    assert not llm._front._searches._steps and not llm._front._searches._current
    assert not llm._front.num_open and not llm._front.timelines.living


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
        plan, _ = core._in_flight.popleft()
        front.deliver(core._fail(plan, "the device died"), 0.0)
        output = search.output()
        assert output.error == "the device died"
        assert [one.finish_reason for one in output.outputs] == ["error"] * 3
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
        ("logprobs", -1),
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
