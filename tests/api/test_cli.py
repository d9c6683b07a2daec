"""The command line: options, exit codes, what is printed and when, signals, the chat."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from quire import __version__
from quire.api import cli
from quire.api.cli_values import read_bytes
from quire.engine.config import EngineConfig, ReasoningConfig
from quire.engine.device import check
from quire.engine.device.check_cases import SHORT
from quire.kernels import cpu

QUIRE = [sys.executable, "-m", "quire.api.cli"]
FAST = ["--load-format", "dummy", "--backend", "reference", "--num-kv-blocks", "64"]


@pytest.fixture(autouse=True)
def logger_is_left_alone() -> Iterator[None]:
    """The command line sets the logger up for its process, which here is the tests'."""
    logger = logging.getLogger("quire")
    before = logger.level, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]


def parse(*arguments: str) -> tuple[EngineConfig, Any]:
    """The engine's config and all options of a command line."""
    options = cli.make_parser().parse_args(arguments)
    return cli._engine_config(options), options


def test_every_engine_option_has_a_flag_and_a_help() -> None:
    fields = set(EngineConfig.__struct_fields__) - {"model"}
    assert set(cli.HELP) == fields
    text = subprocess.run([*QUIRE, "serve", "--help"], capture_output=True, text=True, check=True)
    for field in fields:
        assert f"--{field.replace('_', '-')}" in text.stdout


def test_flags_reach_the_config() -> None:
    config, options = parse(
        *("serve", "/m", "--max-model-len", "99", "--no-enable-prefix-caching", "--dtype"),
        *("float32", "--kv-cache-bytes", "1.5GiB", "--served-model-name", "x", "--overlap", "2"),
        *("--scheduling-policy", "priority", "--seed", "7", "--port", "0", "--api-key", "a"),
        *("--api-key", "b", "--drain-timeout", "0.5", "--reasoning-config"),
        '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}',
    )
    assert config == EngineConfig(
        model="/m",
        max_model_len=99,
        enable_prefix_caching=False,
        dtype="float32",
        kv_cache_bytes=3 * 2**29,
        served_model_name="x",
        overlap=2,
        scheduling_policy="priority",
        seed=7,
        reasoning_config=ReasoningConfig(
            reasoning_start_str="<think>", reasoning_end_str="</think>"
        ),
    )
    assert (options.port, options.api_key, options.drain_timeout) == (0, ["a", "b"], 0.5)


def test_without_a_model_the_demo_is_served_by_its_name() -> None:
    assert parse("serve")[0] == EngineConfig(served_model_name="demo")
    assert parse("serve", "--served-model-name", "mine")[0].served_model_name == "mine"
    assert parse("serve", "/m")[0].served_model_name is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("2GiB", 2**31), ("512mb", 2**29), ("1k", 1024), ("0.5 G", 2**29)],
)
def test_sizes(text: str, size: int) -> None:
    assert read_bytes(text) == size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["dance"], "dance"),
        (["serve", "--port", "99999"], "99999"),
        (["serve", "--port", "x"], "x"),
        (["serve", "--prot", "1"], "--prot"),
        (["serve", "--block-size", "0"], "block_size is 0"),
        (["serve", "--block-size", "big"], "big"),
        (["serve", "--dtype", "float16"], "float16"),
        (["serve", "--device", "tpu"], "tpu"),
        (["serve", "--overlap", "3"], "overlap is 3"),
        (["serve", "--gpu-memory-utilization", "1.5"], "gpu_memory_utilization is 1.5"),
        (["serve", "--gpu-memory-utilization", "nan"], "gpu_memory_utilization is nan"),
        (["check", "--device", "tpu"], "tpu"),
        (["serve", "--kv-cache-bytes", "lots"], "lots"),
        (["serve", "--kv-cache-bytes", "nan"], "nan"),
        (["serve", "--drain-timeout", "-1"], "-1"),
        (["serve", "--drain-timeout", "inf"], "inf"),
        (["serve", "--api-key", ""], "--api-key"),
        (["run", "--temperature", "-1"], "temperature is -1"),
        (["run", "--max-tokens", "0"], "max_tokens is 0"),
    ],
)
def test_bad_options_exit_with_2_and_a_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in last


def test_options_of_a_gpu_reach_the_config() -> None:
    config, _ = parse(
        *("serve", "--device", "cuda", "--enforce-eager", "--gpu-memory-utilization", "0.5")
    )
    assert (config.device, config.enforce_eager, config.overlap) == ("cuda", True, None)
    assert config.gpu_memory_utilization == 0.5


@pytest.fixture
def short_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of few cases."""
    monkeypatch.setattr(check, "SHAPES", (check.SHAPES[1],))
    monkeypatch.setattr(check.run_checks, "__defaults__", (check.SHAPES, SHORT))


@pytest.mark.usefixtures("short_check")
def test_check_prints_a_line_for_each_operation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "All are equal."
    assert len(lines) == len(SHORT) + 2
    assert all(line.startswith("ok ") for line in lines[1:-1])


@pytest.mark.usefixtures("short_check")
def test_check_exits_with_1_where_an_operation_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = cpu.rms_norm
    monkeypatch.setattr(cpu, "rms_norm", lambda *args: sound(*args).neg())
    assert cli.main(["check", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"WRONG +rms_norm .*\n +result\[0, 0\] is .*, expected ", out)
    assert out.endswith("1 wrong\n")


def test_no_gpu_exits_with_1_and_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["check", "--device", "cuda"]) == 1
    assert "--device cpu" in capsys.readouterr().err


def test_bad_log_level_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUIRE_LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as exit:
        cli.main(["serve"])
    assert exit.value.code == 2
    assert "LOUD" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"quire {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["run", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from quire.api.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'aiohttp', 'numpy', 'transformers', 'tokenizers', 'numba'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_curl_line_survives_the_shell() -> None:
    text = cli.greeting("http://h:1", 'it\'s "m" $HOME', asks_key=False)
    words = shlex.split(text.splitlines()[1].removeprefix("Try: "))
    assert words[:2] == ["curl", "http://h:1/v1/chat/completions"]
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == 'it\'s "m" $HOME'
    assert "Bearer $QUIRE_API_KEY" in cli.greeting("u", "m", asks_key=True)


def test_a_taken_port_exits_with_1_before_a_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*QUIRE, "serve", "/no/such/model", "--port", port],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert port in line
    assert "--port" in line


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["run"]])
def test_no_such_model_exits_with_1_and_a_line(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert cli.main([*command, "/no/such/model"]) == 1
    given = capsys.readouterr()
    assert given.out == ""
    (line,) = given.err.splitlines()
    assert "/no/such/model" in line


@contextmanager
def process(arguments: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command that is ended when the test is."""
    with subprocess.Popen([*QUIRE, *arguments], text=True, **options) as child:
        try:
            yield child
        finally:
            child.kill()


def test_serve_answers_and_drains_on_sigterm(model_folder: Path) -> None:
    arguments = ["serve", str(model_folder), "--port", "0", *FAST]
    environment = os.environ | {"QUIRE_API_KEY": "key"}
    with process(arguments, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        url = child.stdout.readline().split()[-1]
        headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
        body = {"prompt": "the cat", "max_tokens": 100, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(
            f"{url}/v1/completions", msgspec.json.encode(body), headers
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            first = response.readline()
            child.send_signal(signal.SIGTERM)
            rest = response.read()
        assert first.startswith(b"data: ")
        assert b'"finish_reason":"length"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert child.wait(30) == 0


def test_run_answers_what_is_piped_in(model_folder: Path) -> None:
    done = subprocess.run(
        [*QUIRE, "run", str(model_folder), *FAST, "--max-tokens", "8", "--seed", "3"],
        input="the cat",
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert "Traceback" not in done.stderr


def test_chat_in_a_terminal(model_folder: Path) -> None:
    parent, child_end = pty.openpty()
    os.set_blocking(parent, False)
    seen = b""

    def wait_for_prompts(count: int) -> None:
        nonlocal seen
        deadline_s = time.monotonic() + 60
        while seen.count(b">>> ") < count:
            assert time.monotonic() < deadline_s, seen
            try:
                seen += os.read(parent, 65536)
            except BlockingIOError:
                assert child.poll() is None, seen

    with process(
        ["run", str(model_folder), *FAST, "--system", "be"],
        stdin=child_end,
        stdout=child_end,
        stderr=child_end,
        start_new_session=True,
    ) as child:
        wait_for_prompts(1)
        for count, line in enumerate(
            (b"the cat\n", b"/reset\n", b"sat\n", b"the " * 200 + b"\n"), 2
        ):
            os.write(parent, line)
            if line == b"sat\n":
                child.send_signal(signal.SIGINT)
            wait_for_prompts(count)
        assert b"quire: The prompt has" in seen, seen
        os.write(parent, b"\x04")
        assert child.wait(30) == 0
    os.close(parent)
    os.close(child_end)
    assert b"Traceback" not in seen
