"""The page in a browser, on the bundled model and a real server: what its readers see and can do.

Chromium comes from the system (`make test` installs it where it may); without one the tests are
skipped, but not where CI=true says that nothing may be left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import jsonschema
import pytest
import requests
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright
from quire.api.server import Server, ServerOptions, bind

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


def ask(url: str, **body: Any) -> Any:
    """What the API says to the same question."""
    messages = [{"role": "user", "content": STORY}]
    answer = requests.post(
        f"{url}/v1/chat/completions", json={"messages": messages, **body}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def is_watched(demo: Any) -> bool:
    """Whether the engine is observed for viewers."""
    engine = demo.engine
    return bool(demo.call(lambda: engine.live in engine.front.core._observers))


def test_an_answer_is_the_one_that_the_api_gives(open_page: Open, demo: Any) -> None:
    page = open_page()
    answer = ended(say(page, STORY, seed="3", max_tokens="40"))
    alike = ask(demo.url, seed=3, max_tokens=40)
    assert answer.locator(".text").text_content() == alike["message"]["content"]
    facts = answer.locator(".facts")
    expect(facts).to_contain_text("seed 3")
    expect(facts).to_contain_text("length · 40 tokens · ")
    expect(facts).to_contain_text("a second · first after ")
    expect(facts).to_contain_text("prompt 19, ")


def test_an_answer_is_shown_as_it_comes_and_can_be_stopped(open_page: Open, demo: Any) -> None:
    page = open_page()
    answer = say(page, STORY, **NOISE)
    expect(answer.locator(".text")).to_contain_text(" ")
    expect(answer).to_have_attribute("aria-busy", "true")
    page.click("#halt")
    ended(answer)
    demo.wait_until_empty()
    expect(answer.locator(".facts")).to_contain_text("stopped")
    expect(page.locator("#announce")).to_have_text("Stopped.")
    expect(page.locator("#send")).to_be_focused()


def test_closing_the_tab_ends_its_request(open_page: Open, demo: Any) -> None:
    page = open_page()
    expect(say(page, STORY, **NOISE).locator(".text")).to_contain_text(" ")
    assert demo.num_unfinished() == 1
    page.close()
    demo.wait_until_empty()


def test_an_answer_repeated_with_its_seed_is_the_same(open_page: Open) -> None:
    page = open_page()
    first = ended(say(page, STORY, max_tokens="30"))
    first.get_by_role("button", name="Repeat").click()
    second = ended(page.locator(".answer").nth(1))
    expect(second.locator(".same")).to_have_text("the same 30 tokens")
    assert second.locator(".text").text_content() == first.locator(".text").text_content()


def test_system_prompt_and_history_go_with_a_message(open_page: Open) -> None:
    page = open_page()
    ended(say(page, "Hello.", system="Be short.", max_tokens="8"))
    with page.expect_request("**/v1/chat/completions") as sent:
        ended(say(page, STORY, top_k="5", stop="fox"))
    body = sent.value.post_data_json
    assert [one["role"] for one in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][0]["content"] == "Be short."
    assert body["top_k"] == 5
    assert body["stop"] == ["fox"]
    assert body["max_tokens"] == 8
    assert "temperature" not in body, "what is left empty is the model's own"
    page.click("#clear")
    expect(page.locator("#welcome")).to_be_visible()
    with page.expect_request("**/v1/chat/completions") as sent:
        ended(say(page, STORY))
    assert len(sent.value.post_data_json["messages"]) == 2


def test_tokens_show_how_likely_they_were_to_mouse_and_keyboard(open_page: Open, demo: Any) -> None:
    page = open_page()
    page.check("#logprobs")
    answer = ended(say(page, STORY, seed="3", max_tokens="20"))
    alike = ask(demo.url, seed=3, max_tokens=20, logprobs=True, top_logprobs=5)
    tokens, rows = answer.locator(".token"), alike["logprobs"]["content"]
    assert tokens.all_text_contents() == [row["token"] for row in rows]
    levels = [
        int(level or -1) for level in tokens.evaluate_all("all => all.map(t => t.dataset.level)")
    ]
    order = sorted(range(len(rows)), key=lambda place: -rows[place]["logprob"])
    assert [levels[place] for place in order] == sorted(levels), "less likely, more colour"

    box = page.locator("#alternatives")
    expect(box).to_be_hidden()
    tokens.nth(4).hover()
    likely = [one["token"].strip() for one in rows[4]["top_logprobs"]]
    shown = [text.strip("␣ ") for text in box.locator("code").all_text_contents()]
    assert shown[: len(likely)] == likely or set(likely) <= set(shown)
    assert box.locator(".drawn").count() == 1
    page.mouse.move(0, 0)
    expect(box).to_be_hidden()

    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(box).to_be_visible()
    expect(tokens.nth(1)).to_have_attribute("aria-describedby", "alternatives")
    page.keyboard.press("Escape")
    expect(box).to_be_hidden()


def test_a_form_is_kept_to(open_page: Open) -> None:
    page = open_page()
    page.get_by_text("Form of the answer").click()
    page.click("#schema-example")
    answer = ended(say(page, "Who are you?", max_tokens="200"))
    schema = json.loads(page.input_value("#schema"))
    jsonschema.validate(json.loads(answer.locator(".text").text_content() or ""), schema)


def test_a_call_is_shown_and_its_result_goes_back(open_page: Open) -> None:
    page = open_page()
    page.fill("#seed", "7")
    page.get_by_role("button", name="What is the weather in Oslo?").click()
    answer = ended(page.locator(".answer"))
    expect(answer.locator(".call strong")).to_have_text("calls get_weather")
    assert json.loads(answer.locator(".call code").text_content() or "") == {"city": "Oslo"}
    page.get_by_label("Result of get_weather").fill("Sunny, 12 degrees.")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Send results").click()
    ended(page.locator(".answer").nth(1))
    call, result = sent.value.post_data_json["messages"][-2:]
    assert result["content"] == "Sunny, 12 degrees."
    assert result["tool_call_id"] == call["tool_calls"][0]["id"]
    expect(page.locator(".answer").nth(1).locator(".text")).not_to_be_empty()


@pytest.mark.parametrize(
    ("field", "given", "words"),
    [
        ("tools", "[{", "tools is not JSON"),
        ("tools", '{"type": "function"}', "a JSON list"),
        ("temperature", "warm", 'temperature is "warm": it must be a number'),
        ("seed", "9007199254740993", "at most 9007199254740991"),
    ],
)
def test_what_cannot_be_sent_is_said_beside_its_field(
    open_page: Open, field: str, given: str, words: str
) -> None:
    page = open_page()
    page.locator("#settings details").evaluate_all("all => all.forEach(d => (d.open = true))")
    page.fill(f"#{field}", given)
    page.fill("#message", STORY)
    page.press("#message", "Enter")
    expect(page.locator(f"#{field}-wrong")).to_contain_text(words)
    expect(page.locator(f"#{field}")).to_be_focused()
    expect(page.locator(f"#{field}")).to_have_attribute("aria-invalid", "true")
    assert page.locator("article").count() == 0
    assert page.input_value("#message") == STORY, "nothing that was typed is lost"
    page.fill(f"#{field}", "")
    expect(page.locator(".wrong")).to_have_count(0)
    ended(say(page, STORY, max_tokens="4"))


def test_what_the_server_refuses_is_said_in_its_words(open_page: Open) -> None:
    page = open_page(fails=400)
    answer = ended(say(page, STORY, top_p="7"))
    card = answer.get_by_role("alert")
    expect(card).to_contain_text("Error 400, top_p")
    expect(card).to_contain_text("request ")
    expect(page.locator("#top_p-wrong")).to_contain_text("top_p")
    assert page.input_value("#message") == STORY
    ended(say(page, STORY, top_p="", max_tokens="4"))
    expect(page.locator(".error")).to_have_count(1)


EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def evil_stream(route: Route) -> None:
    """An answer that is markup in every text of it."""
    row = {"token": EVIL, "logprob": -0.5, "top_logprobs": [{"token": EVIL, "logprob": -0.5}]}
    call = {"index": 0, "id": EVIL, "function": {"name": EVIL, "arguments": EVIL}}
    choices: list[Any] = [
        {"delta": {"reasoning_content": EVIL}},
        {"delta": {"content": EVIL}, "logprobs": {"content": [row]}, "token_ids": [1]},
        {"delta": {"tool_calls": [call]}},
        {"delta": {}, "finish_reason": "tool_calls", "seed": EVIL},
    ]
    chunks: list[Any] = [{"choices": [choice]} for choice in choices]
    chunks.append({"error": {"message": EVIL, "param": EVIL, "request_id": EVIL}})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    route.fulfill(body=body, content_type="text/event-stream")


def test_what_a_model_says_is_never_markup(open_page: Open) -> None:
    page = open_page()
    page.route("**/v1/chat/completions", evil_stream)
    answer = ended(say(page, EVIL))
    answer.locator(".token").hover()
    expect(page.locator("#alternatives")).to_contain_text(EVIL)
    assert page.locator("main img, main script, #alternatives img").count() == 0
    assert answer.inner_text().count("<img") >= 4
    assert page.title() != "owned"


def test_thoughts_are_folded_until_they_are_asked_for(open_page: Open) -> None:
    page = open_page()
    page.route("**/v1/chat/completions", evil_stream)
    answer = ended(say(page, "Think."))
    thought = answer.locator(".thought-text")
    expect(thought).to_be_hidden()
    expect(answer.locator(".thought summary")).to_contain_text("Thought for ")
    answer.locator(".thought summary").press("Enter")
    expect(thought).to_be_visible()
    expect(thought).to_have_text(EVIL)


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
FOCUSABLE = """() => [...document.querySelectorAll("a, button, input, select, textarea, summary, [tabindex]")]
  .filter(node => node.checkVisibility() && node.tabIndex >= 0)
  .filter(node => node.type !== "radio" || node.checked)
  .map(node => node.id || node.textContent.trim() || node.value)"""


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


def picture(page: Page, selector: str) -> str:
    """What is drawn on a canvas."""
    return str(page.locator(selector).evaluate("canvas => canvas.toDataURL()"))


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
