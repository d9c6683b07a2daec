"""`quire replay`: a recorded log run again, told in a few lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ..engine.replay import (
    Verdict,
    compare_backends,
    load_traced,
    replay,
    replay_config,
    replay_requests,
)
from ..engine.trace import Added, Log, read_log


def replay_file(file: str, options: Mapping[str, Any], request_id: str | None = None) -> int:
    """Replay a log and print what is found; return 0 where everything is equal, else 1.

    options: of EngineConfig, instead of the recorded ones. QuireError where it cannot be done.
    """
    log = read_log(Path(file))
    print(f"{file}: {len(log.entries)} entries, recorded by Quire {log.header.version}", flush=True)
    if request_id is not None:
        for entry in log.entries:
            if isinstance(entry, Added) and entry.request.request_id == request_id and entry.text:
                print(f"Its prompt: {entry.text!r}")
        return _tell(replay_requests(log, options, request_id), f"Request {request_id}, alone")
    if not log.is_foldable:
        gone = "Logits processors are" if log.is_whole else "Its beginning is"
        print(f"{gone} gone, so plans cannot be compared, but tokens can.", flush=True)
        return _tell(replay_requests(log, options), "Requests that it tells whole")
    verdict = replay(log, options)
    status = _tell(verdict, "The whole log")
    if verdict.mismatch is not None and verdict.mismatch.request_id is not None:
        _explain(log, options, verdict.mismatch.step)
    return status


def _tell(verdict: Verdict, what: str) -> int:
    steps = f"{verdict.num_steps} steps, " if verdict.num_steps else ""
    print(f"{what}: {verdict.num_requests} requests, {steps}{verdict.num_tokens} tokens compared.")
    if verdict.unknown:
        print(f"{len(verdict.unknown)} requests began before the log and were left out.")
    if verdict.unrecorded:
        names = ", ".join(verdict.unrecorded[:5])
        print(
            f"{len(verdict.unrecorded)} requests have logits processors, which are not recorded: "
            f"they cannot be run again and were left out ({names})."
        )
    if verdict.mismatch is None:
        print("All are equal, bit for bit.")
        return 0
    step, name, text = verdict.mismatch
    where = f"step {step}" if step else "the answers"
    print(f"First difference in {where}{f', request {name}' if name else ''}: {text}.")
    return 1


def _explain(log: Log, options: Mapping[str, Any], last_step: int) -> None:
    """Name the operation in which the kernels and the reference part, if they do."""
    config = replay_config(log.header, options)
    if config.device == "cuda":
        print("On a GPU sums have an order of their own: operations are not compared.")
        return
    print("Comparing every operation with the reference, step by step ...", flush=True)
    sides = [load_traced(replace(config, backend=backend)) for backend in ("kernels", "reference")]
    loaded, tracers = zip(*sides, strict=True)
    found = compare_backends(log, loaded, tracers, last_step)
    if found is None:
        print("None differs: the log was recorded with other weights, code or machine.")
    else:
        print(f"First in step {found.step}, request {found.request_id}: {found.name}.")
