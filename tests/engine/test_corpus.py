"""Commands that once made a machine fail: done again, each time. And that what fails is kept."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import strategies as st
from quire.engine.kv.block_pool import BlockPool
from quire.fuzz import run
from quire.fuzz.commands import DrawnData, Heading, StaleError, files, plain, read, repeat, write
from quire.fuzz.scheduler_machine import SchedulerMachine
from quire.fuzz.strategies import make_limits

FILES = list(files(run.CORPUS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_once_failed_holds(path: Path) -> None:
    heading, commands = read(path)
    assert heading.note, "a file says what it is kept for"
    assert commands[0].do == "start"
    run.repeat_file(path)


def test_there_is_something_of_each_machine() -> None:
    assert {read(path)[0].machine for path in FILES} == {one.__name__ for one in run.MACHINES}


@pytest.mark.parametrize("machine", ["SchedulerMachine", "AllocatorMachine"])
def test_a_failure_is_kept_as_commands_that_fail_again(
    machine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A planted fault: blocks of a sequence that ends are freed, and what holds them too."""
    hold = BlockPool.hold

    def forgetful(self: BlockPool, blocks: object) -> None:
        hold(self, blocks[:-1])  # type: ignore[index]

    with monkeypatch.context() as patch:
        patch.setattr(BlockPool, "hold", forgetful)
        found = run.explore(float("inf"), 7, tmp_path, only=machine)
        (path,) = files(tmp_path)
        assert str(path) in found.failures[0]
        heading, commands = read(path)
        assert (heading.machine, commands[0].do) == (machine, "start")
        assert f"--machine {machine} --seed " in heading.command
        with pytest.raises(Exception) as again:
            run.repeat_file(path)
        assert heading.note.startswith(f"{type(again.value).__name__}: ")
    run.repeat_file(path)


def test_structs_are_written_without_their_defaults() -> None:
    written = plain(make_limits(num_blocks=7))
    assert written["num_blocks"] == 7 and "tenant_weights" not in written
    assert msgspec.convert(written, type(make_limits())) == make_limits(num_blocks=7)


def test_what_cannot_be_drawn_any_more_is_left_out(tmp_path: Path) -> None:
    data = DrawnData(["r1", 3])
    assert data.draw(st.sampled_from(["r0", "r1"])) == "r1"
    assert data.draw(st.integers()) == 3
    with pytest.raises(StaleError):
        data.draw(st.integers())
    with pytest.raises(StaleError):
        DrawnData(["y"]).draw(st.sampled_from(["x"]))
    path = tmp_path / "stale.jsonl"
    write(path, Heading("SchedulerMachine", "stale"), [])
    lines = [
        path.read_text().strip(),
        '{"do":"start","given":{"limits":' + msgspec.json.encode(plain(make_limits())).decode()
        + "}}",
        '{"do":"abort","drawn":["r7"]}',
        '{"do":"no such rule"}',
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    made = repeat(SchedulerMachine, read(path)[1])
    assert isinstance(made, SchedulerMachine) and made.num_requests == 0
