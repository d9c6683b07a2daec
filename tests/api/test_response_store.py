"""What is kept of responses: the newest that fit, of each owner its own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from quire.api.response_store import ResponseStore, Stored
from quire.api.responses_schema import OutputMessage, OutputText, ResponseObject

MAX_BYTES = 3000
OWNERS = st.sampled_from(["", "key-a"])
NAMES = st.sampled_from(["resp_1", "resp_2", "resp_3", "resp_4"])
CALLS = st.one_of(
    st.tuples(st.just("keep"), OWNERS, NAMES, st.integers(0, 2600)),
    st.tuples(st.just("drop"), OWNERS, NAMES, st.just(0)),
)


def make_stored(name: str, num_chars: int = 1) -> Stored:
    text = OutputMessage(id="msg_1", status="completed", content=(OutputText("a" * num_chars),))
    response = ResponseObject(id=name, created_at=0, model="m", output=(text,))
    return Stored(response, [{"type": "message", "role": "user", "content": "hi", "id": "msg_0"}])


@given(st.lists(CALLS, max_size=30))
def test_the_newest_that_fit_are_kept(calls: Sequence[tuple[str, str, str, int]]) -> None:
    store = ResponseStore(MAX_BYTES)
    oracle: list[tuple[str, str, Stored]] = []
    for what, owner, name, size in calls:
        was_there = any(one[:2] == (owner, name) for one in oracle)
        oracle = [one for one in oracle if one[:2] != (owner, name)]
        if what == "drop":
            assert store.drop(owner, name) == was_there
        else:
            stored = make_stored(name, size)
            store.keep(owner, stored)
            if len(msgspec.json.encode(stored)) <= MAX_BYTES:
                oracle.append((owner, name, stored))
        while sum(len(msgspec.json.encode(stored)) for _, _, stored in oracle) > MAX_BYTES:
            oracle.pop(0)
        for owner_, name_ in [(o, f"resp_{n}") for o in ("", "key-a") for n in range(1, 5)]:
            found = [stored for o, n, stored in oracle if (o, n) == (owner_, name_)]
            assert store.find(owner_, name_) is (found[0] if found else None)


def test_a_store_of_nothing_keeps_nothing() -> None:
    store = ResponseStore(0)
    store.keep("", make_stored("resp_1"))
    assert store.find("", "resp_1") is None


def test_a_kept_answer_is_given_back_as_a_client_would() -> None:
    stored = make_stored("resp_1")
    question, answer = stored.conversation()
    assert question is stored.items[0]
    assert answer == msgspec.json.decode(msgspec.json.encode(stored.response))["output"][0]
