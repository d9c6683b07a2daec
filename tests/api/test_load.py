"""`quire bench`: what it sends, what it counts, what it says of a server that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from quire.api.cli import main
from quire.api.load import Sample, percentile, report, times_of


def ask(*arguments: str) -> int:
    return main(["bench", *arguments])


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_it_counts_what_the_server_counts(
    live: Any, tmp_path: Path, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    code = ask(
        *("--url", f"{live.url}/v1", "--endpoint", endpoint, "--num-prompts", "9"),
        *("--concurrency", "4", "--request-rate", "200", "--input-len", "5", "--shared-len", "3"),
        *("--output-len", "6", "--json", str(figures), "--plot", str(plot)),
    )
    assert code == 0
    found = json.loads(figures.read_text())
    assert (found["requests"], found["failed"]) == (9, 0)
    tokens = found["output_tokens_per_s"] * found["seconds"]
    assert round(tokens) == 9 * 6
    assert 0 < found["ttft_ms_p50"] <= found["e2e_ms_p50"] <= 1e3 * found["seconds"]
    assert "ttft_ms_p99" in capsys.readouterr().out
    ElementTree.fromstring(plot.read_text())


def test_what_fails_is_told(live: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("--url", live.url, "--model", "other", "--num-prompts", "2") == 1
    told = capsys.readouterr()
    assert "404" in told.err and "does not exist here" in told.err
    assert ask("--url", "http://127.0.0.1:1", "--num-prompts", "1") == 1
    assert "cannot be asked" in capsys.readouterr().err


def test_figures_are_those_of_the_samples() -> None:
    good = Sample(1.0, [1.5, 2.0, 3.0], 3.5, num_prompt=10, num_output=6)
    bad = Sample(1.0, error="500")
    times = times_of([good, bad])
    assert times == {"ttft": [500.0], "tpot": [300.0], "itl": [500.0, 1000.0], "e2e": [2500.0]}
    figures = report([good, bad], 4.0)
    assert (figures["requests"], figures["failed"], figures["tokens_per_event"]) == (1, 1, 2)
    assert (figures["output_tokens_per_s"], figures["total_tokens_per_s"]) == (1.5, 4.0)
    assert [percentile([3, 1, 2], percent) for percent in (0, 34, 50, 99, 100)] == [1, 2, 2, 3, 3]
