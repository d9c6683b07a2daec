"""Guesses in the scheduler: what they cost, what they never do; lookup in the tokens themselves."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from quire.engine.config import SEVERAL, GuessCosts
from quire.engine.params import SamplingParams
from quire.engine.plan import VOID, Drafts, StepPlan, StepResult
from quire.engine.request import Request
from quire.engine.sched.scheduler import Scheduler
from quire.engine.spec.ngram import NgramDrafter
from quire.fuzz.drafters import KnowingDrafter
from quire.fuzz.strategies import make_limits, make_request


def lookup(tokens: list[int], count: int, least: int, most: int) -> list[int]:
    """Slowly: behind the latest place of the longest n-gram, one with `count` behind it first."""
    best: list[int] = []
    for size in range(least, min(most, len(tokens) - 1) + 1):
        tail = tokens[len(tokens) - size :]
        ends = [e for e in range(size, len(tokens)) if tokens[e - size : e] == tail]
        if not ends:
            break
        end = max([e for e in ends if e + count <= len(tokens)] or ends)
        best = tokens[end : end + count]
    return best


@given(
    tokens=st.lists(st.sampled_from((0, 1, 2, 256, 65536, 2**31 - 1)), min_size=1, max_size=30),
    count=st.integers(1, 6),
    least=st.integers(1, 3),
    more=st.integers(0, 3),
)
def test_lookup_finds_what_followed(tokens: list[int], count: int, least: int, more: int) -> None:
    """Ids whose bytes look like others' at odd places, too."""
    drafter = NgramDrafter(least, least + more)
    given = list(drafter.propose(0, np.array(tokens, np.int32), count))
    assert given == lookup(tokens, count, least, least + more)


class Fixed(NgramDrafter):
    """Always guesses the same."""

    def __init__(self, *guesses: int) -> None:
        self.guesses = guesses

    def propose(self, slot: int, token_ids: np.ndarray, count: int) -> list[int]:
        return list(self.guesses[:count])


class Told(NgramDrafter):
    """Notes what it is told of lives."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.calls: list[tuple[object, ...]] = []

    def enter(self, slot: int, request: Request, token_ids: np.ndarray) -> None:
        self.calls.append(("enter", slot, request.request_id, token_ids.tolist()))

    def leave(self, slot: int, token_ids: np.ndarray, *, ended: bool) -> None:
        self.calls.append(("leave", slot, token_ids.tolist(), ended))

    def pass_step(self) -> None:
        self.calls.append(("step",))

    def taken(self) -> list[tuple[object, ...]]:
        """What it was told since the last time, steps aside."""
        calls, self.calls = self.calls, []
        return [call for call in calls if call != ("step",)]


def run_step(scheduler: Scheduler, drawn: list[int]) -> tuple[StepPlan, list[int]]:
    """Plan a step and land it with these tokens; return the plan and the tokens that count."""
    decision = scheduler.plan()
    assert decision is not None
    plan = scheduler.commit(decision)
    scheduler.check()
    events = scheduler.retire(plan, StepResult(plan.step, np.array(drawn, np.int32)))
    scheduler.check()
    return plan, events.token_ids.tolist()


def begun(drafter: Fixed, **params: object) -> Scheduler:
    """A scheduler with one sequence that has just drawn its first token, 9."""
    limits = replace(make_limits(block_size=2), num_drafts=3)
    scheduler = Scheduler(limits, drafter=drafter)
    asked = SamplingParams(**({"max_tokens": 20} | params))  # type: ignore[arg-type]
    scheduler.add(make_request("a", [1, 2, 3], params=asked, eos=(5,)))
    assert run_step(scheduler, [9])[1] == [9]
    return scheduler


def test_what_is_drawn_behind_right_guesses_counts() -> None:
    for drawn, counts in (
        ([6, 7, 8, 4], [6, 7, 8, 4]),
        ([6, 7, 4, 4], [6, 7, 4]),
        ([4, 7, 8, 4], [4]),
        ([6, 7, VOID, 4], [6, 7]),
        ([6, -1, 8, 4], [6, -1]),
        ([6, 7, 5, 4], [6, 7, 5]),
    ):
        scheduler = begun(Fixed(6, 7, 8))
        plan, told = run_step(scheduler, drawn)
        assert plan.starts.tolist() == [3] and plan.num_tokens.tolist() == [4]
        assert told == counts, drawn
        if counts[-1] not in (-1, 5):
            following = scheduler.plan()
            assert following is not None and following.grant.starts.tolist() == [3 + len(counts)]


def test_a_guess_that_ends_the_sequence_is_its_last_token() -> None:
    """5 ends it, as a guess that was right; what was drawn behind it is nobody's."""
    scheduler = begun(Fixed(6, 5, 8))
    _, told = run_step(scheduler, [6, 5, 8, 4])
    assert told == [6, 5] and not scheduler.has_unfinished


def test_nobody_guesses_beyond_the_last_token() -> None:
    scheduler = begun(Fixed(6, 7, 8), max_tokens=3)
    plan, told = run_step(scheduler, [6, 7])
    assert plan.num_tokens.tolist() == [2] and told == [6, 7] and not scheduler.has_unfinished


def test_guesses_take_neither_the_budget_nor_the_blocks_of_others() -> None:
    """They are the first to be left out: nobody is preempted or cut for one."""
    limits = replace(make_limits(block_size=1, num_blocks=5, budget=4), num_drafts=3)
    scheduler = Scheduler(limits, drafter=Fixed(6, 7, 8))
    scheduler.add(make_request("a", [1, 2, 3], params=SamplingParams(max_tokens=3)))
    run_step(scheduler, [9])
    plan, _ = run_step(scheduler, [6, 7])
    assert plan.drafts is not None and plan.num_tokens.tolist() == [2]


def test_who_is_never_right_guesses_rarely() -> None:
    scheduler = begun(Fixed(6), max_tokens=60)
    num_guesses = 0
    for _ in range(50):
        decision = scheduler.plan()
        assert decision is not None
        num_guesses += decision.grant.drafts is not None
        rows = 1 if decision.grant.drafts is None else 2
        assert run_step(scheduler, [4] * rows)[1] == [4]
    assert num_guesses < 25, "half of the steps"


def test_a_crowd_guesses_only_where_that_is_cheap() -> None:
    """Arithmetic is what a step of many rows takes, and there a guess costs what a token does."""
    for crowd, guesses in ((0.01, True), (0.5, False)):
        costs = GuessCosts(token=0.01, crowd=crowd, step=0.0)
        limits = make_limits(max_num_seqs=2 * SEVERAL)
        limits = replace(limits, num_drafts=2, guess_costs=costs)
        scheduler = Scheduler(limits, drafter=Fixed(6, 7))
        for number in range(limits.max_num_seqs):
            scheduler.add(make_request(f"{number}", [1, 2, 3], params=SamplingParams(max_tokens=9)))
        run_step(scheduler, [9] * limits.max_num_seqs)
        decision = scheduler.plan()
        assert decision is not None and (decision.grant.drafts is not None) == guesses


def test_logits_processors_are_not_asked_about_guesses() -> None:
    scheduler = begun(Fixed(6, 7), logits_processors=[lambda outputs, logits: logits])
    plan, _ = run_step(scheduler, [4])
    assert plan.drafts is None


def test_drafters_are_told_of_lives() -> None:
    """Who ends, is aborted, preempted or fails leaves with all that is known of it, and no more."""
    told = Told()
    scheduler = Scheduler(replace(make_limits(), num_drafts=2), drafter=told)
    scheduler.add(make_request("a", [1, 2, 3], params=SamplingParams(max_tokens=2)))
    run_step(scheduler, [9])
    assert told.calls == [("enter", 0, "a", [1, 2, 3]), ("step",)], "a step comes behind its own"
    told.taken()
    run_step(scheduler, [8])
    assert told.taken() == [("leave", 0, [1, 2, 3, 9, 8], True)]
    scheduler.add(make_request("b", [4, 5]))
    run_step(scheduler, [7])
    scheduler.abort("b")
    assert told.taken() == [("enter", 0, "b", [4, 5]), ("leave", 0, [4, 5, 7], True)]
    scheduler.add(make_request("c", [4, 5]))
    run_step(scheduler, [7])
    scheduler.add(make_request("d", [6]))
    decision = scheduler.plan()
    assert decision is not None
    scheduler.commit(decision)
    assert told.taken() == [("enter", 0, "c", [4, 5]), ("enter", 1, "d", [6])]
    scheduler.fail("the device died")
    assert told.taken() == [("leave", 0, [4, 5, 7], True), ("leave", 1, [6], True)]


def test_who_is_preempted_enters_again_with_all_it_knows() -> None:
    told = Told()
    limits = make_limits(block_size=1, num_blocks=6, overlap=1)
    scheduler = Scheduler(replace(limits, num_drafts=1), drafter=told)
    scheduler.add(make_request("a", [1, 2], params=SamplingParams(max_tokens=4)))
    scheduler.add(make_request("b", [3], params=SamplingParams(max_tokens=4)))
    drawn = iter(range(50, 99))
    while scheduler.has_unfinished:
        decision = scheduler.plan()
        assert decision is not None
        plan = scheduler.commit(decision)
        tokens = [next(drawn) for _ in plan.sampled()[0]]
        scheduler.retire(plan, StepResult(plan.step, np.array(tokens, np.int32)))
    assert scheduler.stats.num_preemptions == 1
    calls = told.taken()
    (left,) = [call for call in calls if call[0] == "leave" and not call[-1]]
    again = calls[calls.index(left) + 1 :]
    assert ("enter", "b", left[2]) in [(call[0], call[2], call[3]) for call in again if call[3:]]
    assert len([call for call in calls if call[0] == "leave" and call[-1] is True]) == 2


def test_who_never_guesses_is_nobodys() -> None:
    """A request of one token has nothing to guess: its prompt is read in vain."""
    told = Told()
    scheduler = Scheduler(replace(make_limits(), num_drafts=2), drafter=told)
    one = SamplingParams(max_tokens=1)
    processed = SamplingParams(max_tokens=2, logits_processors=[lambda outputs, logits: logits])
    for name, params in (("a", one), ("b", processed)):
        scheduler.add(make_request(name, [1, 2], params=params))
    while scheduler.has_unfinished:
        run_step(scheduler, [4, 5] if len(scheduler._alive) == 2 else [4])
    assert told.taken() == []


def test_plans_say_which_tokens_are_drawn_where() -> None:
    nothing = np.zeros(0, np.int32)
    plan = StepPlan(
        step=1,
        admitted=(),
        released=nothing,
        block_slots=nothing,
        block_indices=nothing,
        block_ids=nothing,
        copy_sources=nothing,
        copy_targets=nothing,
        slots=np.array([4, 2, 7], np.int32),
        starts=np.array([10, 0, 5], np.int32),
        num_tokens=np.array([3, 6, 1], np.int32),
        samples=np.array([True, False, True]),
        drafts=Drafts(np.array([2, 0, 0], np.int32), np.array([50, 60], np.int32)),
    )
    slots, positions = plan.sampled()
    assert slots.tolist() == [4, 4, 4, 7] and positions.tolist() == [11, 12, 13, 6]
    assert plan.guesses().tolist() == [-1, 50, 60, -1]  # type: ignore[union-attr]
    for drawn, right in (
        ([50, 60, 1, 2], [True, True, True, True]),
        ([50, 61, 1, 2], [True, True, False, True]),
        ([51, 60, 1, 2], [True, False, False, True]),
    ):
        assert plan.right(np.array(drawn, np.int32)).tolist() == right


def test_a_knowing_drafter_is_right_and_wrong() -> None:
    text = list(range(7)) * 20
    drafter = KnowingDrafter(lambda: [text], 7)
    drafter.enter(0, make_request("a", [0]), np.array([0], np.int32))
    rights = []
    for size in range(1, 100):
        guesses = drafter.propose(0, np.array(text[:size], np.int32), 4)
        rights.append(guesses == text[size : size + len(guesses)])
    assert 20 < sum(rights) < 90
