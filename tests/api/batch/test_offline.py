"""`quire run-batch`: the answers of a server without one, and what is left when it is ended."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from quire.api import cli
from quire.api.batch.journal import Journal

CHAT = "/v1/chat/completions"


def make_line(number: int, url: str, **body: Any) -> str:
    line = {"custom_id": f"c{number}", "method": "POST", "url": url, "body": body}
    return json.dumps(line) + "\n"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def options(model_folder: Path) -> list[str]:
    return [
        *("--model", str(model_folder), "--load-format", "dummy", "--backend", "reference"),
        *("--served-model-name", "tiny", "--num-kv-blocks", "64", "--num-threads", "1"),
        *("--max-num-seqs", "16"),
    ]


def run(*arguments: Any) -> int:
    return cli.main(["run-batch", *map(str, arguments)])


def test_answers_are_those_of_a_server(live: Any, options: list[str], tmp_path: Path) -> None:
    """Of all endpoints in one input, in its order, errors among them."""
    asked: Sequence[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": [{"role": "user", "content": "the cat"}], "seed": 4, "max_tokens": 9}),
        ("/v1/completions", {"prompt": "the", "max_tokens": 6, "temperature": 0, "seed": 4}),
        ("/v1/completions", {"prompt": "the", "top_p": 7}),
        ("/v1/responses", {"input": "the", "max_output_tokens": 3, "temperature": 0}),
        ("/v1/embeddings", {"input": "the cat", "model": "tiny"}),
        ("/score", {"text_1": "the", "text_2": "cat"}),
        ("/rerank", {"query": "the", "documents": ["cat", "mat"]}),
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(make_line(n, url, **body) for n, (url, body) in enumerate(asked)))
    assert run("-i", source, "-o", target, *options) == 0
    found = lines(target)
    assert [line["custom_id"] for line in found] == [f"c{number}" for number in range(7)]
    for (url, body), line in zip(asked, found, strict=True):
        direct = requests.post(live.url + url, json=body, timeout=60)
        assert line["response"]["status_code"] == direct.status_code
        for part in ("choices", "data", "results"):
            assert line["response"]["body"].get(part) == direct.json().get(part), url
        if url == "/v1/responses":
            texts = [
                one["output"][-1]["content"] for one in (line["response"]["body"], direct.json())
            ]
            assert texts[0] == texts[1]
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_from_stdin_to_stdout(
    options: list[str], capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(make_line(n, "/v1/completions", prompt="the", max_tokens=2) for n in range(3))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert run("-i", "-", "-o", "-", *options) == 0
    out = capfdbinary.readouterr().out
    assert [json.loads(line)["custom_id"] for line in out.splitlines()] == ["c0", "c1", "c2"]


def test_what_is_ended_goes_on(options: list[str], tmp_path: Path, capsys: Any) -> None:
    """Killed in the middle: what was answered is not asked again, and nothing looks finished."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(
            make_line(n, "/v1/completions", prompt="the", max_tokens=12, ignore_eos=True)
            for n in range(24)
        )
    )
    partial = tmp_path / "out.jsonl.partial"
    command = [sys.executable, "-m", "quire.api.cli", "run-batch", "-i", str(source), "-o"]
    given = [str(target), "--max-batch-in-flight", "2", *options]
    with subprocess.Popen([*command, *given], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        # The bar of its progress tells when to look.
        while os.read(process.stderr.fileno(), 2**16):
            if partial.exists() and partial.stat().st_size > 2000:
                break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert not target.exists()
    with Journal(partial) as journal:
        journal.read()
        done = [f"c{number}" for number in range(24) if f"c{number}" in journal]
    assert 0 < len(done) < 24
    before = {line["custom_id"]: line["id"] for line in lines(partial)[: len(done)]}
    assert run("-i", source, "-o", target, *options) == 1
    assert "go on with --resume, or delete it" in capsys.readouterr().err
    with partial.open("ab") as file:
        file.write(b'{"id":"torn')
    assert run("-i", source, "-o", target, "--resume", *options) == 0
    found = lines(target)
    assert [line["custom_id"] for line in found] == [f"c{number}" for number in range(24)]
    kept = {line["custom_id"]: line["id"] for line in found if line["custom_id"] in before}
    assert kept == before
    assert not partial.exists()


def test_wrong_inputs_are_told_before_a_model_is_loaded(
    tmp_path: Path, capsys: Any, options: list[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("{\n" * 20 + make_line(1, "/v1/files"))
    for arguments, words in (
        (("-i", source, "-o", target), ("in.jsonl cannot be asked", "line 10: ", "and 11 more")),
        (("-i", tmp_path / "none", "-o", target), ("there is no such file",)),
        (("-i", source, "-o", "-", "--resume"), ("resume needs an output",)),
        (("-i", source, "-o", tmp_path / "no" / "out"), ("no/out",)),
        (("-i", source, "-o", tmp_path), ("is a folder",)),
        (("-i", source, "-o", target), ("no model",)),
    ):
        if "line 10: " not in words:
            source.write_text(make_line(1, "/v1/completions", prompt="a"))
        assert run(*arguments, "--model", tmp_path / "no model") == 1
        told = capsys.readouterr().err
        assert all(word in told for word in words), told
    assert os.listdir(tmp_path) == ["in.jsonl"]
    with pytest.raises(SystemExit):
        run("-i", source, "-o", target, "--max-batch-in-flight", "0")
    assert "1 to 65536" in capsys.readouterr().err
