"""Ollama's client against the server, unchanged: what it sends and how it reads the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import jsonschema
import ollama
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from quire import __version__

from .tool_uses import CHAT_TOOLS, USES, Use

MESSAGES: Any = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is a quire?"},
]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look somewhere",
            "parameters": {
                "type": "object",
                "required": ["at"],
                "properties": {"at": {"type": "string", "description": "Where"}},
            },
        },
    },
]
SCHEMA: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(demo: Any) -> Iterator[ollama.Client]:
    with ollama.Client(host=demo.url) as client:
        yield client


def openai_chat(demo: Any, **body: Any) -> Any:
    """What /v1/chat/completions answers: the oracle."""
    answer = requests.post(f"{demo.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


OPTIONS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**31), "num_predict": st.integers(1, 8)},
    optional={
        "temperature": st.sampled_from([0, 0.7, 1.5]),
        "top_k": st.integers(1, 20),
        "top_p": st.floats(0.1, 1),
        "min_p": st.floats(0, 0.5),
        "repeat_penalty": st.floats(0.9, 2),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "stop": st.lists(st.sampled_from(["e", "the", "\n"]), min_size=1, max_size=2),
        "num_ctx": st.just(1024),
        "repeat_last_n": st.just(-1),
        "num_thread": st.just(2),
    },
)
OPENAI_NAMES = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
WITHOUT_EFFECT = ("num_ctx", "repeat_last_n", "num_thread")


@given(options=OPTIONS)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_an_answer_is_that_of_the_same_chat(
    demo: Any, client: ollama.Client, options: dict[str, Any]
) -> None:
    """Whole and in a stream, whatever the options: they are other words for the same request."""
    theirs = {
        OPENAI_NAMES.get(name, name): value
        for name, value in options.items()
        if name not in WITHOUT_EFFECT
    }
    oracle = openai_chat(demo, messages=MESSAGES, **theirs)
    (choice,) = oracle["choices"]
    whole = client.chat("demo", MESSAGES, options=options)
    assert whole.message.role == "assistant"
    assert whole.message.content == choice["message"]["content"]
    assert (whole.done, whole.done_reason) == (True, choice["finish_reason"])
    assert whole.prompt_eval_count == oracle["usage"]["prompt_tokens"]
    assert whole.eval_count == oracle["usage"]["completion_tokens"]
    *pieces, last = client.chat("demo", MESSAGES, options=options, stream=True)
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * len(pieces)
    assert all(piece.done_reason is None and piece.eval_count is None for piece in pieces)
    assert (last.done, last.message.content) == (True, "")
    for name in ("done_reason", "prompt_eval_count", "eval_count"):
        assert last[name] == whole[name]


def test_a_stream_is_lines_and_the_default(demo: Any) -> None:
    body = {"model": "demo", "messages": MESSAGES, "options": {"num_predict": 5}}
    answer = requests.post(f"{demo.url}/api/chat", json=body, timeout=60)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    lines = [json.loads(line) for line in answer.text.removesuffix("\n").split("\n")]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert {line["model"] for line in lines} == {"demo"}
    generated = requests.post(
        f"{demo.url}/api/generate", json={"model": "demo", "prompt": "a"}, timeout=60
    )
    assert generated.headers["Content-Type"] == "application/x-ndjson"


def test_an_answer_can_be_had_again_by_the_seed_that_it_tells(demo: Any) -> None:
    url, options = f"{demo.url}/api/chat", {"num_predict": 12, "temperature": 1, "seed": -1}
    body = {"model": "demo", "messages": MESSAGES, "stream": False, "options": options}
    first, other = (requests.post(url, json=body, timeout=60).json() for _ in range(2))
    options["seed"] = first["seed"]
    again = requests.post(url, json=body, timeout=60).json()
    assert again["message"] == first["message"]
    assert again["seed"] == first["seed"] != other["seed"]


def test_durations_are_the_phases_of_the_request(client: ollama.Client) -> None:
    for told in (
        client.generate("demo", "Once", options={"num_predict": 6}),
        list(client.generate("demo", "Once", options={"num_predict": 6}, stream=True))[-1],
    ):
        parts = [told.load_duration, told.prompt_eval_duration, told.eval_duration]
        assert all(isinstance(part, int) and part >= 0 for part in parts)
        assert told.prompt_eval_duration and told.eval_duration
        assert sum(part or 0 for part in parts) == told.total_duration
        # Nanoseconds: six tokens take less than a minute, and more than a microsecond.
        assert 1e3 < (told.total_duration or 0) < 60e9
        at = datetime.fromisoformat(told.created_at or "")
        assert abs((datetime.now(UTC) - at).total_seconds()) < 60


def test_a_prompt_is_a_message_and_the_system_another(demo: Any, client: ollama.Client) -> None:
    options = {"seed": 3, "num_predict": 8, "temperature": 1}
    prompt, system = MESSAGES[1]["content"], MESSAGES[0]["content"]
    chat = client.chat("demo", MESSAGES, options=options)
    told = client.generate("demo", prompt, system=system, options=options)
    assert told.response == chat.message.content
    assert told.prompt_eval_count == chat.prompt_eval_count
    pieces = client.generate("demo", prompt, system=system, options=options, stream=True)
    assert "".join(piece.response or "" for piece in pieces) == told.response
    alone = client.generate("demo", prompt, options=options)
    assert (alone.prompt_eval_count or 0) < (told.prompt_eval_count or 0)


def test_a_raw_prompt_is_a_completion(demo: Any, client: ollama.Client) -> None:
    told = client.generate(
        "demo", "Once upon", raw=True, options={"seed": 3, "num_predict": 8, "temperature": 1}
    )
    body: Any = {"prompt": "Once upon", "seed": 3, "max_tokens": 8, "temperature": 1}
    oracle = requests.post(f"{demo.url}/v1/completions", json=body, timeout=60).json()
    assert told.response == oracle["choices"][0]["text"]
    assert told.prompt_eval_count == oracle["usage"]["prompt_tokens"]


def test_num_predict_is_no_promise_that_it_fits(client: ollama.Client, demo: Any) -> None:
    room = 40
    words = "cat " * demo.engine.max_model_len
    ids = demo.engine.tokenizer.encode(words)[: demo.engine.max_model_len - room]
    text = demo.engine.tokenizer.decode(ids)
    for most, raw in ((10**6, True), (10**6, False), (-1, False), (-2, True), (0, True)):
        told = client.generate("demo", text, raw=raw, options={"num_predict": most, "seed": 1})
        assert told.done_reason in ("length", "stop")
        total = (told.prompt_eval_count or 0) + (told.eval_count or 0)
        assert total <= demo.engine.max_model_len
        assert (told.eval_count or 0) > 1


@pytest.mark.parametrize("form", ["json", SCHEMA])
def test_an_answer_has_the_form_that_is_asked(client: ollama.Client, form: Any) -> None:
    options = {"num_predict": 200, "temperature": 1}
    for seed in range(3):
        asked: Any = {"format": form, "options": {**options, "seed": seed}}
        chat = client.chat("demo", MESSAGES, **asked)
        for told, text in (
            (chat, chat.message.content or ""),
            *((one, one.response) for one in [client.generate("demo", "Who?", **asked)]),
        ):
            if told.done_reason == "stop":
                jsonschema.validate(json.loads(text), SCHEMA if form is SCHEMA else {})
            else:
                assert form == "json" and text.lstrip().startswith("{")


def test_tools_and_what_they_answered_reach_the_template(demo: Any, client: ollama.Client) -> None:
    function = {"name": "look", "arguments": {"at": "there"}}
    asked: Any = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [{"function": function}]},
        {"role": "tool", "tool_name": "look", "content": "Nothing."},
    ]
    told = client.chat("demo", asked, tools=TOOLS, options={"num_predict": 1})
    theirs = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "name": "look", "content": "Nothing."},
    ]
    oracle = openai_chat(demo, messages=theirs, tools=TOOLS, max_tokens=1)
    assert told.prompt_eval_count == oracle["usage"]["prompt_tokens"]
    plain = client.chat("demo", asked, options={"num_predict": 1})
    assert (plain.prompt_eval_count or 0) < (told.prompt_eval_count or 0)


def told_whole(client: ollama.Client, streamed: bool, **asked: Any) -> Any:
    """The message that is answered, and why it ended; what a stream tells is put together."""
    options = {"temperature": 0}
    if not streamed:
        whole = client.chat("demo", options=options, **asked)
        return whole.message, whole.done_reason
    pieces = list(client.chat("demo", options=options, stream=True, **asked))
    content = "".join(one.message.content or "" for one in pieces)
    calls = [call for one in pieces for call in one.message.tool_calls or ()]
    message = ollama.Message(role="assistant", content=content, tool_calls=calls or None)
    return message, pieces[-1].done_reason


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.result)
def test_a_tool_is_called_and_its_result_answered(
    client: ollama.Client, use: Use, streamed: bool
) -> None:
    """The model decides on the call; what it was told cannot be guessed."""
    messages: list[Any] = [{"role": "user", "content": use.question}]
    message, reason = told_whole(client, streamed, messages=messages, tools=CHAT_TOOLS)
    assert reason == "stop" and not message.content
    (call,) = message.tool_calls
    result = use.run(call.function.name, call.function.arguments)
    messages += [message, {"role": "tool", "tool_name": use.name, "content": result}]
    message, _ = told_whole(client, streamed, messages=messages, tools=CHAT_TOOLS)
    assert message.content == use.answer and not message.tool_calls


def test_a_function_is_a_tool(client: ollama.Client) -> None:
    """The package makes the schema of a function's signature."""
    use = USES[0]

    def get_weather(city: str) -> str:
        """Do get_weather.

        Args:
            city: where
        """
        return use.run("get_weather", {"city": city})

    messages: list[Any] = [{"role": "user", "content": use.question}]
    message = client.chat("demo", messages, tools=[get_weather], options={"temperature": 0}).message
    (call,) = message.tool_calls or ()
    assert get_weather(**call.function.arguments) == use.result


class Pet(BaseModel):
    kind: Literal["cat", "fox"]
    old: bool


def test_an_answer_is_parsed_into_a_class(client: ollama.Client) -> None:
    how: Any = {"format": Pet.model_json_schema(), "options": {"temperature": 0}}
    pet = Pet.model_validate_json(client.chat("demo", MESSAGES, **how).message.content or "")
    pieces = client.chat("demo", MESSAGES, stream=True, **how)
    text = "".join(piece.message.content or "" for piece in pieces)
    assert Pet.model_validate_json(text) == pet


def test_logprobs_are_those_of_the_chat(demo: Any, client: ollama.Client) -> None:
    options = {"seed": 1, "num_predict": 3}
    oracle = openai_chat(
        demo, messages=MESSAGES, seed=1, max_tokens=3, logprobs=True, top_logprobs=2
    )
    told = oracle["choices"][0]["logprobs"]["content"]
    whole = client.chat("demo", MESSAGES, options=options, logprobs=True, top_logprobs=2)
    pieces = list(
        client.chat("demo", MESSAGES, options=options, logprobs=True, top_logprobs=2, stream=True)
    )
    streamed = [one for piece in pieces for one in piece.logprobs or ()]
    for rows in (whole.logprobs or (), streamed):
        assert [(row.token, row.logprob) for row in rows] == [
            (row["token"], row["logprob"]) for row in told
        ]
        assert [len(row.top_logprobs or ()) for row in rows] == [2, 2, 2]


def test_the_model_is_listed_and_shown(demo: Any, client: ollama.Client) -> None:
    (model,) = client.list().models
    assert model.model == "demo"
    assert model.modified_at is not None
    for name in ("demo", "demo:latest"):
        shown: Any = client.show(name)
        assert shown.capabilities == ["completion", "tools"]
        assert shown.template == demo.engine.tokenizer.chat_template
        family = shown.modelinfo["general.architecture"]
        assert shown.modelinfo[f"{family}.context_length"] == demo.engine.max_model_len
        assert client.generate(name, "a", options={"num_predict": 1}).model == name
    answer = requests.get(f"{demo.url}/api/version", timeout=60)
    assert answer.json() == {"version": __version__}


def test_who_asks_nothing_is_told_that_the_model_is_there(client: ollama.Client) -> None:
    assert client.generate("demo").done_reason == "load"
    told = client.chat("demo", [])
    assert (told.done, told.done_reason, told.message.content) == (True, "load", "")


REFUSED: dict[str, tuple[Callable[[Any], Any], int, str]] = {
    "model": (lambda c: c.chat("gpt", MESSAGES), 404, "gpt"),
    "shown model": (lambda c: c.show("gpt"), 404, "gpt"),
    "role": (lambda c: c.chat("demo", [{"role": "me", "content": "a"}]), 400, "messages[0].role"),
    "temperature": (
        lambda c: c.chat("demo", MESSAGES, options={"temperature": -1}),
        400,
        "options.temperature",
    ),
    "penalty": (
        lambda c: c.chat("demo", MESSAGES, options={"repeat_penalty": -1}),
        400,
        "options.repeat_penalty",
    ),
    "num_ctx": (
        lambda c: c.generate("demo", "a", options={"num_ctx": 10**6}),
        400,
        "options.num_ctx is 1000000",
    ),
    "window": (
        lambda c: c.generate("demo", "a", options={"repeat_last_n": 64, "repeat_penalty": 1.1}),
        400,
        "options.repeat_last_n is 64",
    ),
    "unknown option": (
        lambda c: c.generate("demo", "a", options={"temprature": 1}),
        400,
        "options.temprature is not a known field",
    ),
    "mirostat": (
        lambda c: c.generate("demo", "a", options={"mirostat": 2}),
        400,
        "options.mirostat is 2",
    ),
    "suffix": (lambda c: c.generate("demo", "a", suffix="b"), 400, "suffix"),
    "template": (lambda c: c.generate("demo", "a", template="b"), 400, "template"),
    "context": (lambda c: c.generate("demo", "a", context=[1]), 400, "context"),
    "images": (lambda c: c.generate("demo", "a", images=[b"ab"]), 400, "images"),
    "images of a message": (
        lambda c: c.chat("demo", [{"role": "user", "content": "a", "images": [b"ab"]}]),
        400,
        "messages[0].images",
    ),
    "long prompt": (lambda c: c.generate("demo", "ab " * 9000), 400, "prompt has"),
    "long raw prompt": (lambda c: c.generate("demo", "ab " * 9000, raw=True), 400, "prompt has"),
    "schema": (lambda c: c.chat("demo", MESSAGES, format={"type": "cat"}), 400, "format"),
    "think": (lambda c: c.chat("demo", MESSAGES, think=True), 400, "does not support thinking"),
    "raw system": (lambda c: c.generate("demo", "a", raw=True, system="b"), 400, "system"),
    "dimensions": (lambda c: c.embed("demo", "a", dimensions=0), 400, "dimensions is 0"),
    "model that embeds": (lambda c: c.embed("other", "a"), 404, "other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_by_its_name(client: ollama.Client, name: str) -> None:
    ask, status, text = REFUSED[name]
    with pytest.raises(ollama.ResponseError) as refused:
        ask(client)
    assert refused.value.status_code == status
    assert text in refused.value.error
    assert isinstance(refused.value.error, str) and not refused.value.error.startswith("{")


@pytest.mark.parametrize("name", ["model", "temperature", "long prompt"])
def test_a_stream_that_is_refused_has_a_status(client: ollama.Client, name: str) -> None:
    ask, status, text = REFUSED[name]

    class Streaming:
        def chat(self, *args: Any, **how: Any) -> None:
            list(client.chat(*args, **how, stream=True))

        def generate(self, *args: Any, **how: Any) -> None:
            list(client.generate(*args, **how, stream=True))

    with pytest.raises(ollama.ResponseError, match=text.replace("[", r"\[")) as refused:
        ask(Streaming())
    assert refused.value.status_code == status


def test_penalties_that_look_at_nothing_are_none(client: ollama.Client) -> None:
    def ask(**options: Any) -> str:
        whole = client.generate(
            "demo", "Once", raw=True, options={"temperature": 0, "num_predict": 40, **options}
        )
        return str(whole.response)

    strong = {"repeat_penalty": 9.0, "presence_penalty": 2, "frequency_penalty": 2}
    for name, value in strong.items():
        penalty = {name: value}
        assert ask(**penalty, repeat_last_n=-1) == ask(**penalty) != ask()
        assert ask(**penalty, repeat_last_n=0) == ask()


@pytest.mark.parametrize("text", ['"xml"', "3", "true"])
def test_a_format_that_is_none_is_refused(demo: Any, text: str) -> None:
    body = {"model": "demo", "messages": MESSAGES, "format": json.loads(text)}
    answer = requests.post(f"{demo.url}/api/chat", json=body, timeout=60)
    assert answer.status_code == 400 and f"format is {text}" in answer.json()["error"]


MANY: Any = {
    "format": {"type": "array", "items": {"enum": ["cat", "fox"]}, "minItems": 400},
    "options": {"num_predict": 1900},
}
"""A form that is long: Ollama has no ignore_eos."""
LONG: dict[str, Callable[..., Any]] = {
    "chat": lambda client, **how: client.chat("demo", MESSAGES, **MANY, **how),
    "generate": lambda client, **how: client.generate("demo", "Pets?", **MANY, **how),
}


@pytest.mark.parametrize("name", LONG)
def test_a_stream_that_is_left_is_aborted(demo: Any, client: ollama.Client, name: str) -> None:
    with demo.aborts():
        stream = LONG[name](client, stream=True)
        next(stream)
        assert demo.num_unfinished() == 1
        stream.close()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", LONG)
async def test_a_task_that_is_cancelled_aborts_its_request(
    demo: Any, name: str, streamed: bool
) -> None:
    async with ollama.AsyncClient(host=demo.url) as client:

        async def read() -> None:
            answer = await LONG[name](client, stream=streamed)
            if streamed:
                async for _ in answer:
                    pass

        await demo.cancel(read())
