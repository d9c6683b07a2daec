"""Readers are called in turn, few at a time; what comes meanwhile is theirs all the same."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from quire.engine.waking import AT_ONCE, Waking


async def turn() -> None:
    """One turn of the loop."""
    await asyncio.sleep(0)


def make_waking(count: int) -> tuple[Waking, list[str], list[str]]:
    """Readers, their names and who was called."""
    waking, called = Waking(), list[str]()
    names = [f"r{index}" for index in range(count)]
    for name in names:
        waking.enter(name, partial(called.append, name))
    return waking, names, called


async def test_few_are_called_in_a_turn_and_all_in_the_end() -> None:
    waking, names, called = make_waking(3 * AT_ONCE + 1)
    waking.tell(names)
    assert not called, "what tells of a step goes on first"
    for num_turns in (1, 2, 3):
        await turn()
        assert called == names[: num_turns * AT_ONCE]
    await turn()
    assert called == names


async def test_a_reader_that_waits_is_called_once_and_does_not_lose_its_place() -> None:
    waking, names, called = make_waking(2 * AT_ONCE)
    waking.tell(names)
    await turn()
    # Another step for all of them: who was called waits behind who was not.
    waking.tell(names)
    await turn()
    assert called == names
    await turn()
    assert called == [*names, *names[:AT_ONCE]]


async def test_a_step_lands_between_readers_and_not_behind_all() -> None:
    """What drives the engine is ready when the readers are called."""
    waking, names, called = make_waking(20 * AT_ONCE)
    ready = asyncio.Event()

    async def drive() -> None:
        await ready.wait()
        called.append("step")

    task = asyncio.create_task(drive())
    await turn()
    waking.tell(names)
    ready.set()
    await task
    while len(called) <= len(names):
        await turn()
    assert called.index("step") <= 2 * AT_ONCE
    assert [name for name in called if name != "step"] == names


async def test_who_leaves_is_not_called() -> None:
    waking, names, called = make_waking(AT_ONCE + 2)
    waking.tell(names)
    gone = f"r{AT_ONCE}"
    waking.leave(gone)
    waking.tell([gone, "nobody"])
    await turn()
    await turn()
    assert called == [name for name in names if name != gone]
    for name in called:
        waking.leave(name)
    assert not waking


async def test_a_reader_may_have_others_leave() -> None:
    waking, names, called = make_waking(2)
    waking.enter("first", lambda: waking.leave("r1"))
    waking.tell(["first", *names])
    await turn()
    assert called == ["r0"]


async def test_a_reader_that_fails_holds_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Its fault is logged, since nobody waits for it here; the others read on."""
    waking, names, called = make_waking(AT_ONCE)
    waking.enter("bad", partial(names.remove, "nobody"))
    waking.tell(["bad", *names])
    await turn()
    await turn()
    assert called == names
    assert "what reads request bad failed" in caplog.text
    waking.tell(names[:1])
    await turn()
    assert called == [*names, names[0]], "it goes on to call"
