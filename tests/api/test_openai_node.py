"""The openai package for Node against the server: what it sends and how it reads the answers.

The package comes from npm's registry, into a folder of the test; without either it is skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from .tool_uses import TOOLS, USES

PACKAGES = ("openai@^7", "zod@^4")
PROGRAM = Path(__file__).with_name("openai_client.mjs")
INSTALL_TIMEOUT_S = 120
USE = USES[1]
TEXTS = ["the cat", "on the mat"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program beside an installed package."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not both here: the package for Node needs them")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    options = ("--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1")
    try:
        made = subprocess.run(
            [npm, "install", *options, *PACKAGES],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm's registry gave no {PACKAGES} in {INSTALL_TIMEOUT_S} s")
    if made.returncode:
        pytest.skip(f"npm's registry gave no {PACKAGES}: {made.stderr.strip()[-200:]}")
    return Path(shutil.copy(PROGRAM, folder))


@pytest.fixture(scope="module")
def told(program: Path, demo: Any) -> Any:
    """What the program found."""
    (parameters,) = (tool["parameters"] for tool in TOOLS if tool["name"] == USE.name)
    given = {"use": {**USE._asdict(), "parameters": parameters}, "texts": TEXTS}
    ran = subprocess.run(
        ["node", str(program), f"{demo.url}/v1", "demo", json.dumps(given)],
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_an_answer_is_that_of_any_client(told: Any, demo: Any) -> None:
    body: Any = {
        "messages": [{"role": "user", "content": "What is a quire?"}],
        **{"seed": 3, "max_tokens": 12, "temperature": 1},
    }
    oracle = requests.post(f"{demo.url}/v1/chat/completions", json=body, timeout=60).json()
    choice = oracle["choices"][0]
    assert told["whole"] == told["stream"] == choice["message"]["content"]
    assert told["usage"]["total_tokens"] == oracle["usage"]["total_tokens"]
    assert told["reasons"] == [choice["finish_reason"]]
    assert told["models"] == ["demo"]


def test_calls_are_read_whole_and_streamed(told: Any) -> None:
    (call,) = told["calls"][:1]
    (streamed,) = told["final"]["choices"]
    for one in (call, streamed["message"]["tool_calls"][0]):
        assert one["type"] == "function" and one["id"]
        assert one["function"]["name"] == "look"
        assert json.loads(one["function"]["arguments"])["at"] in ("here", "there")


def test_errors_have_the_packages_types(told: Any) -> None:
    missing, hot, streamed = told["errors"]
    assert missing["kind"] == "NotFoundError" and missing["code"] == "model_not_found"
    for error in (hot, streamed):
        assert error["kind"] == "BadRequestError" and error["param"] == "temperature"
        assert error["status"] == 400


def test_the_packages_loop_over_tools_ends_with_the_answer(told: Any) -> None:
    assert told["used"] == [{"answer": USE.answer, "calls": [USE.arguments]}] * 2


def test_forms_are_parsed_whole_and_streamed(told: Any) -> None:
    for whole, streamed in (told["pets"], told["responses"]):
        assert whole == streamed
        assert whole["kind"] in ("cat", "fox") and isinstance(whole["old"], bool)


def test_texts_are_embedded(told: Any, demo: Any) -> None:
    """The package asks for base64, and unpacks it."""
    wanted = requests.post(f"{demo.url}/v1/embeddings", json={"input": TEXTS}, timeout=60).json()
    found, numbers = told["embedding"], [one["embedding"] for one in wanted["data"]]
    assert np.array_equal(np.array(found, np.float32), np.array(numbers, np.float32))


def test_a_program_that_goes_away_aborts_its_requests(told: Any, demo: Any) -> None:
    """One stream that it stops to read, and one answer that it stops to wait for."""
    assert told["aborted"] and told["rejected"] == "APIUserAbortError"
    demo.wait_until_empty()
    assert demo.num_aborted() == 2
    assert demo.num_used_blocks() == 0
