"""Kernels compiled as for processors that lack what this one has: the same bits, by other means."""

from __future__ import annotations

import os
import subprocess
import sys

import llvmlite.binding
import pytest
from quire.kernels.cpu.emit import TAGS

PROGRAM = """
import llvmlite.binding as binding
binding.get_host_cpu_features = lambda: {features}
from quire.kernels.cpu import choice, emit
for sums in emit.TAGS:
    print(choice.best_tag(sums), emit.promised_tag(sums))
"""


def test_without_wide_vectors_fused_multiply_adds_have_the_same_bits() -> None:
    """What a processor with AVX2 alone runs: `best_tag` compares it with the definition."""
    host = dict(llvmlite.binding.get_host_cpu_features())
    if not host.get("fma"):
        pytest.skip("no fused multiply-add on this processor")
    features = {name: on and not name.startswith(("avx512", "amx")) for name, on in host.items()}
    spelled = ",".join(("+" if on else "-") + name for name, on in features.items())
    environment = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": spelled}
    program = PROGRAM.format(features=features)
    given = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert given.returncode == 0, given.stderr
    lines = given.stdout.splitlines()
    assert lines == [f"{fused} {fused}" for _, fused, _ in TAGS.values()], given.stderr
