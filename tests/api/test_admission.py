"""The bound of the queue: exact, however many come at once, and nothing of a refused one stays."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from quire import AsyncEngine, SamplingParams
from quire.api.admission import MAX_RETRY_S, Admission, Ticket
from quire.api.errors import ApiError
from quire.api.limits import Limits
from quire.api.server import Server, ServerOptions, bind
from quire.engine.request import BACKGROUND

MOST = 6


@dataclass(slots=True, eq=False)
class Line:
    """What an engine says of its queue."""

    num_waiting: int = 0


class AdmissionMachine(RuleBasedStateMachine):
    """Requests come, are handed over, run, and end in any order; the oracle counts answers."""

    def __init__(self) -> None:
        super().__init__()
        self.line = Line()
        self.now_s = 0.0
        self.admission = Admission(self.line, MOST, lambda: self.now_s)
        self.here: dict[Ticket, int] = {}
        """Answers that the engine does not have yet."""

    @rule(num=st.integers(1, MOST + 2))
    def come(self, num: int) -> None:
        queued = sum(self.here.values()) + self.line.num_waiting
        if queued + num <= MOST:
            self.here[self.admission.admit(num)] = num
            return
        with pytest.raises(ApiError) as refused:
            self.admission.admit(num)
        assert refused.value.status == (400 if num > MOST else 429)
        if num <= MOST:
            wait_s = refused.value.headers["Retry-After"]
            assert wait_s.isdecimal() and 1 <= int(wait_s) <= MAX_RETRY_S

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def hand_over(self, data: Any) -> None:
        ticket = data.draw(st.sampled_from(list(self.here)))
        num = data.draw(st.integers(0, self.here[ticket]))
        ticket.hand_over(num)
        self.line.num_waiting += num
        self.here[ticket] -= num

    @rule(num=st.integers(0, 2))
    def pass_by(self, num: int) -> None:
        ticket = self.admission.pass_by()
        ticket.hand_over(num)
        ticket.release()

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def end(self, data: Any) -> None:
        ticket = data.draw(st.sampled_from(list(self.here)))
        ticket.release()
        del self.here[ticket]

    @precondition(lambda self: self.line.num_waiting)
    @rule(seconds=st.floats(0, 100))
    def run_one(self, seconds: float) -> None:
        self.line.num_waiting -= 1
        self.now_s += seconds

    @invariant()
    def nobody_is_counted_twice_or_missed(self) -> None:
        assert self.admission.num_queued == sum(self.here.values()) + self.line.num_waiting <= MOST


AdmissionMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestAdmission = AdmissionMachine.TestCase


def test_a_slow_queue_says_to_wait_longer() -> None:
    now_s = 0.0
    line = Line()
    admission = Admission(line, 10, lambda: now_s)
    for _ in range(5):
        admission.admit(1).release()
        now_s += 2.0
    line.num_waiting = 10
    with pytest.raises(ApiError) as refused:
        admission.admit(1)
    # Five went in ten seconds; half of the ten that wait are gone in ten more.
    assert refused.value.headers["Retry-After"] == "10"


async def test_a_full_queue_is_told_before_anything_is_done(serve_fake: Any) -> None:
    engine = serve_fake.engine(gate=asyncio.Semaphore(0))
    engine.num_waiting = 2
    fake = await serve_fake(engine, limits=Limits(max_queued_requests=3))
    url = f"{fake.url}/v1/completions"

    def tokenize(text: str, **options: Any) -> list[int]:
        raise AssertionError("a refused prompt is not tokenized")

    engine.tokenizer.encode = tokenize
    for body in ({"prompt": ["a", "b"]}, {"prompt": "a", "n": 2}):
        async with fake.session.post(url, json=body) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            error = (await response.json())["error"]
        assert error["type"] == "rate_limit_error"
        assert error["code"] == "queue_full"
        assert "2 of at most 3" in error["message"]
    async with fake.session.post(url, json={"prompt": "a", "n": 4}) as response:
        assert response.status == 400
        assert "at most 3 may wait" in (await response.json())["error"]["message"]
    assert engine.started == []
    assert fake.server.state.admission.num_queued == 2


async def test_what_runs_does_not_wait(serve_fake: Any) -> None:
    """The engine has all answers of a request as soon as it has begun each, and says who waits."""
    engine = serve_fake.engine(gate=asyncio.Semaphore(0))
    fake = await serve_fake(engine, limits=Limits(max_queued_requests=2))
    asking = []
    for num in (2, 4):
        body = {"prompt": ["a", "b"], "stream": True}
        url = f"{fake.url}/v1/completions"
        asking.append(asyncio.create_task(fake.session.post(url, json=body)))
        await engine.until(lambda num=num: len(engine.started) == num)
        assert fake.server.state.admission.num_queued == 0
    for one in asking:
        one.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await engine.until(lambda: len(engine.aborted) == 4)


@pytest.mark.parametrize("bad", [{"prompt": [2**20]}, {"prompt": [5] * 500}, {"temperature": -1}])
async def test_bad_requests_leave_no_place_taken(serve_fake: Any, bad: dict[str, Any]) -> None:
    fake = await serve_fake(limits=Limits(max_queued_requests=1))
    for _ in range(3):
        body = {"prompt": "hi"} | bad
        async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
            assert response.status == 400
    async with fake.session.post(f"{fake.url}/v1/completions", json={"prompt": "hi"}) as response:
        assert response.status == 200
    assert fake.server.state.admission.num_queued == 0


async def test_answers_that_fork_later_wait_too(engine: AsyncEngine) -> None:
    """The first of n computes the prompt; the engine knows of the others, and says so."""
    seen: list[int] = []
    params = SamplingParams(n=3, max_tokens=4, temperature=1, ignore_eos=True)
    stream = engine.generate([7, 8, 9], params, on_added=lambda: seen.append(engine.num_waiting))
    async for _ in stream:
        pass
    assert seen == [3]
    assert engine.num_waiting == 0


async def test_the_background_takes_no_place(engine: AsyncEngine) -> None:
    """What waits behind everybody is not what others wait for, its later answers included."""
    params = SamplingParams(n=3, max_tokens=4, temperature=1, ignore_eos=True)
    seen: list[int] = []
    stream = engine.generate(
        [7, 8, 9],
        params,
        priority=BACKGROUND,
        on_added=lambda: seen.append(engine.num_waiting),
    )
    async for _ in stream:
        pass
    assert seen == [0]


async def test_no_client_passes_the_queue_by_its_priority(serve_fake: Any) -> None:
    fake = await serve_fake()
    for place, body in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": []})):
        given = {**body, "priority": BACKGROUND}
        async with fake.session.post(f"{fake.url}/v1/{place}", json=given) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "priority"


async def test_the_real_queue_never_holds_more(model_folder: Any) -> None:
    """Twenty clients at once, of which one runs: the engine's own count stays within the bound."""
    options: dict[str, Any] = {"load_format": "dummy", "backend": "reference", "max_num_seqs": 1}
    async with AsyncEngine(
        model=str(model_folder), num_kv_blocks=64, num_threads=1, **options
    ) as engine:
        server = Server(engine, ServerOptions(limits=Limits(max_queued_requests=4)))
        await server.start(bind("127.0.0.1", 0))
        most = 0
        front: Any = engine.front
        add = front.add

        def watch(*given: Any) -> Any:
            nonlocal most
            state = add(*given)
            most = max(most, engine.num_waiting)
            return state

        front.add = watch
        async with aiohttp.ClientSession() as session:

            async def ask(n: int) -> int:
                body = {"prompt": [7, 8, 9], "n": n, "max_tokens": 4, "temperature": 1}
                async with session.post(f"{server.url}/v1/completions", json=body) as response:
                    await response.read()
                    return response.status

            statuses = await asyncio.gather(*(ask(1 + place % 3) for place in range(20)))
        await server.stop()
        assert set(statuses) == {200, 429}
        assert 0 < most <= 4
        assert server.state.admission.num_queued == 0
