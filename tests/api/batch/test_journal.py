"""Answers so far: what was written whole counts, whenever the process was killed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire.api.batch.journal import Journal
from quire.api.batch.schema import Answer, LineError, LineResponse

names = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4),
    unique=True,
    max_size=8,
)


def make_answer(custom_id: str, status: int = 200) -> Answer:
    body = msgspec.Raw(json.dumps({"told": custom_id}).encode())
    return Answer(id="x", custom_id=custom_id, response=LineResponse(status, "r", body))


def write_all(journal: Journal, ids: list[str], missing: Any = None) -> tuple[list[Any], list[Any]]:
    good: list[bytes] = []
    bad: list[bytes] = []
    journal.write(ids, good.append, bad.append, missing)
    for lines in (good, bad):
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    return [json.loads(line) for line in good], [json.loads(line) for line in bad]


@given(
    ids=names,
    where=st.integers(0, 8),
    less=st.integers(0, 2) | st.integers(0, 200),
    torn=st.binary(max_size=20),
    data=st.data(),
)
def test_a_journal_cut_anywhere_keeps_what_was_whole(
    ids: list[str], where: int, less: int, torn: bytes, data: Any
) -> None:
    """Also with blocks of another file's bytes behind, as a file system may leave them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers"
        ends = [0]
        with Journal(path) as journal:
            journal.read()
            for name in ids:
                journal.add(make_answer(name, data.draw(st.sampled_from([200, 400]))))
                ends.append(path.stat().st_size)
        num_bytes = max(0, ends[min(where, len(ids))] - less)
        path.write_bytes(path.read_bytes()[:num_bytes] + torn)
        num_whole = sum(end <= num_bytes for end in ends) - 1
        with Journal(path) as journal:
            journal.read()
            # What is torn may, with its new end, be a line that was whole but for that.
            left = [name for name in ids if name in journal]
            assert left[:num_whole] == ids[:num_whole] and len(left) <= num_whole + 1
            assert len(journal) == len(left)
            for name in ids[len(left) :]:
                journal.add(make_answer(name))
            good, bad = write_all(journal, ids[::-1])
        assert {one["custom_id"] for one in good + bad} == set(ids)
        order = {name: place for place, name in enumerate(ids[::-1])}
        for lines in (good, bad):
            places = [order[one["custom_id"]] for one in lines]
            assert places == sorted(places)
        assert all(one["response"]["status_code"] == 200 for one in good)
        assert all(one["response"]["body"] == {"told": one["custom_id"]} for one in good + bad)


def test_what_is_there_twice_counts_once(tmp_path: Path) -> None:
    """As a file has it that somebody put together by hand: what is behind is asked again."""
    path = tmp_path / "answers"
    with Journal(path) as journal:
        journal.read()
        for name in ("a", "b"):
            journal.add(make_answer(name))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[0], lines[1]]))
    with Journal(path) as journal:
        journal.read()
        assert "a" in journal and (len(journal), journal.num_good) == (1, 1)
    assert path.read_bytes() == lines[0]


def test_answers_lie_with_their_kind_and_missing_ones_are_made(tmp_path: Path) -> None:
    with Journal(tmp_path / "answers") as journal:
        journal.read()
        journal.add(make_answer("b", 500))
        journal.add(make_answer("a"))
        assert (len(journal), journal.num_good) == (2, 1)

        def missing(name: str) -> Answer:
            return Answer(id="m", custom_id=name, error=LineError("late", "too late"))

        good, bad = write_all(journal, ["a", "b", "c"], missing)
        assert [one["custom_id"] for one in good] == ["a"]
        assert [one["custom_id"] for one in bad] == ["b", "c"]
        assert bad[1]["response"] is None and bad[1]["error"]["code"] == "late"
        assert [len(lines) for lines in write_all(journal, ["a", "c"])] == [1, 0]


class Full:
    """A disk that is full after some bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file = file
        self.room = room

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        num = min(self.room, len(data))
        self.room -= num
        return int(self._file.write(data[:num]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_an_answer_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    with Journal(path) as journal:
        journal.read()
        journal.add(make_answer("a"))
        before = path.read_bytes()
        full = Full(journal._file, 9)
        journal._file = full  # type: ignore[assignment]
        with pytest.raises(OSError, match="No space"):
            journal.add(make_answer("b"))
        assert path.read_bytes() == before and "b" not in journal
        full.room = 10**6
        journal.add(make_answer("b"))
        assert [one["custom_id"] for one in write_all(journal, ["b", "a"])[0]] == ["b", "a"]
