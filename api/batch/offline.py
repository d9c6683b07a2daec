"""`quire run-batch`: the requests of a file, answered without a server.

Answers are written to OUTPUT.partial as they come; at the end OUTPUT has all of them in the order
of the input, in one step. What was ended before that goes on with `resume`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from ...engine.config import EngineConfig
from ...engine.errors import ConfigError, EngineError, QuireError
from ..limits import Limits
from ..state import ServerState
from .endpoints import ENDPOINTS
from .journal import Journal
from .lines import Scan, read_line, scan, split
from .run import Work, run_lines

if TYPE_CHECKING:
    from ...engine.async_engine import AsyncEngine

logger = logging.getLogger("quire")

STANDARD = "-"
PARTIAL, DRAFT = ".partial", ".draft"
LIMITS = Limits(max_batch_lines=2**31)
URLS = tuple(ENDPOINTS)
NUM_SHOWN = 10
"""Wrong lines that are told."""


class Job(NamedTuple):
    """What is read and written, and how."""

    input: str
    """A file; "-": standard input."""
    output: str
    """A file; "-": standard output."""
    resume: bool
    """Go on with what an earlier run has answered."""
    max_in_flight: int | None
    """Requests that are answered at once; None: twice as many as a step takes."""


class InputError(QuireError):
    """An input that cannot be asked."""


def run_batch(config: EngineConfig, job: Job) -> int:
    """Answer all lines; return the exit code. QuireError where that cannot be begun or finished."""
    if job.output == STANDARD and job.resume:
        raise ConfigError("resume needs an output that is a file.")
    with tempfile.TemporaryDirectory(prefix="quire-batch-") as folder:
        # An output that goes nowhere yet is not lost with a reader that goes away.
        to_file = job.output != STANDARD
        output = Path(job.output) if to_file else Path(folder) / "output"
        try:
            with _input(job, Path(folder)) as path:
                found = scan(path, URLS, LIMITS)
                _check(found, job.input)
                with _gathered(output, resume=job.resume) as journal:
                    asyncio.run(_answer(config, job, path, found, journal))
                    _finish(path, output, journal)
                    left = len(journal) - journal.num_good
            if not to_file:
                with output.open("rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.flush()
        except OSError as error:
            raise ConfigError(f"{error.filename or job.output}: {error.strerror}.") from error
    if left:
        logger.warning("%d of %d requests have an error", left, found.num_lines)
    return 0


@contextmanager
def _input(job: Job, folder: Path) -> Iterator[Path]:
    """A file that can be read twice."""
    if job.input != STANDARD:
        path = Path(job.input)
        if not path.is_file():
            raise ConfigError(f"{job.input}: there is no such file.")
        yield path
        return
    path = folder / "input"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    yield path


def _check(found: Scan, name: str) -> None:
    """InputError that tells the first wrong lines."""
    if not found.faults:
        return
    told = [
        fault.message if fault.line is None else f"line {fault.line}: {fault.message}"
        for fault in found.faults[:NUM_SHOWN]
    ]
    more = [f"and {len(found.faults) - NUM_SHOWN} more"] if len(found.faults) > NUM_SHOWN else []
    raise InputError("\n  ".join([f"{name} cannot be asked:", *told, *more]))


@contextmanager
def _gathered(output: Path, *, resume: bool) -> Iterator[Journal]:
    """The answers so far; an empty file of them is not left behind.

    ConfigError for those of an earlier run that is not gone on with.
    """
    if output.is_dir():
        raise ConfigError(f"{output} is a folder: give a file.")
    path = output.with_name(output.name + PARTIAL)
    if not resume and path.exists() and path.stat().st_size:
        raise ConfigError(
            f"{path} has answers of an earlier run: go on with --resume, or delete it."
        )
    with Journal(path) as journal:
        journal.read()
        try:
            yield journal
        finally:
            if not len(journal):
                path.unlink(missing_ok=True)


async def _answer(
    config: EngineConfig, job: Job, path: Path, found: Scan, journal: Journal
) -> None:
    """Answer what has no answer yet."""
    from tqdm import tqdm

    from ...engine.async_engine import AsyncEngine  # torch: a wrong input is known before it loads

    if len(journal) >= found.num_lines:
        return
    async with AsyncEngine(config) as engine:
        with tqdm(total=found.num_lines, initial=len(journal), desc="requests") as bar:
            work = Work(
                state=ServerState(engine, limits=LIMITS),
                path=path,
                urls=URLS,
                places=asyncio.Semaphore(job.max_in_flight or 2 * engine.config.max_num_seqs),
                until_ready=lambda: _until_ready(engine),
                told=bar.update,
            )
            await run_lines(work, journal)


async def _until_ready(engine: AsyncEngine) -> None:
    """EngineError where no answer will come."""
    if not engine.is_running:
        raise EngineError("the engine has died; its log says why")


def _finish(path: Path, output: Path, journal: Journal) -> None:
    """Write the answers in the order of the input, all or nothing."""
    names = (read_line(data, URLS).custom_id for _, data in split(path, LIMITS.max_body_bytes))
    draft = output.with_name(output.name + DRAFT)
    with draft.open("wb") as file:
        journal.write(names, file.write, file.write)
        _sync(file)
    draft.replace(output)
    output.with_name(output.name + PARTIAL).unlink()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
