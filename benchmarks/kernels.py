"""Operations of the CPU kernels: microseconds and GB/s a call, beside torch's own operations.

Run as `python -m quire.benchmarks.kernels [--json FILE]`. One thread, CPU time, the least of
several rounds. `copy` is Tensor.copy_ of as many bytes in the same process: what memory allows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from msgspec import Struct, to_builtins
from torch import Tensor
from torch.nn import functional

from ..fuzz.kernel_cases import make_sampling_rows
from ..kernels import cpu

ROUNDS = 7
ROUND_S = 0.03
HIDDEN = 1024
WIDTH = 3072
VOCAB = 151_936
DTYPES = (torch.bfloat16, torch.float32)


class Case(Struct):
    """One operation and what torch would do instead."""

    name: str
    num_bytes: int
    """Read and written, each once."""
    ours: Callable[[], object]
    theirs: Callable[[], object]


class Figure(Struct):
    """One measurement."""

    name: str
    ours_us: float
    ours_gb_per_s: float
    torch_us: float
    copy_us: float

    def line(self) -> str:
        """Format for people."""
        return (
            f"{self.name:36s} {self.ours_us:9.1f} us {self.ours_gb_per_s:7.1f} GB/s"
            f"   torch {self.torch_us:9.1f} us   copy {self.copy_us:8.1f} us"
        )


def time_us(call: Callable[[], object]) -> float:
    """Return the least mean time of a call over rounds of about ROUND_S."""
    call()
    start = time.thread_time()
    call()
    num_calls = max(1, int(ROUND_S / max(1e-6, time.thread_time() - start)))
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(num_calls):
            call()
        best = min(best, (time.thread_time() - start) / num_calls)
    return best * 1e6


def measure(case: Case) -> Figure:
    """Time a case, torch's way and a copy of as many bytes."""
    source = torch.zeros(case.num_bytes // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    ours_us = time_us(case.ours)
    return Figure(
        name=case.name,
        ours_us=ours_us,
        ours_gb_per_s=case.num_bytes / ours_us / 1e3,
        torch_us=time_us(case.theirs),
        copy_us=time_us(lambda: target.copy_(source)),
    )


def _name(operation: str, rows: int, dtype: torch.dtype) -> str:
    return f"{operation} {rows} x {str(dtype).removeprefix('torch.')}"


def elementwise_cases() -> Iterator[Case]:
    """Norms, activations and embedding, one row and 256."""
    for dtype in DTYPES:
        size = dtype.itemsize
        weight = torch.randn(HIDDEN).to(dtype)
        table = torch.randn(10_000, HIDDEN).to(dtype)
        for rows in (1, 256):
            x, residual = torch.randn(2, rows, HIDDEN).to(dtype)
            gate_up = torch.randn(rows, 2 * WIDTH).to(dtype)
            tokens = torch.randint(10_000, (rows,)).int()
            yield Case(
                _name("rms_norm", rows, dtype),
                2 * rows * HIDDEN * size,
                partial(cpu.rms_norm, x, weight, 1e-6),
                partial(functional.rms_norm, x, (HIDDEN,), weight, 1e-6),
            )
            yield Case(
                _name("add_rms_norm", rows, dtype),
                4 * rows * HIDDEN * size,
                partial(cpu.add_rms_norm, x, residual, weight, 1e-6),
                partial(_torch_add_norm, x, residual, weight),
            )
            yield Case(
                _name("silu_mul", rows, dtype),
                3 * rows * WIDTH * size,
                partial(cpu.silu_mul, gate_up),
                partial(_torch_silu_mul, gate_up),
            )
            yield from encoder_cases(x, residual, gate_up[:, :WIDTH].contiguous())
            yield Case(
                _name("embed", rows, dtype),
                2 * rows * HIDDEN * size,
                partial(cpu.embed, tokens, table),
                partial(functional.embedding, tokens, table),
            )


def encoder_cases(x: Tensor, residual: Tensor, wide: Tensor) -> Iterator[Case]:
    """Layer norms of [rows, HIDDEN] and GELU of [rows, WIDTH]."""
    rows, dtype = len(x), x.dtype
    weight, bias = torch.randn(2, HIDDEN).to(dtype)
    yield Case(
        _name("layer_norm", rows, dtype),
        2 * x.nbytes,
        partial(cpu.layer_norm, x, weight, bias, 1e-12),
        partial(functional.layer_norm, x, (HIDDEN,), weight, bias, 1e-12),
    )
    yield Case(
        _name("add_layer_norm", rows, dtype),
        3 * x.nbytes,
        partial(cpu.add_layer_norm, x, residual, weight, bias, 1e-12),
        lambda: functional.layer_norm(x + residual, (HIDDEN,), weight, bias, 1e-12),
    )
    yield Case(
        _name("gelu", rows, dtype),
        2 * wide.nbytes,
        partial(cpu.gelu, wide),
        partial(functional.gelu, wide),
    )


def _torch_add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(residual.add_(x), (HIDDEN,), weight, 1e-6)


def _torch_silu_mul(gate_up: Tensor) -> Tensor:
    return functional.silu(gate_up[:, :WIDTH]) * gate_up[:, WIDTH:]


def linear_cases() -> Iterator[Case]:
    """Packed multiplication, which is bound by reading the weight at few rows."""
    for dtype in DTYPES:
        weight = (torch.randn(WIDTH, HIDDEN) / 32).to(dtype)
        packed = cpu.pack_linear(weight, None)
        split = cpu.pack_linear(weight, None, segments=4)
        for rows in (1, 16, 256):
            x = torch.randn(rows, HIDDEN).to(dtype)
            num_bytes = weight.nbytes + rows * (HIDDEN + WIDTH) * dtype.itemsize
            for name, form in (("linear", packed), ("linear, 4 segments", split)):
                yield Case(
                    _name(name, rows, dtype),
                    num_bytes,
                    partial(cpu.linear, x, form),
                    partial(functional.linear, x, weight),
                )


def sampling_cases() -> Iterator[Case]:
    """One row of a large vocabulary; torch: argmax, or the usual softmax, sort and multinomial."""
    settings = {
        "greedy": (0.0, (0, 1.0, 0.0)),
        "temperature": (1.0, (0, 1.0, 0.0)),
        "top_k 20, top_p 0.95": (0.7, (20, 0.95, 0.0)),
        "top_p 0.9": (1.0, (0, 0.9, 0.0)),
        "top_p 0.999, T 1.5": (1.5, (0, 0.999, 0.0)),
        "min_p 0.05": (1.0, (0, 1.0, 0.05)),
    }
    for dtype in DTYPES:
        logits = (torch.randn(1, VOCAB) * 2.5).to(dtype)
        logits[0, :5] += 12
        token = torch.tensor([17], dtype=torch.int32)
        for name, (temperature, filters) in settings.items():
            rows = make_sampling_rows(1, temperature=temperature, filters=filters)
            yield Case(
                _name(f"sample {name}", 1, dtype),
                logits.nbytes,
                partial(cpu.sample, logits, rows),
                partial(_torch_sample, logits, temperature, filters[1]),
            )
        for k in (0, 20):
            yield Case(
                _name(f"logprobs k {k}", 1, dtype),
                logits.nbytes,
                partial(cpu.logprobs, logits, token, k),
                partial(_torch_logprobs, logits, k),
            )


def _torch_sample(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    if top_p < 1.0:
        ordered, _ = probabilities.sort(descending=True)
        reached = ordered.cumsum(-1) - ordered < top_p
        probabilities = probabilities * (probabilities >= ordered[reached].min())
    return torch.multinomial(probabilities, 1)


def _torch_logprobs(logits: Tensor, k: int) -> object:
    return logits.float().log_softmax(-1).topk(k)


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = []
    for cases in (elementwise_cases(), linear_cases(), sampling_cases()):
        for case in cases:
            figures.append(measure(case))
            print(figures[-1].line(), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(to_builtins(figures), indent=1) + "\n")


if __name__ == "__main__":
    main()
