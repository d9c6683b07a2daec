"""Faults planted in allocator, scheduler, core, index, runner and sampler: a tool, not a test.

    python -m quire.fuzz.engine_faults [--minutes N] [WORD ...]

Each fault (whose name or file has one of the words) is written into a copy of the package, and
`quire.fuzz.run` explores there until it fails, two faults at a time. What survives is a missing
check; a fault whose old text is gone needs another.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .planting import plant


class Fault(NamedTuple):
    """One change that no exploration may let pass."""

    file: str
    """Below engine/."""
    name: str
    old: str
    new: str


FAULTS = tuple(
    Fault(*one)
    for one in (
        ("kv/block_pool.py", "a hit stays queued", "self._place[idle] = _NOWHERE", "pass"),
        ("kv/block_pool.py", "a shared block is freed", "ids[after == 0]", "ids[after <= 1]"),
        ("kv/block_pool.py", "taken blocks keep keys", "return ids, blank", "return ids, count"),
        (
            "kv/block_table.py",
            "a slot holds one token more",
            "self.capacity[slots] = lengths * self.block_size",
            "self.capacity[slots] = lengths * self.block_size + 1",
        ),
        ("kv/hashing.py", "salts are all alike", "salt.encode(", "salt[:0].encode("),
        ("kv/hashing.py", "keys are not chained", "_digest(key + data[", "_digest(data["),
        (
            "kv/prefix_index.py",
            "not the best sibling",
            "(blocks[best], length)",
            "(blocks[0], length)",
        ),
        ("kv/prefix_index.py", "evicted keys stay", "del self._blocks[key]", "pass"),
        (
            "sched/scheduler.py",
            "copy sources are not held",
            "self._memory.pool.hold(hit.held())\n            else",
            "self._memory.pool.hold(hit.blocks[hit.blocks >= 0])\n            else",
        ),
        (
            "sched/scheduler.py",
            "an abort frees at once",
            "self._running.remove(sequence)\n        if self._is_in_flight(sequence.slot):",
            "self._running.remove(sequence)\n        if len(self._flights) > 1:",
        ),
        (
            "sched/scheduler.py",
            "a preempted one loses a token",
            "sequence.token_ids = self._known_tokens(sequence)",
            "sequence.token_ids = self._known_tokens(sequence)[:-1]",
        ),
        (
            "sched/shares.py",
            "a fork writes its parent's block",
            "Hit(blocks[:full], int(blocks[full]) if rest else -1, num_tokens)",
            "Hit(blocks[: full + (rest > 0)], -1, num_tokens)",
        ),
        (
            "../kernels/cpu/edits.py",
            "penalties count the prompt",
            "for i in range(num_prompt, len(history))",
            "for i in range(len(history))",
        ),
        ("sched/planner.py", "the oldest is preempted", "idle = slots[1:]", "idle = slots[0:]"),
        (
            "sched/sequence.py",
            "a full hit computes nothing",
            "most = len(self.token_ids) - 1",
            "most = len(self.token_ids)",
        ),
        (
            "sched/sequence.py",
            "one that tells of its prompt hits a token of it",
            "min(most, self.num_told - 1)",
            "min(most, self.num_told)",
        ),
        (
            "sched/scoring.py",
            "told again after a preemption",
            "max(first + 1, sequence.num_told)",
            "first + 1",
        ),
        (
            "sched/scoring.py",
            "an aborted one tells more",
            "if table.draining[slot]:",
            "if table.draining[slot] and plan.step % 2:",
        ),
        (
            "device/prompt_scores.py",
            "scored by the logits behind it",
            "first + start - 1 : first + end - 1",
            "first + start : first + end",
        ),
        (
            "sched/memory.py",
            "published before it is written",
            "int(min(table.known[slot], table.submitted[slot]))",
            "int(table.known[slot])",
        ),
        ("sched/memory.py", "computed beyond the end", "sequence.max_len - 1", "sequence.max_len"),
        (
            "sched/stopping.py",
            "one token too many",
            "len(tokens) >= sequence.max",
            "len(tokens) > sequence.max",
        ),
        (
            "core.py",
            "steps behind a dead one land",
            "            self._drain()\n            return",
            "            return",
        ),
        (
            "core.py",
            "the newest step lands first",
            "plan, future = self._in_flight.popleft()",
            "plan, future = self._in_flight.pop()",
        ),
        (
            "device/runner.py",
            "one copy is not done",
            "if len(plan.copy_sources):",
            "if len(plan.copy_sources) > 1:",
        ),
        (
            "device/runner.py",
            "a token is stored one place off",
            "tensors.sample_positions[:size], drawn",
            "tensors.sample_positions[:size] - 1, drawn",
        ),
        (
            "device/state.py",
            "new blocks go to one slot",
            "np.multiply(plan.block_slots, width",
            "np.multiply(plan.block_slots[:1], width",
        ),
        (
            "device/sampling_rows.py",
            "noise of the next token",
            "positions - words[4]",
            "positions - words[4] + 1",
        ),
        (
            "device/sampling_rows.py",
            "min_tokens is one more",
            "indices < words[5]",
            "indices <= words[5]",
        ),
        (
            "plan.py",
            "a wrong guess counts",
            "(token_ids[:-1] != guesses[1:]) | (token_ids[1:] == VOID)",
            "token_ids[1:] == VOID",
        ),
        (
            "sched/drafting.py",
            "tokens behind a guessed end count",
            "return row + 1",
            "return len(drawn)",
        ),
        (
            "sched/drafting.py",
            "wrong guesses stay computed",
            "table.submitted[slots] = table.known[slots] - 1",
            "pass",
        ),
        (
            "sched/drafting.py",
            "guesses take blocks of others",
            "if num_blocks > num_free:",
            "if num_blocks > num_free + 1:",
        ),
        (
            "sched/scheduler.py",
            "guesses in flight are planned behind",
            "np.where(counts > 0, ends, target + samples)",
            "np.where(counts > 0, ends + 1, target + samples)",
        ),
        (
            "device/state.py",
            "guesses stand one place late",
            "repeat(counts) - behind",
            "repeat(counts) - behind + 1",
        ),
        (
            "device/grammar_rows.py",
            "a guess moves the follower itself",
            "ahead = ahead.copy()",
            "pass",
        ),
        ("device/sampling_rows.py", "min_p is forgotten", "] = params.min_p", "] = 0.0"),
        (
            "device/sampler.py",
            "what is told is edited",
            "ops.logprobs(logits,",
            "ops.logprobs(source.logits,",
        ),
    )
)


def verdict(fault: Fault, minutes: float) -> str:
    """Explore a faulty copy: what became of it, and after how long."""
    with tempfile.TemporaryDirectory() as folder:
        home = plant(f"engine/{fault.file}", fault.old, fault.new, Path(folder))
        if home is None:
            return "GONE: its old text is not in the engine"
        command = [sys.executable, "-m", "quire.fuzz.run", "--minutes", str(minutes)]
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        begin_s = time.monotonic()
        run = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True)
        took = f"{time.monotonic() - begin_s:.0f} s"
    lines = run.stdout.decode().splitlines()
    took += "".join(f" ({one.split(', ')[1]})" for one in lines if one.endswith("in this process"))
    if run.returncode == 0:
        return f"SURVIVED {took}"
    by = [line for line in lines if " failed with --machine " in line]
    return f"caught in {took} by {by[0].split()[0]}" if by else f"caught in {took}: it crashed"


def main(arguments: list[str] | None = None) -> int:
    """Plant the faults that have one of the words (none: all); how many were not caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each fault")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args(arguments)
    words = options.words
    chosen = [x for x in FAULTS if not words or any(w in x.name + x.file for w in words)]
    num_missed = 0
    with ThreadPoolExecutor(2) as pool:
        verdicts = pool.map(verdict, chosen, [options.minutes] * len(chosen))
        for fault, text in zip(chosen, verdicts, strict=True):
            num_missed += not text.startswith("caught")
            print(f"{fault.file:24} {fault.name:34} {text}", flush=True)
    return num_missed


if __name__ == "__main__":
    sys.exit(main() > 0)
