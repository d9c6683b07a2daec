"""Compile every kernel for a GPU that need not be there, and print what came out as JSON lines.

Run as a script, without TRITON_INTERPRET: `compile_kernels.py sm_90 attention`. Triton's driver is
replaced by one that knows the target and launches nothing, and operations are called on the CPU: so
what is compiled is what would be launched, options and specializations included. Triton's own
ptxas, asked again, tells registers and spills.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
import triton
from quire.kernels import gpu
from quire.kernels.gpu import attention as attention_kernels
from quire.kernels.gpu import launch
from quire.kernels.gpu.tiles import Tiles, read_table
from quire.reference.ops import Batch, SamplingRows, StepRows
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import jit

TARGETS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
linear_kernels = importlib.import_module("quire.kernels.gpu.linear")
INSTRUCTIONS = (
    *("wgmma", "mma.sync", "cp.async.bulk.tensor", "cp.async.cg", "griddepcontrol.wait"),
    *("div.full.f32", "div.approx", "sqrt.approx"),
)
"""What is looked for in PTX."""
BFLOAT16 = torch.bfloat16


class Driver:
    """Stands for a device of a target."""

    def __init__(self, target: GPUTarget) -> None:
        self.get_current_target = lambda: target
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda _: 0
        self.get_active_torch_device = lambda: torch.device("cpu")


def record(target: GPUTarget, call: Callable[[], Any]) -> list[dict[str, Any]]:
    """Compile all that call would launch; what is known of each kernel."""
    found: dict[str, dict[str, Any]] = {}
    run = jit.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        constants = {
            name: value.value if hasattr(value, "value") else value
            for name, value in kwargs.items()
            if name.isupper() and not callable(value)
        }
        if kernel.hash not in found:
            found[kernel.hash] = {"name": kernel.metadata.name, "constants": constants}
            found[kernel.hash] |= measure(kernel, target)
        return kernel

    jit.JITFunction.run = compile_only
    try:
        call()
    finally:
        jit.JITFunction.run = run
    return list(found.values())


def measure(kernel: Any, target: GPUTarget) -> dict[str, Any]:
    """Return shared memory, registers, spills, which instructions there are, and which loads
    come before the wait."""
    metadata = kernel.metadata
    known = {"shared": metadata.shared, "fused": metadata.enable_fp_fusion}
    if target.backend == "hip":
        text = kernel.asm["amdgcn"]
        sizes = [int(size) for size in re.findall(r"vgpr_spill_count:\s+(\d+)", text)]
        return known | {"spilled": max(sizes, default=0), "has": ["mfma"] * ("v_mfma" in text)}
    ptx = kernel.asm["ptx"]
    architecture = re.search(r"\.target (\w+)", ptx)
    assert architecture is not None
    with tempfile.NamedTemporaryFile(suffix=".ptx", mode="w") as file:
        file.write(ptx)
        file.flush()
        options = ["-v", "--fmad=false", f"--gpu-name={architecture[1]}", "-o", "/dev/null"]
        log = subprocess.run(
            [get_ptxas(target.arch).path, *options, file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    spilled = sum(int(size) for size in re.findall(r"(\d+) bytes spill", log))
    registers = re.search(r"Used (\d+) registers", log)
    assert registers is not None, log
    has = [name for name in INSTRUCTIONS if name in ptx]
    before_wait = ptx[: max(0, ptx.find("griddepcontrol.wait"))]
    early = [name for name in ("ld.global.v4", "cp.async.bulk.tensor") if name in before_wait]
    return known | {
        "spilled": spilled,
        "registers": int(registers[1]),
        "has": has,
        "early": early,
    }


def attention(
    queries: list[int],
    *,
    dtype: torch.dtype = BFLOAT16,
    group: int = 4,
    head_dim: int = 128,
    block_size: int = 16,
    window: int = 0,
    softcap: float = 0.0,
    has_sinks: bool = False,
    causal: bool = True,
) -> None:
    """Attend with 2 kv heads; a sequence has up to 2048 keys."""
    rows, tokens = len(queries), sum(queries)
    batch = Batch(
        positions=torch.zeros(tokens, dtype=torch.int32),
        places=torch.zeros(tokens, dtype=torch.int64),
        query_starts=torch.tensor([0, *queries]).cumsum(0).int(),
        kv_lens=torch.full((rows,), 2000, dtype=torch.int32),
        slots=torch.arange(rows, dtype=torch.int32),
        block_tables=torch.zeros((rows, 2048 // block_size), dtype=torch.int32),
    )
    cache = gpu.new_kv_cache(4, block_size, 2, head_dim, dtype)
    q = torch.zeros((tokens, 2 * group, head_dim), dtype=dtype)
    sinks = torch.zeros(2 * group) if has_sinks else None
    options: dict[str, Any] = {
        "window": window,
        "softcap": softcap,
        "sinks": sinks,
        "causal": causal,
    }
    gpu.paged_attention(q, cache, batch, scale=0.1, **options)


def linears(
    rows: int,
    in_features: int,
    out_features: int,
    dtype: torch.dtype = BFLOAT16,
    *,
    is_gated: bool = False,
) -> None:
    """Multiply, with a bias where it is not gated."""
    x = torch.zeros((rows, in_features), dtype=dtype)
    weight = torch.zeros((out_features, in_features), dtype=dtype)
    if is_gated:
        gpu.gated_linear(x, gpu.pack_linear(weight, None, is_gated=True))
    else:
        gpu.linear(x, gpu.pack_linear(weight, weight[:, 0].contiguous()))


def rows_of(hidden: int, dtype: torch.dtype = BFLOAT16) -> None:
    """Normalize, activate, embed."""
    x, weight = torch.zeros((4, hidden), dtype=dtype), torch.zeros(hidden, dtype=dtype)
    gpu.rms_norm(x, weight, 1e-6)
    gpu.add_rms_norm(x, x.clone(), weight, 1e-6)
    gpu.layer_norm(x, weight, weight, 1e-6)
    gpu.add_layer_norm(x, x, weight, weight, 1e-6)
    gpu.silu_mul(x)
    gpu.gelu(x)
    gpu.embed(torch.zeros(4, dtype=torch.int32), x)


def memory(head_dim: int, *, has_norms: bool, dtype: torch.dtype = BFLOAT16) -> None:
    """Split, rotate and write; copy blocks; prepare a step and store its tokens."""
    cache = gpu.new_kv_cache(8, 16, 8, head_dim, dtype)
    known, tables = torch.zeros((4, 64), dtype=torch.int32), torch.zeros((4, 4), dtype=torch.int32)
    rows = StepRows(*(torch.arange(size, dtype=torch.int32) for size in (4, 4, 5)))
    _, batch = gpu.prepare(rows, known, tables, 16, 4)
    norms = (torch.zeros(head_dim, dtype=dtype),) * 2 if has_norms else None
    qkv = torch.zeros((4, 48 * head_dim), dtype=dtype)
    gpu.qkv_post(qkv, batch, torch.zeros((64, head_dim)), norms, 1e-6, cache)
    gpu.copy_blocks(cache, torch.arange(2), torch.arange(2) + 2)
    gpu.store_tokens(known, *rows[:2], rows.slots)


def sampling(vocab: int, dtype: torch.dtype) -> None:
    """Sample with all filters, and score."""
    logits = torch.zeros((4, vocab), dtype=dtype)
    rows = SamplingRows(
        temperature=torch.ones(4),
        top_k=torch.full((4,), 50, dtype=torch.int32),
        top_p=torch.full((4,), 0.9),
        min_p=torch.full((4,), 0.1),
        seeds=torch.zeros(4, dtype=torch.int64),
        indices=torch.zeros(4, dtype=torch.int32),
    )
    tokens = gpu.sample(logits, rows)
    gpu.logprobs(logits, tokens, 5)


F32 = torch.float32
PARTS: dict[str, dict[str, Callable[[], None]]] = {
    "attention": {
        "128": lambda: attention([100, 1]),
        "many rows": lambda: attention([1] * 40),
        "64": lambda: attention([100, 1], head_dim=64, group=3),
        "both ways": lambda: attention([100, 1], head_dim=64, group=1, causal=False),
        "window": lambda: attention([100, 1], group=8, window=1024),
        "80": lambda: attention([100, 1], head_dim=80, group=1),
        "cap, sinks": lambda: attention([100, 1], softcap=30.0, has_sinks=True),
        "float32": lambda: attention([100, 1], head_dim=64, dtype=F32),
        "256": lambda: attention([100, 1], head_dim=256, group=2),
    },
    "linear": {
        **{f"{rows} rows": partial(linears, rows, 4096, 512) for rows in (1, 32, 64, 256, 1024)},
        "wide, 1 row": lambda: linears(1, 4096, 16384),
        "wide, 64 rows": lambda: linears(64, 4096, 16384),
        "wide, 256 rows": lambda: linears(256, 4096, 16384),
        "gated, 1 row": lambda: linears(1, 1024, 6144, is_gated=True),
        "gated, 1024 rows": lambda: linears(1024, 1024, 6144, is_gated=True),
        "uneven": lambda: linears(1, 1000, 512),
        "float32, 1 row": lambda: linears(1, 1024, 512, F32),
        "float32, 100 rows": lambda: linears(100, 1024, 512, F32),
    },
    "rest": {
        "rows": lambda: rows_of(4096),
        "float32 rows": lambda: rows_of(1536, F32),
        "memory": lambda: memory(128, has_norms=True),
        "memory, no norms": lambda: memory(80, has_norms=False),
    },
    "sampling": {
        "large": lambda: sampling(128_256, BFLOAT16),
        "float32": lambda: sampling(50_000, F32),
    },
    "few": {
        "128": lambda: attention([100, 1]),
        "1 row": lambda: linears(1, 4096, 512),
        "1024 rows": lambda: linears(1024, 4096, 512),
        "memory": lambda: memory(128, has_norms=True),
        "rows": lambda: rows_of(4096),
    },
}


def measured_tiles() -> dict[str, Callable[[], None]]:
    """Return a call for every way of cutting that the table of measured shapes has."""
    ways: dict[tuple[Tiles, bool], str] = {}
    for (out_features, width, bucket), tiles in read_table().items():
        is_gated = out_features > 2 * width and out_features < 100_000  # gates and ups
        ways.setdefault((tiles, is_gated), f"{out_features} x {width}, {bucket} rows")

    def multiply(tiles: Tiles, is_gated: bool) -> None:
        with mock.patch.object(linear_kernels, "choose_tiles", return_value=tiles):
            linears(tiles.rows, 1024, 512, is_gated=is_gated)

    return {label: partial(multiply, *way) for way, label in ways.items()}


PARTS["table"] = measured_tiles()


def main(name: str, part: str) -> None:
    """Compile a part for a target."""
    target = TARGETS[name]
    triton.runtime.driver.set_active(Driver(target))
    vars(launch)["is_overlapped"] = lambda: name == "sm_90"
    vars(attention_kernels)["is_amd"] = lambda: name == "gfx942"
    for label, call in PARTS[part].items():
        for kernel in record(target, call):
            print(json.dumps({"label": label} | kernel), flush=True)  # noqa: T201  # is read


if __name__ == "__main__":
    main(*sys.argv[1:])
