"""litellm against the server, unchanged, in the dialects that it speaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from .litellm_client import CHOICES, DIALECTS, MANY, PLAIN, TEXTS, WRONG, Pet
from .tool_uses import CHAT_TOOLS, USES

USE = USES[1]
PROGRAM = Path(__file__).with_name("litellm_client.py")


@pytest.fixture(scope="module")
def told(demo: Any) -> Any:
    """What the program found; it left nothing in the engine."""
    use = json.dumps({**USE._asdict(), "tools": CHAT_TOOLS})
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), demo.url, "demo", use],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    demo.wait_until_empty()
    assert demo.num_used_blocks() == 0
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_chat_and_its_stream_are_the_servers(told: Any, demo: Any, dialect: str) -> None:
    wanted = requests.post(f"{demo.url}/v1/chat/completions", json=PLAIN, timeout=60).json()
    (choice,) = wanted["choices"]
    chat = told["chats"][dialect]
    assert chat["whole"] == "".join(chat["pieces"]) == choice["message"]["content"]
    assert len(chat["pieces"]) > 3
    assert chat["reason"] == choice["finish_reason"]
    assert chat["tokens"] == wanted["usage"]["completion_tokens"]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_tool_is_called(told: Any, choice: str) -> None:
    whole, streamed = told["calls"][choice]
    assert whole == streamed and whole[0] == "look"
    assert list(json.loads(whole[1])) == ["at"]


def test_an_answer_has_the_form_that_was_asked(told: Any) -> None:
    assert len(json.loads(told["form"])["at"]) <= 20


def test_an_answer_is_parsed_into_a_class(told: Any) -> None:
    whole, streamed = map(Pet.model_validate_json, told["pets"])
    assert whole == streamed


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_model_calls_the_tool_and_answers_from_its_result(told: Any, dialect: str) -> None:
    assert told["used"][dialect] == [USE.name, USE.arguments, USE.answer]


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_of_its_classes(told: Any, name: str) -> None:
    kind = "NotFoundError" if name == "model" else "BadRequestError"
    words = {"model": "gpt", "max_tokens": "together"}.get(name, name)
    found = told["errors"][name]
    assert [one[0] for one in found] == [kind, kind], found
    assert all(words in one[1] for one in found)


def test_what_is_left_or_cancelled_is_aborted(told: Any, demo: Any) -> None:
    assert 0 < told["left"] < MANY / 2
    assert told["cancelled"]
    assert demo.num_aborted() == 2


def test_texts_are_embedded_and_ranked(told: Any, demo: Any) -> None:
    wanted = requests.post(f"{demo.url}/v1/embeddings", json={"input": TEXTS}, timeout=60).json()
    assert np.allclose(
        told["embedding"], [one["embedding"] for one in wanted["data"]], rtol=0, atol=1e-6
    )
    body = {"query": TEXTS[0], "documents": TEXTS}
    wanted = requests.post(f"{demo.url}/v1/rerank", json=body, timeout=60).json()
    assert told["ranked"] == [[one["index"], one["relevance_score"]] for one in wanted["results"]]
