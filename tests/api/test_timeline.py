"""A client may ask what happened to its request; /debug/requests tells of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest


@pytest.fixture
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_an_answer_tells_its_story_where_asked(client: openai.OpenAI) -> None:
    given = client.completions.create(
        model="tiny", prompt=["ab", "cd"], max_tokens=4, extra_body={"timeline": True}
    ).model_dump()
    for choice in given["choices"]:
        names = [event["name"] for event in choice["timeline"]["events"]]
        assert names[:2] == ["queued", "admitted"]
        assert names[-2:] == ["first token", "ended"]
        assert choice["timeline"]["num_steps"] >= 1
    plain = client.completions.create(model="tiny", prompt="ab", max_tokens=4).model_dump()
    assert "timeline" not in plain["choices"][0]


def test_a_stream_tells_its_story_with_its_end(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=4,
            stream=True,
            extra_body={"timeline": True},
        )
    )
    told = [chunk.model_dump()["choices"][0].get("timeline") for chunk in chunks]
    assert told[-1]["events"][-1]["name"] == "ended"
    assert not any(told[:-1])


def test_debug_requests_tells_of_living_and_ended_ones(client: openai.OpenAI, live: Any) -> None:
    stream = client.completions.create(
        model="tiny",
        prompt="abc",
        max_tokens=60,
        stream=True,
        extra_body={"ignore_eos": True, "request_id": "mine"},
    )
    next(iter(stream))
    shown = client.get("/../debug/requests", cast_to=object)
    assert isinstance(shown, dict)
    assert shown.keys() == {"living", "ended"}
    stories = [*shown["living"], *shown["ended"]]
    (mine,) = [story for story in stories if story["request_id"].startswith("cmpl-mine")]
    assert mine["state"] in ("running", "ended")
    assert mine["num_prompt_tokens"] > 0
    assert mine["timeline"]["events"][0]["name"] == "queued"
    stream.close()
    live.wait_until_empty()
