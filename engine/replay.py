"""From a recorded log to a verdict: the same plans, the same tokens, or where they part.

`replay` folds a whole log again, step by step, on any backend. By the law a request needs neither
its neighbours nor its plans: `replay_requests` runs requests of a log anew, one alone or all that a
log without its beginning still tells. Where a token differs, `compare_backends` runs the steps on
two backends side by side and names the operation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..reference.decoder import DecoderWeights
from ..reference.ops import Ops
from .build import LoadedRunner, load_runner, make_limits, make_scheduler, resolve_model
from .config import EngineConfig
from .device.tracing import Difference, TracedOps, first_difference, traced
from .errors import ParamsError
from .plan import StepPlan, StepResult
from .request import Request
from .sched.scheduler import Scheduler
from .text.tokenizer import load_tokenizer
from .text.vocabulary import read_vocabulary
from .trace import (
    Aborted,
    Added,
    Budgeted,
    Cleared,
    Failed,
    Header,
    Landed,
    Launched,
    Log,
    logprobs_digest,
    plan_digest,
)


class Mismatch(NamedTuple):
    """The first thing that was not as recorded."""

    step: int
    request_id: str | None
    what: str


@dataclass(slots=True, eq=False)
class Verdict:
    """What a replay found."""

    num_requests: int = 0
    num_steps: int = 0
    num_tokens: int = 0
    """Tokens that were drawn, and compared."""
    mismatch: Mismatch | None = None
    unknown: list[str] = field(default_factory=list)
    """Requests that began before the log,"""
    unrecorded: list[str] = field(default_factory=list)
    """and those with logits processors, which it does not hold."""


class Fold:
    """A scheduler that repeats a log's calls, checking every plan.

    What a device guessed is taken from the log: nothing guesses again, for it need not guess alike.
    """

    def __init__(self, config: EngineConfig, log: Log) -> None:
        self.scheduler = make_scheduler(config, make_limits(config))
        self.flights: deque[StepPlan] = deque()
        self._names: dict[int, str] = {}
        self._guesses = {
            entry.step: _ids(entry.guesses).astype(np.int32)
            for entry in log.entries
            if isinstance(entry, Landed) and entry.guesses
        }

    def launch(self, entry: Launched) -> StepPlan | Mismatch:
        """Plan the recorded step again."""
        decision = self.scheduler.plan()
        if decision is None:
            return Mismatch(entry.step, None, "nothing is planned, and a step was recorded")
        plan = self.scheduler.commit(decision)
        self._names.update(entry.admitted)
        if plan_digest(plan) != entry.digest:
            return Mismatch(
                entry.step,
                None,
                f"the plan is another one ({plan.num_scheduled_tokens} tokens for "
                f"{entry.num_tokens}, {len(plan.admitted)} admitted for {len(entry.admitted)})",
            )
        if plan.drafts is not None and plan.drafts.token_ids is None:
            # Where the step never landed nobody knows; whatever was guessed changes no token.
            size = int(plan.drafts.counts.sum())
            plan = plan.told(self._guesses.get(plan.step, np.zeros(size, np.int32)))
        self.flights.append(plan)
        return plan

    def name(self, slot: int) -> str:
        """Who runs in a slot."""
        return self._names.get(slot, f"slot {slot}")

    def tell(self, entry: Added | Aborted | Budgeted | Cleared | Failed) -> None:
        """Repeat what happens between steps."""
        match entry:
            case Added(request=request, parent_id=None):
                self.scheduler.add(request)
            case Added(request=request, parent_id=parent_id):
                self.scheduler.fork(cast(str, parent_id), request)
            case Aborted(request_id=request_id):
                self.scheduler.abort(request_id)
            case Budgeted(num_tokens=num_tokens):
                self.scheduler.set_budget(num_tokens)
            case Cleared():
                self.scheduler.reset_prefix_cache()
            case Failed(message=message):
                self.flights.clear()
                self.scheduler.fail(message)


def replay(log: Log, options: Mapping[str, Any]) -> Verdict:
    """Fold a whole log again; options: of EngineConfig, instead of the recorded ones.

    Stops at the first mismatch. ConfigError or CheckpointError if the engine cannot be built.
    """
    assert log.is_foldable, log.header
    loaded = load(replay_config(log.header, options))
    fold, verdict = Fold(loaded.config, log), Verdict()
    results: deque[StepResult] = deque()
    for entry in log.entries:
        if isinstance(entry, Launched):
            plan = fold.launch(entry)
            if isinstance(plan, Mismatch):
                verdict.mismatch = plan
                break
            results.append(loaded.runner.execute(plan))
            verdict.num_steps += 1
        elif isinstance(entry, Landed):
            plan, result = fold.flights.popleft(), results.popleft()
            verdict.num_tokens += len(result.token_ids)
            verdict.mismatch = compare_step(entry, plan, result, fold)
            if verdict.mismatch is not None:
                break
            fold.scheduler.retire(plan, result)
        elif not isinstance(entry, Header):
            if isinstance(entry, Failed):
                results.clear()
            verdict.num_requests += isinstance(entry, Added)
            fold.tell(entry)
    return verdict


def replay_config(header: Header, options: Mapping[str, Any]) -> EngineConfig:
    """Return the recorded configuration with some options changed, and nothing recorded."""
    given = {"bfloat16_sums": "auto"} if options.get("device") == "cuda" else {}
    return replace(header.config, record=None, record_text=False, **(given | dict(options)))


def load(config: EngineConfig, wrap: Callable[[Ops], Ops] | None = None) -> LoadedRunner:
    """Load a runner, and the tokenizer once a grammar needs it. wrap: see load_runner."""
    loaded = load_runner(config, wrap, guesses_on_device=False)
    if not config.skip_tokenizer_init:
        path, model = config.tokenizer or config.model, loaded.model_config
        loaded.grammars.provide(
            lambda: read_vocabulary(
                load_tokenizer(resolve_model(path)), model.vocab_size, model.eos_token_ids
            )
        )
    return loaded


def compare_step(entry: Landed, plan: StepPlan, result: StepResult, fold: Fold) -> Mismatch | None:
    """Compare a step's tokens and log probabilities with the recorded ones."""
    recorded, slots = _ids(entry.token_ids), plan.sampled()[0]
    if entry.step != plan.step or len(recorded) != len(result.token_ids):
        return Mismatch(plan.step, None, f"step {entry.step} landed in the log")
    differ = (recorded != result.token_ids).nonzero()[0]
    if len(differ):
        row = int(differ[0])
        what = f"token {int(result.token_ids[row])} was drawn, {int(recorded[row])} is recorded"
        return Mismatch(plan.step, fold.name(int(slots[row])), what)
    if entry.logprobs != logprobs_digest(result):
        return Mismatch(plan.step, None, "the tokens are equal, their log probabilities are not")
    return None


def _ids(data: bytes) -> NDArray[np.int32]:
    return np.frombuffer(data, "<i4")


class OpMismatch(NamedTuple):
    """The first operation whose result differs between two backends."""

    step: int
    request_id: str
    name: str
    """As "layer 3, down (linear)"."""


def compare_backends(
    log: Log, sides: Sequence[LoadedRunner], tracers: Sequence[TracedOps], last_step: int
) -> OpMismatch | None:
    """Run the steps up to last_step on two runners side by side; name the first difference.

    Both see the recorded tokens' plans; the first side's tokens go on.
    """
    fold = Fold(sides[0].config, log)
    results: deque[StepResult] = deque()
    for entry in log.entries:
        if isinstance(entry, Launched):
            if entry.step > last_step:
                break
            plan = fold.launch(entry)
            if isinstance(plan, Mismatch):
                break
            for tracer in tracers:
                tracer.begin()
            results.append(sides[0].runner.execute(plan))
            sides[1].runner.execute(plan)
            left, right = (tracer.calls or [] for tracer in tracers)
            difference = first_difference(left, right)
            if difference is not None:
                name = fold.name(_slot_of(plan, difference))
                return OpMismatch(plan.step, name, difference.name)
        elif isinstance(entry, Landed):
            fold.scheduler.retire(fold.flights.popleft(), results.popleft())
        elif not isinstance(entry, Header):
            if isinstance(entry, Failed):
                results.clear()
            fold.tell(entry)
    return None


def load_traced(config: EngineConfig) -> tuple[LoadedRunner, TracedOps]:
    """Load a runner whose operations are watched."""
    loaded = load(config, traced)
    tracer = cast(TracedOps, loaded.runner.ops)
    weights = loaded.runner.model.weights
    assert isinstance(weights, DecoderWeights), "logs are of models that generate"
    tracer.name_weights(weights)
    return loaded, tracer


def _slot_of(plan: StepPlan, difference: Difference) -> int:
    """Find the slot of a differing row: of a token, or of a row that samples.

    -1: unknown, where it may be one of a prompt's that the step tells of.
    """
    if difference.num_rows == plan.num_scheduled_tokens:
        owners = np.repeat(plan.slots, plan.num_tokens)
    elif plan.scored:
        return -1
    else:
        owners = plan.sampled()[0]
    return int(owners[difference.row]) if difference.row < len(owners) else -1


class Recorded(NamedTuple):
    """What a log says of one request."""

    request: Request
    token_ids: list[int]
    """What was drawn for it; behind its end up to a step's overlap more."""
    ended: bool
    """Whether it was ended from outside or by a dead step: it may have got less than it would."""


def recorded_requests(log: Log) -> tuple[dict[str, Recorded], list[str]]:
    """Collect all requests that were added in the log, and the ids of those that were before it."""
    found: dict[str, Recorded] = {}
    slots = dict(log.header.slots)
    unknown = list(slots.values())
    pending: deque[Launched] = deque()
    for entry in log.entries:
        if isinstance(entry, Added):
            found[entry.request.request_id] = Recorded(entry.request, [], False)
        elif isinstance(entry, Aborted):
            _end(found, [entry.request_id])
        elif isinstance(entry, Launched):
            pending.append(entry)
            slots.update(entry.admitted)
        elif isinstance(entry, Failed):
            pending.clear()
            _end(found, slots.values())
        elif isinstance(entry, Landed):
            rows = zip(_ids(entry.slots).tolist(), _ids(entry.token_ids).tolist(), strict=True)
            for slot, token in rows:
                known = found.get(slots.get(slot, ""))
                if known is not None and not known.ended:
                    known.token_ids.append(token)
    return found, unknown


def _end(found: dict[str, Recorded], names: Iterable[str]) -> None:
    for name in names:
        if name in found:
            found[name] = found[name]._replace(ended=True)


def replay_requests(log: Log, options: Mapping[str, Any], request_id: str | None = None) -> Verdict:
    """Run one request of a log alone, or all that it tells, whatever they were planned beside.

    ParamsError if the log has no such request, or not all that it needs.
    """
    found, unknown = recorded_requests(log)
    unrecorded = log.unrecorded
    if request_id is not None:
        if request_id not in found:
            some = ", ".join(list(found)[:5]) or "none"
            raise ParamsError(
                f"The log has no request {request_id!r}: it has {len(found)}, as {some}.",
                "request_id",
            )
        if request_id in unrecorded:
            raise ParamsError(
                f"Request {request_id!r} cannot be run again: it has logits processors, which are "
                "Python and not in the log.",
                "request_id",
            )
        found, unknown, unrecorded = {request_id: found[request_id]}, [], []
    for name in unrecorded:
        found.pop(name, None)
    loaded = load(replay_config(log.header, options))
    verdict = Verdict(num_requests=len(found), unknown=unknown, unrecorded=unrecorded)
    answers = _answer(loaded, [one.request for one in found.values()])
    for name, recorded in found.items():
        mine, theirs = answers[name], recorded.token_ids
        count = min(len(mine), len(theirs))
        verdict.num_tokens += count
        differ = next((i for i in range(count) if mine[i] != theirs[i]), None)
        if differ is not None and verdict.mismatch is None:
            what = f"output {differ} is {mine[differ]}, {theirs[differ]} is recorded"
            verdict.mismatch = Mismatch(0, name, what)
    return verdict


def _answer(loaded: LoadedRunner, requests: Sequence[Request]) -> dict[str, list[int]]:
    """Run requests to their ends; return the tokens of each."""
    scheduler, runner = Scheduler(replace(loaded.limits, num_drafts=0)), loaded.runner
    answers: dict[str, list[int]] = {}
    for request in requests:
        answers[request.request_id] = []
        scheduler.add(request)
    while (decision := scheduler.plan()) is not None:
        plan = scheduler.commit(decision)
        events = scheduler.retire(plan, runner.execute(plan))
        for name, token in zip(events.request_ids, events.token_ids.tolist(), strict=True):
            answers[name].append(token)
    return answers
