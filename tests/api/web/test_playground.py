"""The playground: what is asked, what comes of it, and how that is shown."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import requests
from playwright.sync_api import Route, expect

from .conftest import NOISE, STORY, Open, ended, say


def ask(url: str, **body: Any) -> Any:
    """What the API says to the same question."""
    messages = [{"role": "user", "content": STORY}]
    answer = requests.post(
        f"{url}/v1/chat/completions", json={"messages": messages, **body}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


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


def sent_body(sent: Any) -> Any:
    """What a request that was expected has sent."""
    return sent.value.post_data_json


def test_system_prompt_and_history_go_with_a_message(open_page: Open) -> None:
    page = open_page()
    ended(say(page, "Hello.", system="Be short.", max_tokens="8"))
    with page.expect_request("**/v1/chat/completions") as sent:
        ended(say(page, STORY, top_k="5", stop="fox"))
    body = sent_body(sent)
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
    assert len(sent_body(sent)["messages"]) == 2


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
    call, result = sent_body(sent)["messages"][-2:]
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
