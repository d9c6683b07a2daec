"""Batches from their creation to their end, and by one server after another."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from quire.api.batch import batches as module
from quire.api.batch.archive import Archive
from quire.api.batch.journal import Journal
from quire.api.batch.schema import ENDED, BatchBody, BatchObject
from quire.api.errors import ApiError
from quire.api.limits import Limits
from quire.api.state import ServerState
from quire.engine.errors import ConfigError, EngineError
from quire.engine.request import BACKGROUND

URL = "/v1/completions"
HOUR_S = 3600


@pytest.fixture
def make_engine(serve_fake: Any) -> Callable[..., Any]:
    """The fake that notes what is asked of it, and how much at once."""

    class Watched(serve_fake.engine):  # type: ignore[misc]  # a class that a fixture gives
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.asked: list[int] = []
            self.priorities: set[int] = set()
            self.tenants: set[str] = set()
            self.most = self.most_tasks = 0
            self.may_go = asyncio.Event()
            self.may_go.set()

        async def prepare(self, prompt: Any, *given: Any, **options: Any) -> Any:
            self.priorities.add(options["priority"])
            self.tenants.add(options["tenant"])
            self.most_tasks = max(self.most_tasks, len(asyncio.all_tasks()))
            return await super().prepare(prompt, *given, **options)

        async def generate(
            self, prompt: Any, *given: Any, **options: Any
        ) -> AsyncGenerator[Any, None]:
            self.asked.append(int(prompt.request.prompt_token_ids[0]))
            await self.may_go.wait()
            async with aclosing(super().generate(prompt, *given, **options)) as outputs:
                async for output in outputs:
                    self.most = max(self.most, self.num_unfinished)
                    yield output

    return Watched


@dataclass
class Bench:
    """One server's files and batches, without the server."""

    state: ServerState
    archive: Archive

    async def upload(self, lines: Sequence[dict[str, Any] | str], owner: str = "") -> str:
        with self.archive.files.draft() as draft:
            for line in lines:
                text = line if isinstance(line, str) else json.dumps(line)
                draft.write(text.encode() + b"\n")
            return (await self.archive.files.keep(draft, owner, "in.jsonl", "batch")).id

    async def create(self, lines: Sequence[Any], owner: str = "") -> str:
        body = BatchBody(
            input_file_id=await self.upload(lines, owner), endpoint=URL, completion_window="1h"
        )
        return (await self.archive.batches.create(owner, body, HOUR_S)).id

    def find(self, batch_id: str, owner: str = "") -> BatchObject:
        batch = self.archive.batches.find(owner, batch_id)
        assert batch is not None
        return batch

    async def end(self, batch_id: str, owner: str = "") -> BatchObject:
        driver = self.archive.batches._drivers.get(batch_id)
        if driver is not None:
            await driver
        batch = self.find(batch_id, owner)
        assert batch.status in ENDED
        return batch

    def lines(self, file_id: str | None, owner: str = "") -> list[dict[str, Any]]:
        file = None if file_id is None else self.archive.files.find(owner, file_id)
        if file is None:
            return []
        return [
            json.loads(line)
            for line in self.archive.files.path(file).read_bytes().split(b"\n")[:-1]
        ]


@asynccontextmanager
async def bench(
    engine: Any, folder: Path | None, clock: Callable[[], float] = lambda: 1000.0, **limits: Any
) -> AsyncIterator[Bench]:
    state = ServerState(engine, limits=Limits(**limits), clock=clock)
    archive = Archive(state, folder)
    archive.open()
    try:
        yield Bench(state, archive)
    finally:
        await archive.close()


def make_line(number: int, **body: Any) -> dict[str, Any]:
    body = {"prompt": [number], "max_tokens": 3} | body
    return {"custom_id": f"c{number}", "method": "POST", "url": URL, "body": body}


def ids_of(lines: list[dict[str, Any]]) -> list[int]:
    return [int(line["custom_id"][1:]) for line in lines]


async def test_thousands_of_lines_a_few_at_a_time(make_engine: Any, tmp_path: Path) -> None:
    """Nothing is held for those that wait, and the answers are in the order of the lines."""
    engine = make_engine()
    async with bench(engine, tmp_path, max_batch_in_flight=7, max_queued_requests=1) as one:
        name = await one.create([make_line(number) for number in range(2000)], "key-a")
        batch = await one.end(name, "key-a")
        assert batch.status == "completed" and batch.error_file_id is None
        assert (batch.request_counts.total, batch.request_counts.completed) == (2000, 2000)
        lines = one.lines(batch.output_file_id, "key-a")
        assert one.archive.files.find("", str(batch.output_file_id)) is None
    assert ids_of(lines) == list(range(2000))
    assert len({line["id"] for line in lines}) == 2000
    assert all(line["error"] is None for line in lines)
    assert all(line["response"]["status_code"] == 200 for line in lines)
    assert all(line["response"]["body"]["choices"][0]["text"] == "abc" for line in lines)
    assert len({line["response"]["request_id"] for line in lines}) == 2000
    assert engine.most == 7 and engine.most_tasks < 20
    assert (engine.priorities, engine.tenants) == ({BACKGROUND}, {""})  # no keys: `user` counts


async def test_without_an_option_half_of_a_step_is_theirs(make_engine: Any, tmp_path: Path) -> None:
    engine = make_engine()
    async with bench(engine, tmp_path) as one:
        await one.end(await one.create([make_line(number) for number in range(300)]))
    assert engine.most == engine.config.max_num_seqs // 2


async def test_batches_take_turns(make_engine: Any, tmp_path: Path) -> None:
    """As soon as both have begun, which a disk may hold up."""
    engine = make_engine()
    engine.may_go.clear()
    async with bench(engine, tmp_path, max_batch_in_flight=1) as one:
        names = [
            await one.create([make_line(number) for number in range(start, start + 50)])
            for start in (0, 100)
        ]
        places = one.archive.batches._places
        for _ in range(5000):
            if len(places._waiters or ()) == len(names):
                break
            await asyncio.sleep(0.001)
        engine.may_go.set()
        for name in names:
            assert (await one.end(name)).status == "completed"
    first = engine.asked[:60]
    assert 20 < sum(number < 100 for number in first) < 40


async def test_requests_that_fail_are_told_apart(make_engine: Any, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {},
        {"temperature": -1},
        {"stream": True},
        {"model": "other"},
        {"nothing": 1},
        {"prompt": [2**20]},
        {},
    ]
    async with bench(make_engine(), tmp_path) as one:
        name = await one.create([make_line(n, **body) for n, body in enumerate(bodies)])
        batch = await one.end(name)
        assert batch.status == "completed"
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (7, 2, 5)
        assert ids_of(one.lines(batch.output_file_id)) == [0, 6]
        wrong = one.lines(batch.error_file_id)
    assert ids_of(wrong) == [1, 2, 3, 4, 5]
    told = [line["response"]["body"]["error"] for line in wrong]
    assert [one["param"] for one in told] == ["temperature", "stream", "model", "nothing", "prompt"]
    assert [line["response"]["status_code"] for line in wrong] == [400, 400, 404, 400, 400]
    assert all(
        line["response"]["request_id"] == line["response"]["body"]["error"]["request_id"]
        for line in wrong
    )


async def test_an_input_with_wrong_lines_fails_before_anything_is_asked(
    make_engine: Any, tmp_path: Path
) -> None:
    engine = make_engine()
    async with bench(engine, tmp_path) as one:
        name = await one.create([make_line(1), "{", "", make_line(1), make_line(2)])
        batch = await one.end(name)
        assert (batch.status, batch.output_file_id) == ("failed", None)
        assert batch.errors is not None and batch.failed_at == 1000
        found = [(fault.line, fault.code) for fault in batch.errors.data]
        assert found == [(2, "invalid_json_line"), (4, "duplicate_custom_id")]
        empty = await one.end(await one.create([" "]))
        assert empty.errors is not None and empty.errors.data[0].code == "empty_file"
        # A line's url is that of its batch.
        other = await one.end(await one.create([{**make_line(1), "url": "/v1/responses"}]))
        assert other.errors is not None and other.errors.data[0].param == "url"
    assert engine.asked == []


async def test_too_many_lines_and_too_many_batches(make_engine: Any, tmp_path: Path) -> None:
    gate = asyncio.Semaphore(0)
    async with bench(make_engine(gate=gate), tmp_path, max_batch_lines=2, max_batches=1) as one:
        long = await one.end(await one.create([make_line(number) for number in range(3)]))
        assert long.errors is not None and long.errors.data[0].code == "too_many_lines"
        await one.create([make_line(0)])
        with pytest.raises(ApiError, match="Try again later") as caught:
            await one.create([make_line(0)])
        assert caught.value.status == 429


def permits(engine: Any, num: int) -> None:
    for _ in range(num):
        engine.gate.release()


@pytest.mark.parametrize("num_answers", [0, 1, 2, 7, 9, 10])
async def test_the_next_server_goes_on(make_engine: Any, tmp_path: Path, num_answers: int) -> None:
    """What was answered is not asked again, and there is one answer to each line."""
    engine = make_engine(gate=asyncio.Semaphore(0), pieces=("a",))
    async with bench(engine, tmp_path, max_batch_in_flight=3) as one:
        name = await one.create([make_line(number) for number in range(10)])
        permits(engine, num_answers)
        await engine.until(
            lambda: (
                len(engine.ended) == num_answers
                and engine.num_unfinished == min(3, 10 - num_answers)
            )
        )
        before = engine.asked.copy()
    assert engine.num_unfinished == 0
    later = make_engine()
    async with bench(later, tmp_path, max_batch_in_flight=3) as two:
        batch = await two.end(name)
        assert batch.status == "completed"
        assert batch.request_counts.completed == 10
        assert ids_of(two.lines(batch.output_file_id)) == list(range(10))
    done = 10 - len(later.asked)
    assert done == len(engine.ended)
    assert len(set(before) | set(later.asked)) == 10


async def test_a_server_that_is_killed_at_any_moment(make_engine: Any, tmp_path: Path) -> None:
    """Each picture of the folder, with a torn line, is one that the next server ends well."""
    engine = make_engine()
    pictures: list[Path] = []
    folder = tmp_path / "first"
    add = Journal.add
    finished: list[str] = []

    def picture(torn: bytes = b"") -> None:
        path = tmp_path / f"picture{len(pictures)}"
        shutil.copytree(folder, path)
        for journal in (path / "batches").glob("*.jsonl"):
            with journal.open("ab") as file:
                file.write(torn)
        pictures.append(path)

    async with bench(engine, folder, max_batch_in_flight=2) as one:
        real = one.archive.files.keep

        async def keep(*given: Any) -> Any:
            picture()
            finished.append((await real(*given)).id)
            picture()

        name = await one.create(
            [make_line(number, n=1) for number in range(6)] + [make_line(6, temperature=-1)]
        )
        picture()
        one.archive.files.keep = keep  # type: ignore[method-assign,assignment]

        def note(self: Journal, answer: Any) -> None:
            picture(b'{"id":"batch_req_0","custom_id":"c5","resp')
            add(self, answer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "add", note)
            await one.end(name)
        picture()
    assert len(finished) == 2 and len(pictures) == 1 + 7 + 4 + 1
    for path in pictures:
        async with bench(make_engine(), path) as two:
            batch = await two.end(name)
            assert batch.status == "completed"
            assert ids_of(two.lines(batch.output_file_id)) == list(range(6))
            assert ids_of(two.lines(batch.error_file_id)) == [6]
            files = {file.id for file in two.archive.files.of("")}
            assert files == {batch.input_file_id, batch.output_file_id, batch.error_file_id}
        assert [one.name for one in (path / "batches").iterdir()] == [f"{name}.json"]


async def test_cancelling_aborts_and_keeps_what_was_answered(
    make_engine: Any, tmp_path: Path
) -> None:
    engine = make_engine(gate=asyncio.Semaphore(0))
    async with bench(engine, tmp_path, max_batch_in_flight=2) as one:
        name = await one.create([make_line(number) for number in range(9)])
        await engine.until(lambda: engine.num_unfinished == 2)
        permits(engine, 6)
        await engine.until(lambda: len(engine.ended) == 2 and engine.num_unfinished == 2)
        assert (await one.archive.batches.cancel(name)).status == "cancelling"
        batch = await one.end(name)
        assert (batch.status, batch.cancelled_at) == ("cancelled", 1000)
        assert len(engine.aborted) == 2
        assert ids_of(one.lines(batch.output_file_id)) == [0, 1]
        assert batch.error_file_id is None
        assert (batch.request_counts.total, batch.request_counts.completed) == (9, 2)
    async with bench(make_engine(), tmp_path) as two:
        assert two.find(name) == batch


async def test_a_batch_is_cancelled_before_it_begins(make_engine: Any, tmp_path: Path) -> None:
    engine = make_engine()
    async with bench(engine, tmp_path) as one:
        name = await one.create([make_line(1)])
        await one.archive.batches.cancel(name)
        assert (await one.end(name)).status == "cancelled"
    assert engine.asked == []


async def test_what_is_not_answered_in_time_expires(make_engine: Any, tmp_path: Path) -> None:
    engine = make_engine(gate=asyncio.Semaphore(0), pieces=("a",))
    async with bench(engine, tmp_path, max_batch_in_flight=2) as one:
        name = await one.create([make_line(number) for number in range(4)])
        permits(engine, 1)
        await engine.until(lambda: len(engine.ended) == 1 and engine.num_unfinished == 2)
    async with bench(make_engine(), tmp_path, lambda: 1000.0 + HOUR_S) as two:
        batch = await two.end(name)
        assert (batch.status, batch.expired_at) == ("expired", 1000 + HOUR_S)
        done = ids_of(two.lines(batch.output_file_id))
        late = two.lines(batch.error_file_id)
        assert len(done) == 1 and sorted(done + ids_of(late)) == [0, 1, 2, 3]
        assert {line["error"]["code"] for line in late} == {"batch_expired"}
        assert batch.request_counts.failed == 3


async def test_an_engine_that_sleeps_or_stops_gives_no_answers(
    make_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    engine = make_engine(failure=EngineError("the engine has stopped"), is_running=True)
    async with bench(engine, tmp_path) as one:
        name = await one.create([make_line(number) for number in range(3)])
        await engine.until(lambda: len(engine.aborted) > 3)
        assert one.find(name).request_counts.completed == 0
        engine.is_sleeping, engine.is_running = True, False
        engine.failure = None
        assert one.find(name).status == "in_progress"
        engine.is_sleeping, engine.is_running = False, True
        batch = await one.end(name)
    assert batch.request_counts.completed == 3 and batch.error_file_id is None


async def test_a_full_disk_fails_the_batch_and_not_the_server(
    make_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Journal, answer: Any) -> None:
        raise OSError(28, "No space left on device")

    async with bench(make_engine(), tmp_path) as one:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", full)
            batch = await one.end(await one.create([make_line(1)]))
        assert batch.status == "failed"
        assert batch.errors is not None and batch.errors.data[0].code == "internal_error"
        assert (await one.end(await one.create([make_line(1)]))).status == "completed"


async def test_a_folder_has_one_server(make_engine: Any, tmp_path: Path) -> None:
    async with bench(make_engine(), tmp_path):
        with pytest.raises(ConfigError, match="used by another server"):
            Archive(ServerState(make_engine()), tmp_path).claim()
    after = Archive(ServerState(make_engine()), tmp_path)
    after.claim()
    await after.close()
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be used"):
        Archive(ServerState(make_engine()), tmp_path / "plain").claim()


async def test_without_a_folder_nothing_stays(make_engine: Any) -> None:
    async with bench(make_engine(), None) as one:
        batch = await one.end(await one.create([make_line(1)]))
        file = one.archive.files.find("", str(batch.output_file_id))
        assert file is not None
        path = one.archive.files.path(file)
        assert path.is_file()
    assert not path.parent.parent.exists()
