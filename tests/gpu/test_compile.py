"""Kernels compile for GPUs that are not here, fit into them, and use what makes them fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from quire.kernels.gpu.attention import SPLIT_PROGRAMS

SCRIPT = Path(__file__).with_name("compile_kernels.py")
SHARED = {"sm_90": 232_448, "sm_80": 166_912}
"""Bytes of shared memory that a program may have."""
REGISTERS = 65_536
"""Of a processor."""
PARTS = ["attention", "linear", "rest", "sampling"]
SPILLED = {"_attend_many": 64, "_attend_parts": 32}
"""Bytes that a kernel may spill, where the head has no more than 128 elements of bfloat16."""
SLOW = {"float32": 2048, "256": 1024}
"""The same of kinds that have to be right, and need not be fast."""


@cache
def compiled(target: str, part: str) -> list[dict[str, Any]]:
    """Compile a part for a target in a process of its own: what is known of each kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), target, part]
    run = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert kernels
    return kernels


@pytest.mark.parametrize("part", [*PARTS, "table"])
def test_kernels_fit_into_hopper(part: str) -> None:
    for kernel in compiled("sm_90", part):
        allowed = SLOW.get(kernel["label"], SPILLED.get(kernel["name"], 0))
        assert kernel["spilled"] <= allowed, kernel
        assert kernel["shared"] <= SHARED["sm_90"], kernel


@pytest.mark.parametrize("part", PARTS)
def test_arithmetic_is_neither_fused_nor_approximate(part: str) -> None:
    for kernel in compiled("sm_90", part):
        assert not kernel["fused"], kernel
        assert not {"div.full.f32", "div.approx", "sqrt.approx"} & set(kernel["has"]), kernel


@pytest.mark.parametrize("part", PARTS)
def test_each_kernel_waits_for_the_one_before(part: str) -> None:
    """Launches overlap: a kernel that does not wait reads what is not yet written."""
    for kernel in compiled("sm_90", part):
        assert "griddepcontrol.wait" in kernel["has"], kernel


def test_prefill_multiplies_by_warp_groups() -> None:
    kernels = [x for x in compiled("sm_90", "attention") if x["name"] == "_attend_many"]
    fast = {x["label"]: x["has"] for x in kernels if x["label"] not in SLOW}
    assert {"128", "64", "window"} <= set(fast)
    assert all("wgmma" in has for has in fast.values()), fast


def test_decode_multiplies_by_the_matrix_unit_and_loads_ahead() -> None:
    kernels = compiled("sm_90", "attention")
    whole = [x["has"] for x in kernels if x["name"] == "_attend_one"]
    assert whole and all({"mma.sync", "cp.async.cg"} <= set(has) for has in whole), whole
    split = {x["label"]: x for x in kernels if x["name"] == "_attend_parts"}
    fast = {label: x for label, x in split.items() if label not in SLOW}
    assert {"128", "64", "window"} <= set(fast)
    for kernel in fast.values():
        assert "mma.sync" in kernel["has"], kernel
        assert kernel["registers"] * 128 * SPLIT_PROGRAMS <= REGISTERS, kernel
        assert kernel["shared"] * SPLIT_PROGRAMS <= SHARED["sm_90"], kernel


def test_linears_of_many_rows_multiply_by_warp_groups() -> None:
    has = {x["label"]: x["has"] for x in compiled("sm_90", "linear")}
    for label in ("64 rows", "256 rows", "1024 rows", "wide, 64 rows", "gated, 1024 rows"):
        assert "wgmma" in has[label], (label, has[label])
    assert "cp.async.bulk.tensor" in has["1024 rows"]


def test_linears_of_few_rows_load_ahead() -> None:
    has = {x["label"]: x["has"] for x in compiled("sm_90", "linear")}
    for label in ("1 rows", "32 rows", "wide, 1 row"):
        assert "mma.sync" in has[label], (label, has[label])
        assert {"cp.async.cg", "cp.async.bulk.tensor"} & set(has[label]), (label, has[label])


def test_what_no_kernel_writes_is_loaded_before_the_wait() -> None:
    """Keys of earlier steps, and weights where they are all that takes time."""
    attention = [x for x in compiled("sm_90", "attention") if x["name"] == "_attend_parts"]
    assert all("ld.global.v4" in x["early"] for x in attention), attention
    linears = [x for x in compiled("sm_90", "table") if x["name"] == "_multiply_moved"]
    few = {x["label"]: x["constants"]["ROWS"] <= 16 for x in linears}
    assert True in few.values() and False in few.values(), few
    for kernel in linears:
        assert ("cp.async.bulk.tensor" in kernel["early"]) == few[kernel["label"]], kernel


def test_kernels_fit_into_ampere() -> None:
    for kernel in compiled("sm_80", "few"):
        assert kernel["shared"] <= SHARED["sm_80"], kernel
        assert "griddepcontrol.wait" not in kernel["has"], kernel


def test_kernels_compile_for_amd() -> None:
    kernels = {kernel["name"]: kernel["has"] for kernel in compiled("gfx942", "few")}
    assert all(kernels[name] == ["mfma"] for name in ("_attend_many", "_attend_parts"))
