"""A state machine over the whole engine: a real tiny model, real memory, any order of calls.

EngineCore drives a real scheduler and a real ModelRunner. The executor holds plans back until they
are run one by one or somebody asks for a result, so that whatever happens between two steps may
also happen before, between and behind the steps in flight; now and then a step dies, before or
after the device has done it. Every token and log probability is compared, bit for bit, with
`reference.generate`, one request at a time. Run by tests/engine with a short, fixed budget and by
`quire.fuzz.run`.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from ..engine.config import Backend, DTypeName
from ..engine.core import EngineCore
from ..engine.device.runner import Decoding, ModelRunner
from ..engine.errors import ParamsError
from ..engine.params import SamplingParams
from ..engine.request import Finished, Request, ThinkingBudget, TokenEvents
from ..engine.sched.scheduler import Scheduler, SchedulerLimits
from ..reference.generate import generate
from .checkpoints import VOCAB_SIZE, Kind, Tiny, make_tiny
from .commands import NotedMachine, noted
from .drafters import DRAFTERS, DrafterName, make_drafter
from .grammar_cases import FORMS, tiny_grammars, use_of
from .heads import tiny_head
from .held_executor import FAULTS, Fault, HeldExecutor
from .states import Reached
from .step_plans import Answer, Asked, LogprobRow, answer_of, row_of
from .strategies import TENANTS, limits, make_request, prompts, sampling_params

KINDS: tuple[Kind, ...] = ("qwen3", "mistral", "llama2")
DTYPES: tuple[DTypeName, ...] = ("bfloat16", "float32")
BACKENDS: tuple[Backend, ...] = ("kernels", "kernels", "reference")
EDITS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"repetition_penalty": 1.7, "presence_penalty": -0.5},
    {"frequency_penalty": 2.0, "logit_bias": {5: 3.5, 0: -100.0, 77: -1.25}},
    {"allowed_token_ids": list(range(0, 128, 5)), "frequency_penalty": -1.5},
    *({"structured_outputs": form} for form in FORMS),
    {"structured_outputs": FORMS[0], "repetition_penalty": 1.7},
)
BAD_WORDS = ((), (), ((3,), (5, 5), (40, 41, 42)), tuple((one,) for one in range(100)))
"""What requests change in their logits; bad words are those of requests in turn."""
THINKING = (
    None,
    ThinkingBudget(1, (5,), (9, 9)),
    None,
    ThinkingBudget(0, (42,), (3, 4, 3, 7)),
    None,
)
"""Budgets of requests in turn."""
MANY = tuple(range(0, 128, 3))
"""A third of the vocabulary ends a sequence, so that it matters when it must not."""
DECODINGS: tuple[Decoding, ...] = ("exact", "padded")


class ModelKey(NamedTuple):
    """Which tiny model."""

    kind: Kind
    dtype: DTypeName
    backend: Backend


@cache
def tiny(key: ModelKey) -> Tiny:
    """Make a tiny model, once."""
    with tempfile.TemporaryDirectory() as folder:
        return make_tiny(key.kind, Path(folder), key.dtype, key.backend)


_answers: dict[bytes, Answer] = {}


def oracle(key: ModelKey, asked: Asked) -> Answer:
    """Answer one request alone, by the dense model in pure PyTorch; each once."""
    name = msgspec.msgpack.encode((key, asked))
    if name not in _answers:
        model = tiny(key)
        given = generate(model.config, model.weights, list(asked.prompt), asked.wish)
        _answers[name] = answer_of(asked, given)
    return _answers[name]


@st.composite
def real_params(draw: st.DrawFn) -> SamplingParams:
    """Draw everything that decides which tokens come, and when they end."""
    params = draw(sampling_params())
    return msgspec.structs.replace(
        params,
        max_tokens=min(params.max_tokens or 8, 8),
        min_tokens=min(params.min_tokens, params.max_tokens or 8, 8),
        temperature=draw(st.sampled_from((0.0, 0.7, 1.3))),
        top_k=draw(st.sampled_from((0, 3, 20))),
        top_p=draw(st.sampled_from((1.0, 0.8))),
        min_p=draw(st.sampled_from((0.0, 0.3, 0.9))),
        logprobs=draw(st.sampled_from((None, 0, 2))),
        prompt_logprobs=draw(st.sampled_from((None, None, 0, 3))),
        **draw(st.sampled_from(EDITS)),
    )


class EngineMachine(NotedMachine):
    """Compares all that comes out of an engine with each request answered alone."""

    totals: ClassVar[Counter[str]] = Counter()
    """What all runs together have exercised; printed by `quire.fuzz.run`."""
    states: ClassVar[set[str]] = set()
    """What states they have been in."""

    @initialize(
        limits=limits(),
        key=st.builds(
            ModelKey, st.sampled_from(KINDS), st.sampled_from(DTYPES), st.sampled_from(BACKENDS)
        ),
        decoding=st.sampled_from(DECODINGS),
        drafter=st.sampled_from(DRAFTERS),
    )
    @noted
    def start(
        self,
        limits: SchedulerLimits,
        key: ModelKey,
        decoding: Decoding,
        drafter: DrafterName = "knowing",
    ) -> None:
        model = tiny(key)
        runner = ModelRunner(
            model.model,
            num_blocks=limits.num_blocks,
            block_size=limits.block_size,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=limits.max_model_len,
            decoding=decoding,
        )
        runner.follow(tiny_grammars())
        self.limits, self.key = limits, key
        self.executor = HeldExecutor(runner)
        self.drafter = make_drafter(drafter, self.texts, VOCAB_SIZE)
        if self.drafter is None and limits.num_drafts:
            runner.guess_by(tiny_head(drafter, model))
        scheduler = Scheduler(limits, drafter=self.drafter)
        self.core = EngineCore(scheduler, self.executor, overlap=limits.overlap)
        self.requests: dict[str, Request] = {}
        self.outputs: dict[str, list[int]] = {}
        self.rows: dict[str, list[LogprobRow]] = {}
        self.told: dict[str, list[LogprobRow]] = {}
        self.ended: dict[str, Finished] = {}
        self.aborted: set[str] = set()
        self.num_requests = 0
        self.reached = Reached(self.core.scheduler, self.states)
        self.core.watch(self.reached)

    @property
    def alive(self) -> list[str]:
        """Ids of the requests that have not ended, oldest first."""
        return [name for name in self.requests if name not in self.ended]

    @rule(
        data=st.data(),
        params=real_params(),
        eos=st.sampled_from(((), (0,), MANY)),
        priority=st.integers(-2, 2),
        salt=st.sampled_from((None, None, "a")),
    )
    @noted
    def add(
        self,
        data: st.DataObject,
        params: SamplingParams,
        eos: tuple[int, ...],
        priority: int,
        salt: str | None,
    ) -> None:
        prompt = data.draw(prompts(self.limits.max_model_len - 1))
        request = self.make(prompt, params, eos=eos, priority=priority, salt=salt)
        self.core.add(request)
        self.enter(request)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), params=real_params(), cut=st.sampled_from((0, 0, 1, 2, 5)))
    @noted
    def fork(self, data: st.DataObject, params: SamplingParams, cut: int = 0) -> None:
        """Fork what a request knows, or all but the last `cut` tokens."""
        parent = self.requests[data.draw(st.sampled_from(self.alive))]
        known = [*parent.prompt_token_ids.tolist(), *self.outputs[parent.request_id]]
        known = known[: max(1, len(known) - cut)]
        if len(known) + 1 > self.limits.max_model_len:
            return
        num_read = len(known) - len(parent.prompt_token_ids)
        if num_read > 0 and parent.grammar is not None:
            # A branch goes on inside its parent's grammar.
            form = parent.params.structured_outputs
            params = msgspec.structs.replace(params, structured_outputs=form)
            num_read += parent.grammar.num_read
        else:
            num_read = 0
        request = self.make(
            known, params, eos=(), priority=0, salt=parent.cache_salt, num_read=num_read
        )
        self.core.fork(parent.request_id, request)
        self.totals["forks"] += 1
        self.enter(request)

    @rule()
    @noted
    def add_impossible(self) -> None:
        """What cannot fit, or has a living id, is refused and leaves no trace."""
        too_long = make_request("x", [1] * self.limits.max_model_len)
        for request in (too_long, *(self.requests[name] for name in self.alive[:1])):
            try:
                self.core.add(request)
            except ParamsError:
                continue
            raise AssertionError(f"{request.request_id} was accepted")

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    @noted
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.alive, *self.requests]))
        events = self.core.abort(name)
        assert (events is None) == (name in self.ended), (name, events)
        if events is not None:
            self.totals["aborts"] += 1
            self.totals["aborts before their step ran"] += self.executor.num_held > 0
            self.aborted.add(name)
            self.take(events)

    @rule()
    @noted
    def launch(self) -> None:
        self.core.launch()
        self.core.scheduler.check()
        assert self.executor.num_held <= self.limits.overlap

    @precondition(lambda self: self.executor.num_held)
    @rule()
    @noted
    def compute(self) -> None:
        """The device goes on, and nobody looks."""
        self.executor.run()

    @precondition(lambda self: self.core.oldest is not None)
    @rule()
    @noted
    def land(self) -> None:
        self.take(self.core.land())

    @rule(number=st.integers(1, 8), deep=st.booleans())
    @noted
    def step(self, number: int, deep: bool = False) -> None:
        """Run some steps as a driver does. deep: what comes next finds steps in flight."""
        for _ in range(number):
            self.core.launch()
            if self.core.oldest is not None:
                self.take(self.core.land())
        if deep:
            self.core.launch()

    @precondition(lambda self: self.executor.num_held)
    @rule(fault=st.sampled_from(FAULTS), happens=st.booleans())
    @noted
    def fail(self, fault: Fault, happens: bool) -> None:
        """Now and then a step dies: those with a step in flight end, the others do not notice."""
        if not happens:
            return
        self.executor.fault = fault
        self.executor.run()
        self.totals[f"failures {fault} the device"] += 1
        self.totals["steps behind a failed one"] += self.executor.num_held
        num_alive = len(self.alive)
        while num_alive and len(self.alive) == num_alive and self.core.oldest is not None:
            self.take(self.core.land())
        self.totals["requests that outlive a failure"] += len(self.alive)

    @rule()
    @noted
    def reset_cache(self) -> None:
        idle = self.core.scheduler.num_free_blocks == self.limits.num_blocks
        assert self.core.reset_prefix_cache() == idle

    def teardown(self) -> None:
        self.is_inside = True
        if not hasattr(self, "core") or sys.exc_info()[0] is not None:
            return
        bound = 10 + len(self.requests) * (3 * self.limits.max_model_len + 10)
        while self.core.has_unfinished:
            bound -= 1
            assert bound > 0, ("no progress", self.alive)
            self.step(1)
        assert not (self.alive or self.executor.num_held), self.alive
        assert self.drafter is None or not self.drafter.known, self.drafter.known
        assert self.core.scheduler.num_free_blocks == self.limits.num_blocks
        for name, finished in self.ended.items():
            if finished.reason in ("stop", "length"):
                self.compare(name, finished)
        self.reached.aim()
        self.totals.update(self.reached.figures(len(self.requests)))
        self.core.close()

    def make(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        eos: tuple[int, ...],
        priority: int,
        salt: str | None,
        num_read: int = 0,
    ) -> Request:
        """Make a request with an id of its own; seeds come again, so that answers do."""
        self.num_requests += 1
        request = make_request(
            f"r{self.num_requests}",
            prompt,
            params=params,
            seed=self.num_requests % 3,
            eos=eos,
            priority=priority,
            salt=salt,
            tenant=TENANTS[self.num_requests % len(TENANTS)],
        )
        bad_words = BAD_WORDS[self.num_requests % len(BAD_WORDS)]
        thinking = THINKING[self.num_requests % len(THINKING)]
        if params.structured_outputs is not None:
            thinking = None  # they begin at once
        grammar = use_of(params, num_read)
        return msgspec.structs.replace(
            request, bad_word_ids=bad_words, thinking=thinking, grammar=grammar
        )

    def enter(self, request: Request) -> None:
        """Note an accepted request."""
        self.requests[request.request_id] = request
        self.outputs[request.request_id] = []
        self.rows[request.request_id] = []
        self.told[request.request_id] = []

    def texts(self) -> list[list[int]]:
        """What the living requests say alone, prompts included."""
        return [
            [*self.requests[name].prompt_token_ids.tolist(), *self.expected(name).token_ids]
            for name in self.alive
        ]

    def expected(self, name: str) -> Answer:
        """What a request gives alone."""
        request = self.requests[name]
        params, prompt = request.params, tuple(request.prompt_token_ids.tolist())
        assert params.max_tokens is not None
        most = min(params.max_tokens, self.limits.max_model_len - len(prompt))
        params = msgspec.structs.replace(
            params,
            max_tokens=most,
            min_tokens=min(params.min_tokens, most),
            stop_token_ids=[*(params.stop_token_ids or ()), *self.eos_of(request)],
        )
        num_read = request.grammar.num_read if request.grammar is not None else 0
        asked = Asked(
            prompt, params, request.seed, request.bad_word_ids, request.thinking, num_read
        )
        return oracle(self.key, asked)

    def eos_of(self, request: Request) -> tuple[int, ...]:
        """The ends of sequences that count for a request."""
        return () if request.params.ignore_eos else request.eos_token_ids

    def take(self, events: TokenEvents) -> None:
        """Deliver events: each token once, none after the end, every bit as it is alone."""
        self.core.scheduler.check()
        names = events.request_ids
        assert len(names) == len(events.token_ids), events
        assert self.limits.num_drafts or len(names) == len(set(names)), names
        for one in events.prompts:
            assert one.request_id not in self.ended, (one.request_id, "told after the end")
            told = self.told[one.request_id]
            assert one.start == len(told) + 1, (one.request_id, one.start, len(told))
            told += [row_of(one.rows, row) for row in range(len(one.rows.ranks))]
            alone = self.expected(one.request_id)
            assert tuple(told) == alone.prompt[: len(told)], one.request_id
        endings = {finished.index: finished for finished in events.finished}
        for index, (name, token) in enumerate(zip(names, events.token_ids.tolist(), strict=True)):
            assert name not in self.ended, (name, "an event after the end")
            if token >= 0:
                self.outputs[name].append(token)
                self.take_row(name, events, index)
                alone, outputs = self.expected(name), self.outputs[name]
                assert tuple(outputs) == alone.token_ids[: len(outputs)], (name, outputs, alone)
                assert tuple(self.rows[name]) == alone.logprobs[: len(self.rows[name])], name
                assert tuple(self.told[name]) == alone.prompt, name
            if index in endings:
                self.ended[name] = endings[index]
                assert (endings[index].reason == "abort") == (name in self.aborted), name

    def take_row(self, name: str, events: TokenEvents, index: int) -> None:
        """Note the log probabilities that come with a token."""
        count = self.requests[name].params.logprobs
        if count is None:
            return
        rows = events.logprobs
        assert rows is not None, name
        self.rows[name].append(row_of(rows, index, count))

    def compare(self, name: str, finished: Finished) -> None:
        """Assert that a request that ended by itself gave all that it gives alone."""
        alone, request = self.expected(name), self.requests[name]
        assert tuple(self.outputs[name]) == alone.token_ids, (name, self.outputs[name], alone)
        assert tuple(self.rows[name]) == alone.logprobs, name
        stops = (*(request.params.stop_token_ids or ()), *self.eos_of(request))
        stopped = alone.token_ids[-1] in stops
        assert finished.reason == ("stop" if stopped else "length"), (name, finished)
