"""The view of the engine: it shows what the engine does, and nobody pays who does not look."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, expect

from .conftest import NOISE, STORY, Open, ended, picture, say


def is_watched(demo: Any) -> bool:
    """Whether the engine is observed for viewers."""
    engine = demo.engine
    return bool(demo.call(lambda: engine.live in engine.front.core._observers))


def test_the_engine_is_watched_only_while_it_is_shown(open_page: Open, demo: Any) -> None:
    page = open_page()
    expect(page.locator("#engine-state")).to_have_text("idle")
    assert is_watched(demo)
    page.get_by_role("radio", name="Playground").check()
    expect(page.locator("#engine")).to_be_hidden()
    wait_for(lambda: not is_watched(demo))
    page.get_by_role("radio", name="Engine").check()
    wait_for(lambda: is_watched(demo))
    expect(page.locator("#message")).to_be_hidden()
    page.close()
    wait_for(lambda: not is_watched(demo))


def wait_for(true: Callable[[], bool]) -> None:
    """The test's time limit is the bound."""
    while not true():
        pass


def test_the_map_and_the_charts_follow_a_request(open_page: Open, demo: Any) -> None:
    demo.wait_until_empty()
    demo.call(demo.engine.front.core.reset_prefix_cache)
    page = open_page()
    blocks = page.locator("#blocks")
    expect(blocks).to_have_attribute(
        "aria-label", "Map of 256 blocks: 256 free, 0 cached, 0 owned, 0 shared"
    )
    before = [picture(page, where) for where in CANVASES]

    answer = say(page, STORY, **NOISE)
    expect(page.locator("#engine-state")).to_have_text("working")
    expect(tile(page, "Running")).to_have_text("1 of 256")
    expect(blocks).not_to_have_attribute("aria-label", re.compile(" 0 owned"))
    expect(page.locator("#steps-now")).to_contain_text("1 row, 1 token in ")
    expect(page.locator("#rate-now")).not_to_have_text("0")
    during = [picture(page, where) for where in CANVASES]
    assert all(one != other for one, other in zip(before, during, strict=True))

    page.keyboard.press("Escape")
    ended(answer)
    expect(page.locator("#engine-state")).to_have_text("idle")
    expect(tile(page, "Running")).to_have_text("0 of 256")
    expect(blocks).to_have_attribute(
        "aria-label", re.compile(" [1-9][0-9]* cached, 0 owned, 0 shared")
    )
    stats = demo.call(lambda: demo.engine.front.core.scheduler.stats)
    expect(page.locator("#steps-now")).to_contain_text(f"{stats.num_steps:,}: ")


CANVASES = (
    "#blocks",
    "#plot-prefill canvas",
    "#plot-decode canvas",
    "#plot-rate canvas",
    "#plot-queue canvas",
)


def tile(page: Page, name: str) -> Locator:
    """A number of the engine."""
    return page.locator("#tiles div", has=page.get_by_text(name, exact=True)).locator("dd")


def test_a_block_tells_its_state_to_mouse_and_keyboard(open_page: Open, demo: Any) -> None:
    demo.wait_until_empty()
    demo.call(demo.engine.front.core.reset_prefix_cache)
    page = open_page()
    ended(say(page, STORY, max_tokens="30"))
    expect(page.locator("#block-legend")).to_contain_text("cached 3")
    page.locator("#blocks").focus()
    states = []
    for _ in range(8):
        page.keyboard.press("ArrowRight")
        states.append(page.locator("#block-here").inner_text())
    assert [text.split(":")[0] for text in states] == [f"Block {number}" for number in range(8)]
    assert sum("cached" in text for text in states) == 3
    page.locator("#blocks").hover(position={"x": 2, "y": 2})
    expect(page.locator("#block-here")).to_contain_text("Block 0:")


def test_a_paused_view_stands_still(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#engine-state")).to_have_text("idle")
    page.get_by_role("button", name="Pause").click()
    now = page.locator("#steps-now").inner_text()
    ended(say(page, STORY, max_tokens="10"))
    expect(page.locator("#steps-now")).to_have_text(now)
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#steps-now")).not_to_have_text(now)


def test_events_are_the_same_however_their_text_is_cut(open_page: Open) -> None:
    page = open_page()
    text = 'data: {"a": 1}\n\n: beat\n\nevent: x\ndata:one\r\ndata: two\r\n\r\ndata: [DONE]\n\n'
    found = page.evaluate(
        """async text => {
          const { EventParser } = await import("/web/events.js");
          const all = [];
          for (let first = 0; first <= text.length; first++)
            for (let second = first; second <= text.length; second += 7) {
              const parser = new EventParser();
              const cut = [text.slice(0, first), text.slice(first, second), text.slice(second)];
              all.push(JSON.stringify(cut.flatMap(piece => parser.push(piece))));
            }
          return [...new Set(all)];
        }""",
        text,
    )
    assert [json.loads(one) for one in found] == [['{"a": 1}', "one\ntwo", "[DONE]"]]


def test_a_quantile_lies_where_the_share_is_reached(open_page: Open) -> None:
    page = open_page()
    quantile = """async ([counts, bounds, share]) =>
        (await import("/web/history.js")).quantile(counts, bounds, share)"""
    bounds = [1.0, 2.0, 4.0]
    assert page.evaluate(quantile, [[4, 0, 0, 0], bounds, 0.5]) == 0.5
    assert page.evaluate(quantile, [[1, 0, 2, 1], bounds, 0.5]) == 3.0
    assert page.evaluate(quantile, [[0, 0, 0, 5], bounds, 0.9]) == 4.0
