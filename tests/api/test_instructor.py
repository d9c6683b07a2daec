"""instructor against the server, unchanged.

It asks for older packages than openai does, so it is no dependency: it comes from the registry,
into a folder of the test, and without that is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from .instructor_client import MESSAGES, MODES, Pet

PACKAGES = ("instructor>=1.10,<2", "docstring-parser<1")
PROGRAM = Path(__file__).with_name("instructor_client.py")
INSTALL_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def told(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the program found."""
    folder = tmp_path_factory.mktemp("instructor")
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--retries=1", "--target")
    try:
        made = subprocess.run(
            [*pip, str(folder), *PACKAGES],
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the registry gave no instructor in {INSTALL_TIMEOUT_S} s")
    if made.returncode:
        pytest.skip(f"the registry gave no instructor: {made.stderr.strip()[-200:]}")
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), demo.url, "demo"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    demo.wait_until_empty()
    assert demo.num_used_blocks() == 0
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_of_the_class_that_was_asked(told: Any, mode: str) -> None:
    assert Pet(**told["pets"][mode])
    # Its class of unfinished ones has another schema, and so the last is another pet.
    parts = told["partial"][mode]
    assert len(parts) > 3
    last = Pet(**parts[-1])
    assert all(last.name.startswith(part["name"] or "") for part in parts)


def test_without_a_class_an_answer_is_a_text(told: Any, demo: Any) -> None:
    body: Any = {"messages": MESSAGES, "max_tokens": 200, "temperature": 0}
    oracle = requests.post(f"{demo.url}/v1/chat/completions", json=body, timeout=60).json()
    assert told["plain"] == [oracle["choices"][0]["message"]["content"]] * 2


def test_what_is_cancelled_is_aborted(told: Any, demo: Any) -> None:
    """Whether a program waits for the whole object, or looks at it while it grows."""
    assert list(told["cancelled"].values()) == [[True, True]] * len(MODES)
    assert demo.num_aborted() == 2 * len(MODES)


def test_errors_are_caused_by_openais(told: Any) -> None:
    assert [one[0] for one in told["errors"].values()] == ["NotFoundError", "BadRequestError"]
    assert "gpt" in told["errors"]["model"][1] and "1e+300" in told["errors"]["temperature"][1]
