"""The answers of a batch so far: lines that are only ever added to one file.

What a process that was killed had written counts; a line that it did not write whole does not, and
is asked again. In the end the answers are written anew, in the order of the input's lines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from .schema import Answer


class Place(NamedTuple):
    """Where an answer lies in the file."""

    start: int
    num_bytes: int
    is_good: bool


class Journal:
    """The answers of one batch: its only writer. A context manager."""

    def __init__(self, path: Path) -> None:
        """OSError where the file cannot be used. What is there already counts once it is read."""
        self._path = path
        self._file = path.open("a+b", buffering=0)
        self._places: dict[str, Place] = {}
        """By custom_id."""
        self.num_good = 0
        """Answers with status 200."""
        self._end = 0

    def read(self) -> None:
        """Read what is there already, once; cut off what was not written whole. OSError."""
        with self._path.open("rb") as file:
            for data in file:
                answer = _decode(data)
                if answer is None or answer.custom_id in self._places:
                    break
                self._note(answer, len(data))
        self._file.truncate(self._end)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __contains__(self, custom_id: str) -> bool:
        return custom_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, answer: Answer) -> None:
        """Write an answer; one that cannot be written whole leaves nothing. OSError."""
        assert answer.custom_id not in self._places, answer.custom_id
        data = msgspec.json.encode(answer) + b"\n"
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._end)
            raise
        self._note(answer, len(data))

    def write(
        self,
        custom_ids: Iterable[str],
        good: Callable[[bytes], object],
        bad: Callable[[bytes], object],
        missing: Callable[[str], Answer] | None = None,
    ) -> None:
        """Write all answers in the order of their ids: those with status 200, and the others.

        missing: makes an answer for an id that has none; None: it is left out.
        """
        for custom_id in custom_ids:
            place = self._places.get(custom_id)
            if place is not None:
                data = os.pread(self._file.fileno(), place.num_bytes, place.start)
                assert len(data) == place.num_bytes, "nobody else writes the file"
                (good if place.is_good else bad)(data)
            elif missing is not None:
                bad(msgspec.json.encode(missing(custom_id)) + b"\n")

    def _note(self, answer: Answer, num_bytes: int) -> None:
        is_good = answer.response is not None and answer.response.status_code == 200
        self._places[answer.custom_id] = Place(self._end, num_bytes, is_good)
        self._end += num_bytes
        self.num_good += is_good


def _decode(data: bytes) -> Answer | None:
    """Decode a line that was written whole; None for another."""
    if not data.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(data, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
