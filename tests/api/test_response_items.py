"""Which items an answer that is cut leaves incomplete: the last one alone."""

from __future__ import annotations

import pytest
from quire.api.response_items import OutputItems
from quire.engine.parsing.events import Arguments, CallBegin, CallEnd, Content, Event, Reasoning

CALL: list[Event] = [CallBegin("f", "call_1"), Arguments("{}")]


@pytest.mark.parametrize(
    ("pushed", "rest", "statuses"),
    [
        ([Content("a")], [], ["incomplete"]),
        ([*CALL, CallEnd()], [], ["completed"]),
        (CALL, [CallEnd()], ["incomplete"]),
        ([Content("a")], [*CALL, CallEnd()], ["completed", "incomplete"]),
        ([Reasoning("a")], [Content("b")], ["completed", "incomplete"]),
        ([], [], ["incomplete"]),
    ],
)
def test_what_is_open_at_a_cut_is_incomplete(
    pushed: list[Event], rest: list[Event], statuses: list[str]
) -> None:
    for cut in (True, False):
        items = OutputItems(lambda: "1")
        items.push(pushed)
        items.finish(rest, cut=cut)
        wanted = statuses if cut else ["completed"] * len(statuses)
        assert [item.status for item in items.done] == wanted
