"""Batches: many requests of one file, answered when nobody else waits.

Batches is the only writer of what is known of a batch (`NAME.json`) and, by a Journal, of its
answers so far (`NAME.jsonl`). Both are read again by the next server with the same folder: a batch
that was in progress goes on behind the answers that were written.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..errors import ApiError
from ..state import ServerState
from .journal import Journal
from .lines import read_line, scan, split
from .run import Work, run_lines
from .schema import (
    BATCH_OUTPUT,
    ENDED,
    Answer,
    BatchBody,
    BatchObject,
    Fault,
    Faults,
    LineError,
    RequestCounts,
    Status,
)
from .store import DRAFT, FileStore, write_whole

logger = logging.getLogger("quire")

NAME = re.compile(r"batch_[0-9a-f]{32}")
NUM_AT_ONCE = 8
"""Batches that are answered at once; they take turns, line by line. Others wait."""
LOOK_S = 0.5
"""How often a sleeping engine is looked at."""
EXPIRED = LineError(
    "batch_expired", "This request could not be answered within the completion window."
)
INTERNAL = Fault(
    code="internal_error", message="The server failed on this batch; its log says why."
)


class Known(Struct, frozen=True):
    """What is written of a batch."""

    owner: str
    batch: BatchObject


class Batches:
    """The batches of one server."""

    def __init__(self, state: ServerState, files: FileStore) -> None:
        self._state = state
        self._files = files
        self._folder = Path()
        limits, most = state.limits, state.engine.config.max_num_seqs
        self._places = asyncio.Semaphore(limits.max_batch_in_flight or max(1, most // 2))
        self._turns = asyncio.Semaphore(NUM_AT_ONCE)
        self._known: dict[str, Known] = {}
        """By id, the oldest first."""
        self._works: dict[str, asyncio.Task[None]] = {}
        """What validates and asks."""
        self._drivers: dict[str, asyncio.Task[None]] = {}
        """What brings batches to their ends."""
        self._writing = asyncio.Lock()

    def open(self, folder: Path) -> None:
        """Read what is known, and go on with what has not ended. OSError."""
        folder.mkdir(exist_ok=True)
        self._folder = folder
        known = [one for path in folder.iterdir() if (one := _read(path)) is not None]
        alive = {one.batch.id for one in known if one.batch.status not in ENDED}
        for path in folder.iterdir():
            if path.suffix == DRAFT or (path.suffix == ".jsonl" and path.stem not in alive):
                path.unlink()
        for one in sorted(known, key=lambda one: (one.batch.created_at, one.batch.id)):
            self._known[one.batch.id] = one
            if one.batch.status not in ENDED:
                self._begin(one.batch.id)

    async def close(self) -> None:
        """Ask nothing more; what was not answered is asked by the next server."""
        drivers = list(self._drivers.values())
        for driver in drivers:
            driver.cancel()
        await asyncio.gather(*drivers, return_exceptions=True)
        async with self._writing:
            pass

    def find(self, owner: str, batch_id: str) -> BatchObject | None:
        """Return a batch; None if this owner has none of this id."""
        known = self._known.get(batch_id)
        return None if known is None or known.owner != owner else known.batch

    def of(self, owner: str) -> list[BatchObject]:
        """List an owner's batches, the oldest first."""
        return [known.batch for known in self._known.values() if known.owner == owner]

    def unfinished(self) -> list[BatchObject]:
        """List everybody's batches that have not ended."""
        return [one.batch for one in self._known.values() if one.batch.status not in ENDED]

    async def create(self, owner: str, body: BatchBody, window_s: int) -> BatchObject:
        """Take a batch on, of an input that is there. ApiError 429 where there are too many."""
        most = self._state.limits.max_batches
        if len(self.unfinished()) >= most:
            raise ApiError(
                f"{most} batches have not ended, and no more may be begun. Try again later.",
                status=429,
                kind="rate_limit_error",
                code="too_many_batches",
                headers={"Retry-After": "60"},
            )
        now = int(self._state.clock())
        batch = BatchObject(
            id=f"batch_{self._state.new_id()}",
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            status="validating",
            created_at=now,
            expires_at=now + window_s,
            metadata=body.metadata,
        )
        assert NAME.fullmatch(batch.id), batch.id
        self._known[batch.id] = Known(owner, batch)
        try:
            await self._write(batch.id)
        except BaseException:
            del self._known[batch.id]
            raise
        self._begin(batch.id)
        return batch

    async def cancel(self, batch_id: str) -> BatchObject:
        """Ask nothing more of a batch; what is being answered is aborted."""
        if self._known[batch_id].batch.status in ("validating", "in_progress"):
            self._set(batch_id, status="cancelling", cancelling_at=self._now())
            work = self._works.get(batch_id)
            if work is not None:
                work.cancel()
            await self._write(batch_id)
        return self._known[batch_id].batch

    def _begin(self, batch_id: str) -> None:
        driver = asyncio.create_task(self._drive(batch_id), name=f"quire-{batch_id}")
        self._drivers[batch_id] = driver
        driver.add_done_callback(lambda _: self._drivers.pop(batch_id))

    async def _drive(self, batch_id: str) -> None:
        """Bring a batch to its end."""
        try:
            if self._status(batch_id) in ("validating", "in_progress"):
                await self._work_in_time(batch_id)
            if self._status(batch_id) not in ENDED:
                await self._finish(batch_id)
        except Exception:
            logger.exception("%s failed", batch_id)
            await self._fail(batch_id, [INTERNAL])
        logger.info("%s: %s", batch_id, self._status(batch_id))

    async def _work_in_time(self, batch_id: str) -> None:
        """Work on a batch until it is done, cancelled, or expires."""
        left_s = max(0.0, self._known[batch_id].batch.expires_at - self._state.clock())
        work = self._works[batch_id] = asyncio.create_task(self._work(batch_id))
        try:
            await asyncio.wait([work], timeout=left_s)
        finally:
            del self._works[batch_id]
            work.cancel()
            await asyncio.wait([work])
        if not work.cancelled():
            work.result()

    async def _work(self, batch_id: str) -> None:
        """Validate a batch, if that was not done, and answer its lines."""
        async with self._turns:
            owner, batch = self._known[batch_id].owner, self._known[batch_id].batch
            path = self._input(batch_id)
            if batch.status == "validating":
                found = await asyncio.to_thread(scan, path, [batch.endpoint], self._state.limits)
                if found.faults:
                    await self._fail(batch_id, found.faults)
                    return
                self._set(batch_id, request_counts=RequestCounts(total=found.num_lines))
                await self._change(batch_id, "in_progress")
            with Journal(self._answers(batch_id)) as journal:
                await asyncio.to_thread(journal.read)
                self._count(batch_id, journal)
                work = Work(
                    state=self._state,
                    path=path,
                    urls=[batch.endpoint],
                    places=self._places,
                    until_ready=self._until_ready,
                    told=partial(self._count, batch_id, journal),
                    tenant=owner,
                    background=True,
                )
                await run_lines(work, journal)

    async def _until_ready(self) -> None:
        # An engine does not say when it wakes up.
        while True:
            if self._state.engine.is_running and not self._state.draining:
                return
            await asyncio.sleep(LOOK_S)

    async def _finish(self, batch_id: str) -> None:
        """Make files of the answers. A server that was killed here is followed by one that does
        all of it again, to files of the same names."""
        batch = self._known[batch_id].batch
        cancelled = batch.status == "cancelling"
        if not cancelled:
            await self._change(batch_id, "finalizing")
        # Of an input that was never validated nothing was asked.
        is_whole = batch.in_progress_at is not None and await self._write_answers(
            batch_id, None if cancelled else self._expired
        )
        ended: Status = "completed" if is_whole else "expired"
        await self._change(batch_id, "cancelled" if cancelled else ended)
        self._answers(batch_id).unlink(missing_ok=True)

    async def _write_answers(self, batch_id: str, missing: Callable[[str], Answer] | None) -> bool:
        """Write the answers in the order of the input's lines; tell whether there are all."""
        owner, batch = self._known[batch_id].owner, self._known[batch_id].batch
        lines = split(self._input(batch_id), self._state.limits.max_body_bytes)
        names = (read_line(data, [batch.endpoint]).custom_id for _, data in lines)
        with (
            Journal(self._answers(batch_id)) as journal,
            self._files.draft() as good,
            self._files.draft() as bad,
        ):
            await asyncio.to_thread(journal.read)
            await asyncio.to_thread(journal.write, names, good.write, bad.write, missing)
            for draft, kind in ((good, "output"), (bad, "error")):
                if draft.num_bytes:
                    name = f"file-{batch_id.removeprefix('batch_')}-{kind}"
                    filename = f"{batch_id}_{kind}.jsonl"
                    await self._files.keep(draft, owner, filename, BATCH_OUTPUT, name)
                    self._set(batch_id, **{f"{kind}_file_id": name})
            self._count(batch_id, journal, lost=missing is not None)
            return len(journal) == batch.request_counts.total

    async def _fail(self, batch_id: str, faults: list[Fault]) -> None:
        self._set(batch_id, errors=Faults(faults))
        await self._change(batch_id, "failed")
        self._answers(batch_id).unlink(missing_ok=True)

    def _expired(self, custom_id: str) -> Answer:
        return Answer(id=f"batch_req_{self._state.new_id()}", custom_id=custom_id, error=EXPIRED)

    def _count(self, batch_id: str, journal: Journal, *, lost: bool = False) -> None:
        """lost: what has no answer will have none."""
        total = self._known[batch_id].batch.request_counts.total
        failed = (total if lost else len(journal)) - journal.num_good
        counts = RequestCounts(total=total, completed=journal.num_good, failed=failed)
        self._set(batch_id, request_counts=counts)

    def _status(self, batch_id: str) -> Status:
        return self._known[batch_id].batch.status

    def _now(self) -> int:
        return int(self._state.clock())

    def _set(self, batch_id: str, **fields: Any) -> None:
        known = self._known[batch_id]
        self._known[batch_id] = Known(known.owner, replace(known.batch, **fields))

    async def _change(self, batch_id: str, status: Status) -> None:
        self._set(batch_id, status=status, **{f"{status}_at": self._now()})
        await self._write(batch_id)

    async def _write(self, batch_id: str) -> None:
        """Write what is known by now. Goes on when it is cancelled."""
        await asyncio.shield(self._save(batch_id))

    async def _save(self, batch_id: str) -> None:
        async with self._writing:
            data = msgspec.json.encode(self._known[batch_id])
            await asyncio.to_thread(write_whole, self._folder / f"{batch_id}.json", data)

    def _input(self, batch_id: str) -> Path:
        known = self._known[batch_id]
        file = self._files.find(known.owner, known.batch.input_file_id)
        if file is None:
            raise FileNotFoundError(f"{known.batch.input_file_id} is not there any more")
        return self._files.path(file)

    def _answers(self, batch_id: str) -> Path:
        return self._folder / f"{batch_id}.jsonl"


def _read(path: Path) -> Known | None:
    """Read what is known of a batch; None for a file that is not about one."""
    if path.suffix != ".json" or not NAME.fullmatch(path.stem):
        return None
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Known)
    except (msgspec.DecodeError, UnicodeDecodeError):
        logger.error("%s cannot be read, and is left as it is", path)
        return None
    return known if known.batch.id == path.stem else None
