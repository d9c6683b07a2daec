"""Pages in Chromium, on the bundled model and a real server.

Chromium comes from the system (`make test` installs it where it may); without one the tests are
skipped, but not where CI=true says that nothing may be left out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 20_000
STORY = "Tell me a story about a fox named Ada."
NOISE = {"temperature": "1000", "seed": "5"}
"""Settings with which an answer has no end of its own."""
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser(demo: Any) -> Iterator[Browser]:
    """Chromium. It is closed before the server is: both want the thread's event loop."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        reason = f"no Chromium on PATH, which would be one of {', '.join(CHROMIUM)}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; CI=true, so that is a failure")
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, demo: Any) -> Iterator[Open]:
    """Opens the page. Whatever a test does: no error, and nothing asked of another host."""
    problems: list[str] = []
    contexts: list[Any] = []

    def open_one(url: str = demo.url, *, fails: int = 0, path: str = "/", **options: Any) -> Page:
        """fails: the status that a request of this test may have."""
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda message: (
                problems.append(message.text)
                if message.type in ("error", "warning")
                and f"status of {fails} " not in message.text
                else None
            ),
        )
        page.on(
            "request",
            lambda request: None if request.url.startswith(url) else problems.append(request.url),
        )
        page.goto(url + path)
        return page

    yield open_one
    for context in contexts:
        context.close()
    demo.wait_until_empty()
    assert problems == []


def say(page: Page, text: str, **settings: str) -> Locator:
    """Send a message with settings; its answer."""
    for name, value in settings.items():
        page.fill(f"#{name}", value)
    number = page.locator(".answer").count()
    page.fill("#message", text)
    page.press("#message", "Enter")
    answer = page.locator(".answer").nth(number)
    expect(answer).to_be_visible()
    return answer


def ended(answer: Locator) -> Locator:
    """Wait for an answer to be whole."""
    expect(answer).to_have_attribute("aria-busy", "false", timeout=WAIT_MS)
    return answer


def picture(page: Page, selector: str) -> str:
    """What is drawn on a canvas."""
    return str(page.locator(selector).evaluate("canvas => canvas.toDataURL()"))
