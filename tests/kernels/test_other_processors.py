"""Kernels compiled as for processors that lack what this one has: the same bits, by other means."""

from __future__ import annotations

import subprocess
import sys

import pytest
from quire.kernels.cpu.emit import TAGS, promised_tag

PROGRAM = """
import os
import llvmlite.binding as binding
host = dict(binding.get_host_cpu_features())
features = {name: on and not name.startswith(("avx512", "amx")) for name, on in host.items()}
binding.get_host_cpu_features = lambda: features
os.environ["NUMBA_CPU_NAME"] = "haswell"
os.environ["NUMBA_CPU_FEATURES"] = ",".join("-+"[on] + name for name, on in features.items())
from quire.kernels.cpu import choice, emit
for sums in emit.TAGS:
    print(choice.best_tag(sums), emit.promised_tag(sums))
"""


SAMPLING = """
import torch
from quire.engine.device import check
from quire.engine.opset import choose_ops
cases = [case for case in check.FULL if case.op in ("sample", "edit_logits", "logprobs")]
shapes = [check.SHAPES[0], check.SHAPES[1], check.SHAPES[1]._replace(vocab=64)]
for verdict in check.run_checks(choose_ops("cpu", "auto"), torch.device("cpu"), shapes, cases):
    print(verdict.fault)
"""


def test_without_wide_vectors_sampling_has_the_same_bits() -> None:
    command = [sys.executable, "-c", PROGRAM + SAMPLING]
    given = subprocess.run(command, capture_output=True, text=True, check=False)
    assert given.returncode == 0, given.stderr
    assert given.stdout.splitlines()[2:] == ["None"] * 9, given.stderr


def test_without_wide_vectors_fused_multiply_adds_have_the_same_bits() -> None:
    """What a processor with AVX2 alone runs: `best_tag` compares it with the definition."""
    if promised_tag("pairs") == TAGS["pairs"][-1]:
        pytest.skip("no fused multiply-add on this processor")
    command = [sys.executable, "-c", PROGRAM]
    given = subprocess.run(command, capture_output=True, text=True, check=False)
    assert given.returncode == 0, given.stderr
    lines = given.stdout.splitlines()
    assert lines == [f"{fused} {fused}" for _, fused, _ in TAGS.values()], given.stderr
