"""langchain-openai against the server, unchanged: what it sends and how it reads the answers."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
import requests
from pydantic import BaseModel, Field

from .tool_uses import CHAT_TOOLS, USES, Use

QUESTION = "What is 3 + 4?"
Make = Callable[..., Any]


class Pet(BaseModel):
    """A pet."""

    name: str = Field(max_length=6)
    old: bool


def look(at: str) -> str:
    """Look somewhere."""
    return at


@pytest.fixture(scope="module")
def make_chat(demo: Any) -> Iterator[Make]:
    """A function that makes a chat model. The package is imported late, as it takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = importlib.import_module("langchain_openai")

    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:

        def make(model: str = "demo", **options: Any) -> Any:
            options = {"max_tokens": 40, "seed": 5, "temperature": 0.7} | options
            return package.ChatOpenAI(
                model=model,
                client=client.chat.completions,
                root_client=client,
                api_key="none",
                base_url=f"{demo.url}/v1",
                **options,
            )

        yield make


def direct(demo: Any, **body: Any) -> Any:
    """What the server answers without the package."""
    given: Any = {
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 40,
        "seed": 5,
        "temperature": 0.7,
    } | body
    answer = requests.post(f"{demo.url}/v1/chat/completions", json=given, timeout=60)
    return answer.json()


def test_a_chat_is_the_servers(make_chat: Make, demo: Any) -> None:
    message = make_chat().invoke(QUESTION)
    wanted = direct(demo)
    assert message.content == wanted["choices"][0]["message"]["content"]
    assert message.response_metadata["finish_reason"] == wanted["choices"][0]["finish_reason"]
    assert message.response_metadata["model_name"] == "demo"
    assert message.usage_metadata["total_tokens"] == wanted["usage"]["total_tokens"]


def test_pieces_of_a_stream_make_the_whole(make_chat: Make) -> None:
    chat = make_chat(stream_usage=True)
    whole = chat.invoke(QUESTION)
    pieces = list(chat.stream(QUESTION))
    assert len(pieces) > 3
    put = pieces[0]
    for piece in pieces[1:]:
        put = put + piece
    assert put.content == whole.content
    assert put.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


async def test_it_may_be_awaited(make_chat: Make, demo: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
        chat = make_chat(async_client=client.chat.completions, root_async_client=client)
        message = await chat.ainvoke(QUESTION)
        pieces = [piece.content async for piece in chat.astream(QUESTION)]
    assert message.content == "".join(pieces)


def test_log_probabilities_are_read(make_chat: Make) -> None:
    message = make_chat(logprobs=True, top_logprobs=2, max_tokens=3).invoke(QUESTION)
    told = message.response_metadata["logprobs"]["content"]
    assert len(told) == 3 and all(len(one["top_logprobs"]) == 2 for one in told)


@pytest.mark.parametrize("choice", ["look", "any"])
def test_a_tool_is_called(make_chat: Make, choice: str) -> None:
    chat = make_chat(max_tokens=200, temperature=0).bind_tools(
        [look], tool_choice=choice, parallel_tool_calls=False
    )
    (call,) = chat.invoke("Look at the door.").tool_calls
    assert call["name"] == "look" and isinstance(call["args"]["at"], str) and call["id"]
    put = None
    for piece in chat.stream("Look at the door."):
        put = piece if put is None else put + piece
    assert put is not None
    (streamed,) = put.tool_calls
    assert (streamed["name"], streamed["args"]) == (call["name"], call["args"])


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.result)
def test_the_model_calls_the_tool_and_answers_from_its_result(
    make_chat: Make, use: Use, streamed: bool
) -> None:
    """It decides on the call; what it was told cannot be guessed."""
    chat = make_chat(max_tokens=200, temperature=0).bind_tools(CHAT_TOOLS)

    def answer(messages: list[Any]) -> Any:
        if not streamed:
            return chat.invoke(messages)
        first, *others = chat.stream(messages)
        return sum(others, first)

    messages: list[Any] = [{"role": "user", "content": use.question}]
    asked = answer(messages)
    (call,) = asked.tool_calls
    result = use.run(call["name"], call["args"])
    messages += [asked, {"role": "tool", "tool_call_id": call["id"], "content": result}]
    assert answer(messages).content == use.answer


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_has_the_form_that_was_asked(make_chat: Make, method: str) -> None:
    chat = make_chat(max_tokens=200).with_structured_output(Pet, method=method)
    pet = chat.invoke("Tell me of a pet.")
    assert isinstance(pet, Pet) and len(pet.name) <= 6


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "gpt"),
        ({"temperature": 1e300}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "together"),
        ({"model_kwargs": {"nothing": 1}}, TypeError, "nothing"),
        ({"extra_body": {"nothing": 1}}, openai.BadRequestError, "nothing"),
    ],
)
def test_errors_are_of_openais_classes(
    make_chat: Make, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        make_chat(**options).invoke(QUESTION)
    with pytest.raises(kind, match=words):
        list(make_chat(**options).stream(QUESTION))


LONG: Any = {"max_tokens": 1900, "extra_body": {"ignore_eos": True}}


def test_a_stream_that_is_left_is_aborted(make_chat: Make, demo: Any) -> None:
    stream = make_chat(**LONG).stream(QUESTION)
    with demo.aborts():
        next(stream)
        assert demo.num_unfinished() == 1
        stream.close()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_task_that_is_cancelled_aborts_its_request(
    make_chat: Make, demo: Any, streamed: bool
) -> None:
    async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
        chat = make_chat(async_client=client.chat.completions, root_async_client=client, **LONG)

        async def read() -> None:
            if not streamed:
                await chat.ainvoke(QUESTION)
                return
            async for _ in chat.astream(QUESTION):
                pass

        await demo.cancel(read())


def test_embeddings_are_the_servers(demo: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = importlib.import_module("langchain_openai")

    texts = ["the cat", "on the mat", ""]
    url = f"{demo.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        # Without its check of lengths, for which it would fetch OpenAI's tokenizer.
        embeddings = package.OpenAIEmbeddings(
            model="demo",
            client=client.embeddings,
            api_key="none",
            base_url=url,
            check_embedding_ctx_length=False,
            dimensions=16,
        )
        found = embeddings.embed_documents(texts[:2])
        body: Any = {"input": texts[:2], "dimensions": 16}
        told = requests.post(f"{url}/embeddings", json=body, timeout=60).json()["data"]
        assert np.allclose(found, [one["embedding"] for one in told], atol=1e-6)
        assert embeddings.embed_query(texts[0]) == found[0]
        with pytest.raises(openai.BadRequestError, match="input"):
            embeddings.embed_query([])
