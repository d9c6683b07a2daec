"""What holds of the whole page: keyboard, key, widths, themes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from quire.api.server import Server, ServerOptions, bind

from .conftest import STORY, Open, ended, picture, say


def test_all_can_be_done_with_the_keyboard(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#message")).to_be_focused()
    page.keyboard.type("What is 3 + 4?")
    page.keyboard.press("Enter")
    ended(page.locator(".answer"))
    expect(page.locator("#message")).to_be_focused()

    reached: list[str] = []
    for _ in range(100):
        here = page.evaluate(FOCUSED)
        if here["name"] in reached:
            break
        assert here["is_shown"], f"{here} has the focus, and it cannot be seen"
        reached.append(here["name"])
        page.keyboard.press("Tab")
    could = set(page.evaluate(FOCUSABLE))
    assert len(could) > 20
    assert could <= set(reached), could - set(reached)


FOCUSED = """() => {
  const node = document.activeElement;
  if (node === document.body) return {name: "body", is_shown: true};
  const shown = node.matches(".segments input") ? node.nextElementSibling : node;
  const style = getComputedStyle(shown);
  return {name: node.id || node.textContent.trim() || node.value,
          is_shown: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2};
}"""
FOCUSABLE = """() => [...document.querySelectorAll(
    "a, button, input, select, textarea, summary, [tabindex]")]
  .filter(node => node.checkVisibility() && node.tabIndex >= 0)
  .filter(node => node.type !== "radio" || node.checked)
  .map(node => node.id || node.textContent.trim() || node.value)"""


@pytest.fixture(scope="module")
def guarded(demo: Any, browser: Browser) -> Iterator[str]:
    """The same engine behind a server that asks for a key."""
    server = Server(demo.engine, ServerOptions(port=0, api_keys=["sesame"]))
    in_loop(demo, server.start(bind("127.0.0.1", 0)))
    yield server.url
    in_loop(demo, server.stop())


def in_loop(demo: Any, work: Coroutine[Any, Any, None]) -> None:
    """Run something where the engine lives."""
    asyncio.run_coroutine_threadsafe(work, demo.loop).result(20)


def test_the_key_is_asked_for_and_kept_until_the_tab_is_closed(
    open_page: Open, guarded: str
) -> None:
    page = open_page(guarded, fails=401)
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#model")).to_have_text("needs an API key")
    expect(page.locator("#engine-state")).to_have_text("asks for a key")
    expect(page.locator("#docs")).to_be_hidden()
    page.keyboard.type("sesame")
    page.keyboard.press("Tab")
    expect(page.locator("#model")).to_contain_text("demo")
    expect(page.locator("#engine-state")).to_have_text("idle")
    ended(say(page, STORY, max_tokens="5"))
    expect(page.locator(".error")).to_have_count(0)
    kept = page.evaluate(
        "[Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
    )
    assert kept[0] == ["sesame"]
    assert "sesame" not in json.dumps(kept[1:])
    page.reload()
    expect(page.locator("#model")).to_contain_text("demo")
    assert page.input_value("#key") == "sesame"


@pytest.mark.parametrize("width", [360, 720, 1440])
def test_nothing_is_wider_than_the_page(open_page: Open, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 740})
    views = page.locator(".segments label:visible input")
    for place in range(views.count()):
        views.nth(place).check()
        assert page.evaluate(WIDER) == []
    views.nth(views.count() - 2).check()
    if width < 720:
        expect(page.locator("#temperature")).to_be_hidden()
        page.get_by_role("button", name="Settings").click()
    page.check("#logprobs")
    ended(say(page, STORY, max_tokens="30"))
    assert page.evaluate(WIDER) == []


WIDER = """() => [...document.querySelectorAll("body *")]
  .filter(node => node.checkVisibility() && !node.closest(".unseen, .skip, .u-wrap"))
  .filter(node => node.getBoundingClientRect().right > innerWidth + 0.5)
  .map(node => node.outerHTML.slice(0, 80))"""


def test_light_and_dark_are_what_the_system_says_until_somebody_chooses(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    expect(page.locator("#engine-state")).to_have_text("idle")
    dark, map_in_dark = page.evaluate(PAPER), picture(page, "#blocks")
    page.emulate_media(color_scheme="light")
    light = page.evaluate(PAPER)
    assert light > dark + 100
    page.wait_for_function(f"document.querySelector('#blocks').toDataURL() !== '{map_in_dark}'")
    theme = page.get_by_role("button", name="Theme")
    theme.click()
    theme.click()
    expect(theme).to_have_text("Theme: dark")
    assert page.evaluate(PAPER) == dark
    page.reload()
    assert page.evaluate(PAPER) == dark
    theme.click()
    expect(theme).to_have_text("Theme: auto")
    assert page.evaluate(PAPER) == light


PAPER = "Number(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])"


def test_the_page_of_the_api_and_this_one_lead_to_each_other(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("link", name="API").click()
    page.get_by_text("/v1/chat/completions").first.click()
    page.get_by_role("link", name="Try the model").click()
    expect(page.locator("#message")).to_be_visible()
