"""Takes the pictures of docs/page.md anew: `.venv/bin/python docs/screenshots.py`.

It serves the bundled model with work to do, and opens the page in the Chromium of the system.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

FOLDER = Path(__file__).with_name("images")
WAIT_MS = 60_000
GUESSES = '{"method": "suffix", "num_speculative_tokens": 4}'
SERVE = (
    *("-m", "quire.api.cli", "serve", "--port", "0", "--speculative-config", GUESSES),
    *("--num-kv-blocks", "640", "--max-num-seqs", "24", "--max-num-batched-tokens", "256"),
)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SYSTEM = "You are a friendly storyteller who likes animals, small towns and long evenings. " * 3
ASKED = (
    ("Tell me a story about a fox named Ada.", 2),
    ("Tell me a story about a bear named Mia.", 3),
    ("What is 12 + 7?", 1),
    ("Tell me a story about a cat named Ben.", 1),
    ("What is Quire?", 4),
)
NUM_CLIENTS = 6
NARROW = 720
WATCHED_STEPS = 96
"""As many as the page shows."""


@contextmanager
def served() -> Iterator[str]:
    """A server of its own process: its address."""
    process = subprocess.Popen([sys.executable, *SERVE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"serves .* at (http://\S+)", line):
                yield found[1]
                return
        raise SystemExit("quire serve ended before it served")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def busy(url: str) -> Iterator[None]:
    """Clients that ask one thing after another, each its own round."""
    over = threading.Event()

    def ask(client: int) -> None:
        place = client
        while not over.is_set():
            text, num = ASKED[place % len(ASKED)]
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
            body = {"messages": messages, "n": num, "seed": place, "max_tokens": 120}
            headers = {"Content-Type": "application/json"}
            data = json.dumps(body).encode()
            with urllib.request.urlopen(
                urllib.request.Request(f"{url}/v1/chat/completions", data, headers)
            ) as answer:
                answer.read()
            place += 1

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join()


def opened(browser: Browser, url: str, scheme: str, width: int = 1440, height: int = 900) -> Page:
    """The page in one of the themes."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(url)
    if width < NARROW:
        page.get_by_role("radio", name="Engine").check()
    expect(page.locator("#steps-now")).to_contain_text("rows", timeout=WAIT_MS)
    return page


def tell_story(page: Page) -> None:
    """An answer with the probabilities of its tokens, one of them shown."""
    page.check("#logprobs")
    page.fill("#seed", "4")
    page.fill("#message", ASKED[0][0])
    page.press("#message", "Enter")
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "false", timeout=WAIT_MS)
    page.locator('.token[data-level="3"]').first.hover()


def watch(page: Page) -> None:
    """Let the chart of steps fill."""
    words = "() => parseInt(document.querySelector('#steps-now').textContent.replaceAll(',', ''))"
    first = page.evaluate(words)
    page.wait_for_function(f"first => ({words})() > first + {WATCHED_STEPS}", arg=first)


def main() -> None:
    """Take all pictures."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        raise SystemExit(f"no Chromium on PATH, which would be one of {', '.join(CHROMIUM)}")
    FOLDER.mkdir(exist_ok=True)
    with served() as url, sync_playwright() as playwright, busy(url):
        browser = playwright.chromium.launch(executable_path=path)
        for scheme in ("light", "dark"):
            page = opened(browser, url, scheme)
            watch(page)
            tell_story(page)
            page.screenshot(path=FOLDER / f"page-{scheme}.png")
            page.get_by_role("radio", name="Engine").check()
            watch(page)
            page.screenshot(path=FOLDER / f"engine-{scheme}.png")
        page = opened(browser, url, "light", 360, 740)
        watch(page)
        page.screenshot(path=FOLDER / "narrow.png")
        browser.close()


if __name__ == "__main__":
    main()
