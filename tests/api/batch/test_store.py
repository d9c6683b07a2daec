"""Files on disk: of each owner its own, whole or not there, the same for the next server."""

from __future__ import annotations

import asyncio
import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.api.batch.store import FileStore
from quire.api.errors import ApiError
from quire.api.limits import Limits

LIMITS = Limits(max_file_bytes=2000, file_store_bytes=5000)
OWNERS = ("", "key-a")


def make_store(folder: Path, numbers: Any = None, limits: Limits = LIMITS) -> FileStore:
    numbers = count() if numbers is None else numbers
    store = FileStore(limits, clock=lambda: 5.0, new_id=lambda: f"{next(numbers):032x}")
    store.open(folder)
    return store


async def put(store: FileStore, owner: str, data: bytes, purpose: str = "batch") -> str:
    with store.draft() as draft:
        store.check_room(draft, len(data))
        draft.write(data)
        return (await store.keep(draft, owner, "a name", purpose)).id


calls = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(OWNERS), st.integers(0, 2500)),
        st.tuples(st.just("drop"), st.sampled_from(OWNERS), st.integers(0, 9)),
        st.tuples(st.just("reopen"), st.just(""), st.just(0)),
        st.tuples(st.just("abandon"), st.just(""), st.integers(0, 2500)),
    ),
    max_size=20,
)


@settings(max_examples=30)
@given(calls)
def test_a_store_is_what_was_put_into_it(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[str, str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    numbers = count()

    async def live() -> None:
        store, oracle = make_store(folder, numbers), dict[tuple[str, str], bytes]()
        for what, owner, number in calls:
            data = os.urandom(number)
            taken = sum(map(len, oracle.values()))
            fits = number <= 2000 and taken + number <= 5000
            match what:
                case "put" if fits:
                    oracle[owner, await put(store, owner, data)] = data
                case "put":
                    with pytest.raises(ApiError, match="bytes") as caught:
                        await put(store, owner, data)
                    assert caught.value.status == 413
                case "drop" if oracle:
                    place = list(oracle)[number % len(oracle)]
                    del oracle[place]
                    await store.drop(*place)
                case "reopen":
                    store = make_store(folder, numbers)
                case "abandon":
                    with store.draft() as draft:
                        draft.write(data)
                case _:
                    pass
            for owner_ in OWNERS:
                ids = [file.id for file in store.of(owner_)]
                assert ids == [name for whose, name in oracle if whose == owner_]
            for (whose, name), content in oracle.items():
                file = store.find(whose, name)
                assert file is not None and file.bytes == len(content)
                assert store.path(file).read_bytes() == content
                other = next(one for one in OWNERS if one != whose)
                assert store.find(other, name) is None
            assert len(os.listdir(folder)) == 2 * len(oracle)

    asyncio.run(live())


async def test_what_was_not_kept_whole_is_cleared_away(tmp_path: Path) -> None:
    """A server that was killed at any moment leaves one of these."""
    store = make_store(tmp_path)
    kept = await put(store, "key-a", b"whole")
    other = await put(store, "key-a", b"cut")
    (tmp_path / other).write_bytes(b"cu")
    alone = tmp_path / f"file-{9:032x}"
    alone.write_bytes(b"no info")
    (tmp_path / f"file-{8:032x}.json").write_bytes((tmp_path / f"{kept}.json").read_bytes())
    (tmp_path / f"file-{7:032x}").write_bytes(b"whole")
    (tmp_path / f"file-{7:032x}.json").write_bytes(b"{no json")
    (tmp_path / f"{3:032x}.draft").write_bytes(b"half")
    again = make_store(tmp_path, count(100))
    assert [file.id for file in again.of("key-a")] == [kept]
    assert sorted(os.listdir(tmp_path)) == [kept, f"{kept}.json"]


async def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    store = make_store(tmp_path / "files")
    kept = await put(store, "", b"x")
    info = json.loads((tmp_path / "files" / f"{kept}.json").read_bytes())
    (tmp_path / "secret").write_bytes(b"x")
    for name in ("../secret", "/etc/passwd", f"{kept}/../../secret", f"{kept}.json", ""):
        assert store.find("", name) is None
    # Nor does what somebody wrote into the folder.
    info["file"]["id"] = "../secret"
    (tmp_path / "files" / f"{kept}.json").write_text(json.dumps(info))
    assert make_store(tmp_path / "files", count(50)).of("") == []
    assert (tmp_path / "secret").is_file()


async def test_drafts_of_others_count(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store.draft() as one, store.draft() as two, store.draft() as three:
        for draft in (one, two):
            draft.write(b"x" * 2000)
        store.check_room(three, 1000)
        with pytest.raises(ApiError, match="no room"):
            store.check_room(three, 1001)
    store.check_room(three, 2000)
