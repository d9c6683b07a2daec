"""Slow, obviously right models of the control plane's parts: what its machines are compared with.

FakeDevice executes step plans on memory that stores, for every position, a hash of the whole
history that was written there: a row that would read anything but its own history is found at
once. OracleCache is the block pool and the prefix index as lists and dicts. run_alone says what a
request must give, from nothing but the request and the limits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..engine.params import RepetitionDetectionParams
from ..engine.plan import Admitted, Scored, StepPlan, StepResult
from ..engine.request import (
    Finished,
    FinishReason,
    IntArray,
    LogprobRows,
    PromptLogprobs,
    Request,
    TokenEvents,
)
from ..engine.sched.scheduler import Scheduler, SchedulerLimits

VOCAB = 7
FLAKY = 1 << 20
"""Seeds with this bit meet logits that are not finite now and then."""
_MODULUS = (1 << 61) - 1


def extend_history(history: int, token_id: int) -> int:
    """Give the hash of a history with one more token."""
    return (history * 1_000_003 + token_id + 1) % _MODULUS


def draw_token(history: int, seed: int, barred: frozenset[int]) -> int:
    """Draw the token after a history: a pure function, as the law demands; -1: not finite.

    barred: ids that may not be drawn now (min_tokens).
    """
    number = (history ^ (seed * 0x9E3779B97F4A7C15)) % _MODULUS
    if seed & FLAKY and number % 13 == 0:
        return -1
    token_id = number % VOCAB
    while token_id in barred:
        token_id = (token_id + 1) % VOCAB
    return token_id


def stop_ids(request: Request) -> tuple[int, ...]:
    """All ids that may end a request."""
    eos = () if request.params.ignore_eos else request.eos_token_ids
    return (*eos, *(request.params.stop_token_ids or ()))


@dataclass
class Alone:
    """What a request gives when it runs alone."""

    token_ids: list[int]
    reason: FinishReason
    stop_reason: int | str | None


def repeats(outputs: list[int], rule: RepetitionDetectionParams | None) -> bool:
    """Compare the end of the outputs with every pattern, written out as often as it must come."""
    if rule is None:
        return False
    return any(
        outputs[-size:] * rule.min_count == outputs[-size * rule.min_count :]
        for size in range(max(1, rule.min_pattern_size), rule.max_pattern_size + 1)
    )


def run_alone(request: Request, root: int, limits: SchedulerLimits) -> Alone:
    """Iterate the token function until the request ends. root: the history of the empty prefix."""
    params = request.params
    history = root
    for token in request.prompt_token_ids.tolist():
        history = extend_history(history, token)
    outputs: list[int] = []
    num_prompt = len(request.prompt_token_ids)
    eos = () if params.ignore_eos else request.eos_token_ids
    while True:
        barred = stop_ids(request) if len(outputs) < params.min_tokens else ()
        token = draw_token(history, request.seed, frozenset(barred))
        outputs.append(token)
        if token == -1:
            return Alone(outputs, "error", None)
        if token in eos:
            return Alone(outputs, "stop", None)
        if token in (params.stop_token_ids or ()):
            return Alone(outputs, "stop", token)
        if len(outputs) == params.max_tokens or num_prompt + len(outputs) == limits.max_model_len:
            return Alone(outputs, "length", None)
        if len(outputs) >= params.min_tokens and repeats(outputs, params.repetition_detection):
            return Alone(outputs, "repetition", "repetition_detected")
        history = extend_history(history, token)


@dataclass
class DeviceSlot:
    """What the device knows of one slot."""

    admitted: Admitted
    root: int
    token_ids: list[int]
    computed: int | None = None
    """None until the first row says from where it computes."""
    blocks: dict[int, int] = field(default_factory=dict)


class FakeDevice:
    """Executes plans in order and checks that each of them is possible and safe."""

    def __init__(
        self,
        limits: SchedulerLimits,
        roots: dict[int, int],
        guess: Callable[[list[int], int], list[int]] | None = None,
    ) -> None:
        """guess: makes the guesses that plans leave to the device, behind what is known."""
        self.limits = limits
        self.roots = roots
        self.guess = guess
        """Root history by request seed, which must be unique: a plan does not name its requests."""
        self.slots: dict[int, DeviceSlot] = {}
        self.memory: dict[tuple[int, int], int] = {}
        """(block, offset) -> hash of the history up to the token there."""
        self.last_step = 0
        self.num_partial_hits = 0

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step; asserts whatever could corrupt it."""
        limits = self.limits
        assert plan.step > self.last_step, (plan.step, self.last_step)
        self.last_step = plan.step
        assert 0 < plan.num_scheduled_tokens <= limits.max_num_batched_tokens, plan.num_tokens
        assert len(set(plan.slots.tolist())) == len(plan.slots), plan.slots
        for array in (plan.released, plan.block_ids, plan.slots, plan.starts, plan.num_tokens):
            assert array.dtype == np.int32, array.dtype
        self._change_slots(plan)
        for source, target in zip(plan.copy_sources, plan.copy_targets, strict=True):
            self._copy(int(source), int(target), plan)
        made = self._guess(plan)
        columns = plan.slots, plan.starts, plan.num_tokens, plan.samples
        by_row = _guesses(plan.told(made))
        rows = list(zip(*(column.tolist() for column in columns), by_row, strict=True))
        for slot, start, count, samples, guesses in rows:
            assert samples or not guesses, (slot, guesses)
            self._write(slot, start, count, samples=samples, guesses=guesses)
        for slot, start, count, _, guesses in rows:
            self._read(slot, start + count, guesses)
            self.slots[slot].computed = start + count
        told = tuple(self._tell(plan, one) for one in plan.scored)
        drawn: list[int] = []
        for slot, _, _, samples, guesses in rows:
            drawn += self._sample(slot, guesses) if samples else []
        tokens = np.array(drawn, np.int32)
        return StepResult(plan.step, tokens, prompt_logprobs=told, guesses=made)

    def _guess(self, plan: StepPlan) -> IntArray | None:
        """Guess what a plan leaves to the device: as many tokens as it says."""
        if plan.drafts is None or plan.drafts.token_ids is not None:
            return None
        assert self.guess is not None, "nobody guesses here"
        made: list[int] = []
        for slot, count in zip(plan.slots.tolist(), plan.drafts.counts.tolist(), strict=True):
            found = self.guess(self.slots[slot].token_ids, count) if count else []
            made += [*found, *[0] * count][:count]
        return np.array(made, np.int32)

    def _tell(self, plan: StepPlan, scored: Scored) -> LogprobRows:
        """Tell of tokens of a prompt, whose ids and positions stand for what is known of them."""
        row, start, end, num_top = scored.row, scored.start, scored.end, scored.num_top
        slot, first = self.slots[int(plan.slots[row])], int(plan.starts[row])
        assert first < start < end <= first + int(plan.num_tokens[row]) + 1, (scored, plan)
        assert end <= slot.admitted.num_prompt_tokens, (scored, slot.admitted)
        assert num_top == slot.admitted.params.prompt_logprobs, (scored, slot.admitted)
        tokens = np.array(slot.token_ids[start:end], np.int32)
        nothing = np.zeros(len(tokens), np.float32)
        return LogprobRows(
            nothing, np.arange(start, end, dtype=np.int32), tokens[:, None], nothing[:, None]
        )

    def _change_slots(self, plan: StepPlan) -> None:
        for slot in plan.released.tolist():
            del self.slots[slot]
        for admitted in plan.admitted:
            assert 0 <= admitted.slot < self.limits.max_num_seqs, admitted.slot
            tokens = admitted.token_ids.tolist()
            root = self.roots[admitted.seed]
            self.slots[admitted.slot] = DeviceSlot(admitted, root, tokens)
        assert len(self.slots) <= self.limits.max_num_seqs, len(self.slots)
        places = zip(plan.block_slots, plan.block_indices, plan.block_ids, strict=True)
        for slot, index, block in places:
            blocks = self.slots[int(slot)].blocks
            assert int(index) == len(blocks), (slot, index, len(blocks))
            assert 0 <= block < self.limits.num_blocks, block
            assert int(block) not in blocks.values(), (slot, block)
            blocks[int(index)] = int(block)

    def readers(self, block: int, writer: int) -> list[int]:
        """List the slots that may have read a block before this step, beside the writer.

        Those admitted in this step (whose `computed` is not known yet) read after all writes.
        """
        return [
            index
            for index, slot in self.slots.items()
            if index != writer and block in slot.blocks.values() and slot.computed is not None
        ]

    def _copy(self, source: int, target: int, plan: StepPlan) -> None:
        assert source not in plan.copy_targets, (source, plan.copy_targets)
        assert not self.readers(target, -1), (target, "a copy overwrites a block in use")
        self.num_partial_hits += 1
        for offset in range(self.limits.block_size):
            self.memory[target, offset] = self.memory.get((source, offset), -1)

    def _write(
        self, slot_index: int, start: int, count: int, *, samples: bool, guesses: list[int]
    ) -> None:
        slot, size = self.slots[slot_index], self.limits.block_size
        known = len(slot.token_ids)
        said = [*slot.token_ids, *guesses]
        assert start >= 0 and count > 0, (slot_index, start, count)
        assert slot.computed in (None, start), (slot_index, slot.computed, start)
        end = start + count
        assert start < known and end <= len(said), (slot_index, start, end, said)
        assert samples == (end == len(said)), (slot_index, end, said)
        assert end <= len(slot.blocks) * size, (slot_index, end, slot.blocks)
        assert end < self.limits.max_model_len, (slot_index, end)
        history = slot.root
        for position, token in enumerate(said[:end]):
            history = extend_history(history, token)
            if position >= start:
                block = slot.blocks[position // size]
                assert not self.readers(block, slot_index), (slot_index, block, "is shared")
                self.memory[block, position % size] = history

    def _read(self, slot_index: int, end: int, guesses: list[int]) -> None:
        """Attend to all positions before `end`: each must hold this sequence's own history."""
        slot, size = self.slots[slot_index], self.limits.block_size
        history = slot.root
        for position, token in enumerate([*slot.token_ids, *guesses][:end]):
            history = extend_history(history, token)
            place = (slot.blocks[position // size], position % size)
            assert self.memory.get(place) == history, (slot_index, position, place)

    def _sample(self, slot_index: int, guesses: list[int]) -> list[int]:
        """Draw a token behind what is known and behind each guess; keep those behind right ones.

        What was written for wrong guesses stays in memory, and is not this sequence's any more.
        """
        slot = self.slots[slot_index]
        known, drawn = list(slot.token_ids), list[int]()
        for guess in [*guesses, None]:
            history = slot.root
            for token in known:
                history = extend_history(history, token)
            admitted = slot.admitted
            early = len(known) - admitted.num_prompt_tokens < admitted.params.min_tokens
            barred = frozenset(admitted.stop_token_ids if early else ())
            drawn.append(draw_token(history, admitted.seed, barred))
            if known == slot.token_ids:
                slot.token_ids.append(drawn[-1])
            known.append(-9 if guess is None else guess)
        slot.computed = len(slot.token_ids) - 1
        return drawn


def _guesses(plan: StepPlan) -> list[list[int]]:
    """Give the guesses of each row."""
    if plan.drafts is None:
        return [[] for _ in plan.slots]
    counts, token_ids = plan.drafts.counts, plan.drafts.token_ids
    assert token_ids is not None and counts.sum() == len(token_ids), plan.drafts
    ends, starts = counts.cumsum().tolist(), (counts.cumsum() - counts).tolist()
    ids = token_ids.tolist()
    return [ids[start:end] for start, end in zip(starts, ends, strict=True)]


def told_tokens(told: PromptLogprobs) -> list[tuple[int, int]]:
    """Return (position, token) of what FakeDevice told of a prompt."""
    positions, tokens = told.rows.ranks.tolist(), told.rows.top_ids[:, 0].tolist()
    assert positions[0] == told.start, told
    return list(zip(positions, tokens, strict=True))


class Rig:
    """A scheduler driving a FakeDevice, for tests that look at single steps."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits, secret=bytes(16))
        self.roots: dict[int, int] = {}
        self.device = FakeDevice(limits, self.roots)
        self.flying: deque[tuple[StepPlan, StepResult]] = deque()
        self.outputs: dict[str, list[int]] = {}
        self.told: dict[str, list[tuple[int, int]]] = {}
        """(position, token) of each token of a prompt that was told of."""
        self.ended: dict[str, Finished] = {}

    def add(self, request: Request, parent: str | None = None) -> str:
        """Add or fork a request (its seed must be its own); gives its id."""
        self.roots[request.seed] = 1 if request.cache_salt is None else hash(request.cache_salt)
        if parent is None:
            self.scheduler.add(request)
        else:
            self.scheduler.fork(parent, request)
        self.outputs[request.request_id] = []
        return request.request_id

    def launch(self) -> StepPlan | None:
        """Plan, commit and execute one step."""
        decision = self.scheduler.plan()
        if decision is None:
            return None
        plan = self.scheduler.commit(decision)
        self.flying.append((plan, self.device.execute(plan)))
        self.scheduler.check()
        return plan

    def land(self) -> TokenEvents:
        """Retire the oldest step."""
        events = self.scheduler.retire(*self.flying.popleft())
        self.scheduler.check()
        for name, token in zip(events.request_ids, events.token_ids.tolist(), strict=True):
            self.outputs[name].append(token)
        for one in events.prompts:
            self.told.setdefault(one.request_id, []).extend(told_tokens(one))
        for finished in events.finished:
            self.ended[events.request_ids[finished.index]] = finished
        return events

    def step(self) -> StepPlan:
        """Launch one step, which must be possible, and land it."""
        plan = self.launch()
        assert plan is not None, "nothing to launch"
        self.land()
        return plan

    def drain(self) -> None:
        """Run until nothing is left."""
        for _ in range(10_000):
            while len(self.flying) < self.limits.overlap and self.launch():
                pass
            if not self.flying:
                break
            self.land()
        assert not self.scheduler.has_unfinished
        assert self.scheduler.num_free_blocks == self.limits.num_blocks


Prefix = tuple[object, tuple[int, ...]]
"""(salt, all tokens up to the end of a block)."""


class OracleCache:
    """Block pool and prefix index, spelled out."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.references = [0] * num_blocks
        self.blank = list(range(num_blocks))
        self.cached: list[int] = []
        self.prefixes: dict[int, Prefix] = {}
        self.orphans: set[Prefix] = set()

    @property
    def free_order(self) -> list[int]:
        """Free blocks in the order in which they are reused."""
        return self.blank + self.cached

    def take(self, count: int) -> list[int]:
        """Take the first free blocks; cached ones lose their prefix."""
        ids = self.free_order[:count]
        self.blank, self.cached = self.blank[count:], self.cached[max(0, count - len(self.blank)) :]
        for block in ids:
            self.references[block] = 1
            self._forget(block)
        return ids

    def _forget(self, block: int) -> None:
        prefix = self.prefixes.pop(block, None)
        if prefix is None or prefix in self.prefixes.values():
            return
        self.orphans.discard(prefix)
        salt, tokens = prefix
        self.orphans |= {
            (other, longer)
            for other, longer in self.prefixes.values()
            if other == salt and longer[: -self.block_size] == tokens
        }

    def hold(self, blocks: list[int]) -> None:
        """Reference blocks."""
        for block in blocks:
            self.references[block] += 1
            if block in self.cached:
                self.cached.remove(block)

    def drop(self, blocks: list[int]) -> None:
        """Let go of blocks; those without a prefix are reused first, in the given order."""
        blank: list[int] = []
        for block in blocks:
            self.references[block] -= 1
            assert self.references[block] >= 0, block
            if self.references[block] == 0:
                (self.cached if block in self.prefixes else blank).append(block)
        self.blank = blank + self.blank

    def publish(self, block: int, prefix: Prefix) -> None:
        """Make a block findable."""
        assert self.references[block] > 0, block
        self.prefixes[block] = prefix

    def find(self, salt: object, tokens: tuple[int, ...]) -> tuple[int, int, int]:
        """Look a sequence up, token by token, leaving one to compute.

        Returns (full blocks, extra tokens of the best next block, the same without orphans).
        """
        size = self.block_size
        known = set(self.prefixes.values())
        full = 0
        while (full + 1) * size < len(tokens) and (salt, tokens[: (full + 1) * size]) in known:
            full += 1
        head, rest = tokens[: full * size], tokens[full * size : -1][:size]
        lengths = [0]
        safe = [0]
        for other, longer in known:
            if other != salt or longer[:-size] != head or len(longer) != len(head) + size:
                continue
            shared = 0
            while shared < len(rest) and longer[len(head) + shared] == rest[shared]:
                shared += 1
            lengths.append(shared)
            if (other, longer) not in self.orphans:
                safe.append(shared)
        return full, max(lengths), max(safe)

    def clear(self) -> None:
        """Forget all prefixes; nothing is in use."""
        assert not any(self.references), self.references
        self.prefixes.clear()
        self.orphans.clear()
        self.blank, self.cached = sorted(range(len(self.references))), []
