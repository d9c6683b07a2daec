"""Faults planted in the kernels of the GPU, to see the tests find them: a tool, not a test.

    python -m quire.fuzz.gpu_faults [WORD ...]

Each fault (whose name or file has one of the words) is written into a copy of the package, and the
tests of its file run there, two faults at a time. What survives is a missing test; a fault whose
old text is gone from the kernels needs another.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .planting import ROOT, plant

TIMEOUT_S = 300


class Fault(NamedTuple):
    """One change of a kernel that no test may let pass."""

    name: str
    file: str
    old: str
    new: str
    """Every occurrence of the old text becomes this."""


ATTENTION = [
    ("a query does not see itself", "<= position) & held", "< position + (position == 0)) & held"),
    ("a query sees the next key", "(key[None, :] <= position)", "(key[None, :] <= position + 1)"),
    ("the window is wider by one", "> position - window)", ">= position - window)"),
    ("a chunk starts at position 0", "(kv_len - count + query)[:, None]", "query[:, None]"),
    ("a merge forgets to scale sums", "l * a + other_l * b", "l + other_l * b"),
    ("a merge scales the wrong side", "acc * a + other_acc * b", "acc * b + other_acc * a"),
    ("keys behind the window are read", "held & (key >= lowest)", "held & (key >= 0)"),
    ("heads of a group are mixed up", "GROUP + r % GROUP", "GROUP + r % GROUP // 2"),
    ("blocks past the 30th", "key // BLOCK_SIZE, held", "key // BLOCK_SIZE % 30, held"),
    ("a key past the end is read", "held = key < end", "held = key < end + 1"),
    ("the last key of long rows is lost", "held = key < end", "held = key < end - (end > 700)"),
    ("the slot is not looked up", "tl.load(slots_ptr + row).to", "row.to"),
    ("only 4 parts are merged", "range(0, num_segments, AT_ONCE)", "range(0, 1, AT_ONCE)"),
    (
        "a prefill ends after 4 segments",
        "SEGMENT, end, SEGMENT):",
        "SEGMENT, min(end, 512), SEGMENT):",
    ),
    ("parts ignore where a window begins", "((begin + first + i)", "((first + i)"),
    ("the count of ended programs stays", "tl.store(counter_ptr, 0)", "tl.store(counter_ptr, 1)"),
    ("scores in tf32", 'tl.dot(q, k, input_precision="ieee")', "tl.dot(q, k)"),
    (
        "probabilities in float16",
        "tl.exp2(scores - m).to(q.dtype)",
        "tl.exp2(scores - m).to(tl.float16).to(q.dtype)",
    ),
    ("parts in bfloat16", "place_ptr + d, acc,", "place_ptr + d, acc.to(tl.bfloat16),"),
    ("division is approximate", "tl.div_rn(acc, tl.broadcast_to(", "(acc / tl.broadcast_to("),
    ("narrow heads are not masked", "mask & (d < HEAD_DIM)", "mask"),
    ("fresh keys are not read", "is_fresh.to(tl.int32), 0) > 0:", "is_fresh.to(tl.int32), 0) > 1:"),
    ("a program takes segments side by side", "segment += splits", "segment += 1"),
    ("a program loads one segment", "if i + 1 < num_own:", "if i + 1 < min(num_own, 1):"),
    ("values of the segment before", "line, held = find_lines(", "_, held = find_lines("),
    ("more splits than segments", "if num_own <= 0:", "if num_own < 0:"),
    (
        "prompts are decoded too",
        "tl.where(count == 1, tl.load(lens",
        "tl.where(count > 0, tl.load(lens",
    ),
    ("a cap is not a cap", "scores = _tanh(scores) * cap", "scores = scores * cap"),
    ("a tanh of large scores is NaN", "tl.where(x > 126.0, 126.0,", "tl.where(x > 300.0, 300.0,"),
    ("sinks have no weight", "COLUMNS], 1.0, tl.float32)", "COLUMNS], 0.0, tl.float32)"),
    ("sinks of other heads", "sinks_ptr + head, live", "sinks_ptr + 0 * head, live"),
    ("sinks are not in powers of two", "return sinks * _LOG2_E, tl", "return sinks, tl"),
    ("the first program of a row", "+ middle <= program:", "+ middle < program:"),
    ("the last chunk has all queries", "(query < count) & (r", "(r"),
    ("no later key of a chunk is seen", "if IS_CAUSAL:", "if True:"),
    (
        "keys end with a program's queries",
        "end = kv_len\n",
        "end = kv_len - count + tl.minimum(first_query + QUERIES, count)\n",
    ),
    ("the last of all keys is not seen", "tl.int32) + (kv_len - 1)", "tl.int32) + (kv_len - 2)"),
]
LINEAR = [
    ("a column past the end of K", "k < width - first", "k <= width - first"),
    ("groups of rows do not end", "tl.minimum(row_tiles - first, GROUP)", "GROUP"),
    ("denormals stay", "total * 0.0, total)", "total, total)"),
    ("rows are thought to be dense", "* stride_x + k", "* width + k"),
    (
        "float32 in tf32",
        'tl.dot(x, weight, total, input_precision="ieee")',
        "tl.dot(x, weight, total)",
    ),
    (
        "the last tile is left out",
        "tl.program_id(0), num_tiles,",
        "tl.program_id(0), num_tiles - 1,",
    ),
    ("segments are added in line", "add_tree(parts)", "sum(parts[1:], parts[0])"),
    ("segments have no bias", "total + weight.bias.float()", "total"),
    ("gates and ups are swapped", "gate, up = pairs", "up, gate = pairs"),
    (
        "sums are rounded in between",
        "total = tl.dot(x, weight.T, total)",
        "total = tl.dot(x, weight.T, total.to(tl.bfloat16).to(tl.float32))",
    ),
]
ROWS = [
    ("norm.py", "eps is forgotten", "tl.sqrt_rn(mean + eps)", "tl.sqrt_rn(mean)"),
    ("norm.py", "the mean is of the padded width", "width.to(tl.float32)", "BLOCK * 1.0"),
    ("norm.py", "x is thought to be dense", "row * stride_x", "row * width"),
    ("norm.py", "the mean is not taken away", "inside, x - mean, 0.0", "inside, x, 0.0"),
    (
        "norm.py",
        "what is not there has a mean",
        "inside, x - mean, 0.0",
        "inside | (x == 0), x - mean, 0.0",
    ),
    (
        "norm.py",
        "a sum is not rounded",
        "x = total.to(out_ptr.dtype.element_ty).to(tl.float32)",
        "x = total",
    ),
    ("norm.py", "the bias is forgotten", "* weight) + bias", "* weight)"),
    ("norm.py", "the variance has no eps", "tl.sqrt_rn(variance + eps)", "tl.sqrt_rn(variance)"),
    ("activation.py", "a tail is not mirrored", "tl.where(x < 0.0, q, 1.0 - q)", "1.0 - q"),
    ("activation.py", "a step of the tail is not fused", "fma(p, t, _T3)", "(p * t + _T3)"),
    (
        "activation.py",
        "wide GELUs end early",
        "columns < width\n    x = ",
        "columns < min(width, 2000)\n    x = ",
    ),
    ("activation.py", "the exponent is not clamped", "t > 126.0, 126.0", "t > 127.0, 127.0"),
    (
        "activation.py",
        "division is approximate",
        "tl.div_rn(gate, exp2(t) + 1.0)",
        "(gate / (exp2(t) + 1.0))",
    ),
    ("math.py", "a step of exp2 is not fused", "fma(p, f, _E2)", "(p * f + _E2)"),
    ("embedding.py", "wide rows end early", "tl.program_id(1) * WIDTH", "0 * WIDTH"),
]
MEMORY = [
    ("rope.py", "padding is written", "& (place >= 0)", ""),
    ("rope.py", "turned the other way", "(a * cos - b * sin)", "(a * cos + b * sin)"),
    (
        "rope.py",
        "keys have the norm of queries",
        "tl.load(k_norm_ptr + i",
        "tl.load(q_norm_ptr + i",
    ),
    ("rope.py", "values are turned", "half + i, raw_b", "half + i, turned_b"),
    (
        "rope.py",
        "a block is of one kv head",
        "place // block_size * kv_heads",
        "place // block_size",
    ),
    (
        "kv.py",
        "values stay behind",
        "(triton.cdiv(num_words, COPY_WIDTH), 2)",
        "(triton.cdiv(num_words, COPY_WIDTH), 1)",
    ),
    (
        "kv.py",
        "copies in another order",
        "tl.load(sources_ptr + i)",
        "tl.load(sources_ptr + num_copies - 1 - i)",
    ),
    ("prepare.py", "padding has a place", "tl.where(live, place, -1)", "place"),
    ("prepare.py", "-1 is stored", "tl.maximum(token, 0)", "token"),
    ("prepare.py", "padding has keys", "tl.where(live, start + count, 0)", "start + count"),
]


def file_of(text: str) -> str:
    """Return which of attention's files has a text: a segment's arithmetic, or who does what."""
    segments = ROOT / "kernels/gpu/segments.py"
    return "segments.py" if text in segments.read_text() else "attention.py"


TESTS = dict.fromkeys(("attention.py", "segments.py"), "attention") | {"linear.py": "linear"}
TESTS |= dict.fromkeys(("norm.py", "activation.py", "math.py", "embedding.py"), "rows")
TESTS |= dict.fromkeys(("rope.py", "kv.py", "prepare.py"), "memory")
FAULTS = [
    *(Fault(name, file_of(old), old, new) for name, old, new in ATTENTION),
    *(Fault(name, "linear.py", old, new) for name, old, new in LINEAR),
    *(Fault(name, file, old, new) for file, name, old, new in (*ROWS, *MEMORY)),
]


def verdict(fault: Fault) -> str:
    """Run the tests of a faulty copy: what became of it."""
    with tempfile.TemporaryDirectory() as folder:
        home = plant(f"kernels/gpu/{fault.file}", fault.old, fault.new, Path(folder))
        if home is None:
            return "GONE: its old text is not in the kernels"
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
        command.append(f"tests/gpu/test_gpu_{TESTS[fault.file]}.py")
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            run = subprocess.run(
                command,
                check=False,
                cwd=home,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return "caught: no end"
    if run.returncode == 0:
        return "SURVIVED"
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    if run.returncode != 1 or not failed:
        return f"caught: pytest ended with {run.returncode}\n{run.stdout[-600:]}{run.stderr[-600:]}"
    return f"caught by {failed[0].split('::')[-1].split(' - ')[0]}"


def main(words: list[str]) -> int:
    """Plant the faults that have one of the words (none: all); how many were not caught."""
    chosen = [x for x in FAULTS if not words or any(w in x.name + x.file for w in words)]
    num_missed = 0
    with ThreadPoolExecutor(2) as pool:
        for fault, text in zip(chosen, pool.map(verdict, chosen), strict=True):
            num_missed += not text.startswith("caught")
            print(f"{fault.file:14} {fault.name:36} {text}", flush=True)
    return num_missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
