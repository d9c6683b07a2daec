"""Readers are woken in turn, few at a time; what comes meanwhile is theirs all the same."""

from __future__ import annotations

import asyncio

from quire.engine.waking import AT_ONCE, Waking


async def turn() -> None:
    """One turn of the loop."""
    await asyncio.sleep(0)


async def test_few_are_woken_in_a_turn_and_all_in_the_end() -> None:
    waking = Waking()
    events = {f"r{index}": waking.enter(f"r{index}") for index in range(3 * AT_ONCE + 1)}
    waking.tell(events)
    for woken in (1, 2, 3):
        assert sum(event.is_set() for event in events.values()) == woken * AT_ONCE
        await turn()
    assert all(event.is_set() for event in events.values())


async def test_a_reader_that_waits_is_woken_once_and_does_not_lose_its_place() -> None:
    waking = Waking()
    events = {f"r{index}": waking.enter(f"r{index}") for index in range(2 * AT_ONCE)}
    waking.tell(events)
    first, last = events["r0"], events[f"r{2 * AT_ONCE - 1}"]
    assert first.is_set() and not last.is_set()
    first.clear()
    # Another step for all of them: who was woken waits behind who was not.
    waking.tell(events)
    await turn()
    assert last.is_set() and not first.is_set()
    await turn()
    assert first.is_set()


async def test_a_step_lands_between_readers_and_not_behind_all() -> None:
    """What drives the engine is ready when the readers are woken."""
    waking, order = Waking(), list[str]()
    ready = asyncio.Event()

    async def read(name: str, event: asyncio.Event) -> None:
        await event.wait()
        order.append(name)

    async def drive() -> None:
        await ready.wait()
        order.append("step")

    names = [f"r{index}" for index in range(20 * AT_ONCE)]
    tasks = [asyncio.create_task(read(name, waking.enter(name))) for name in names]
    tasks.append(asyncio.create_task(drive()))
    await turn()
    waking.tell(names)
    ready.set()
    await asyncio.gather(*tasks)
    assert order.index("step") <= 2 * AT_ONCE
    assert [name for name in order if name != "step"] == names


async def test_who_leaves_is_not_woken() -> None:
    waking = Waking()
    events = {f"r{index}": waking.enter(f"r{index}") for index in range(AT_ONCE + 2)}
    waking.tell(events)
    gone = f"r{AT_ONCE}"
    waking.leave(gone)
    waking.tell([gone, "nobody"])
    await turn()
    assert not events[gone].is_set() and events[f"r{AT_ONCE + 1}"].is_set()
    for name in events:
        if name != gone:
            waking.leave(name)
    assert not waking
