"""Attention of the CPU kernels: milliseconds, GFLOP/s and GB/s of a layer, beside torch's sdpa.

Run as `python -m quire.benchmarks.attention [--json FILE]`. One thread, CPU time, least of several
rounds. Each decode shape has as many layers as it takes to read keys and values from memory, as a
model does, unless it is hot. sdpa gets its keys and values gathered: one call for each sequence, or
for all where they are of one length.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec import Struct, to_builtins
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..kernels import cpu
from ..kernels.cpu.kv import KVCache
from ..reference.ops import Batch

ROUNDS = 5
COLD_BYTES = 96 << 20
"""Keys and values of all layers of a cold shape: more than any cache holds."""
BLOCK_SIZE = 16


class Shape(NamedTuple):
    """One call: each sequence has `queries` new tokens."""

    name: str
    kv_lens: tuple[int, ...]
    queries: int
    kv_heads: int
    group: int
    head_dim: int
    is_hot: bool = False
    causal: bool = True

    @property
    def num_flops(self) -> int:
        """Multiplications and additions of what is visible."""
        hidden = self.queries * (self.queries - 1) // 2 if self.causal else 0
        pairs = sum(self.queries * n - hidden for n in self.kv_lens)
        return 4 * pairs * self.kv_heads * self.group * self.head_dim

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Keys and values, each once."""
        return 2 * sum(self.kv_lens) * self.kv_heads * self.head_dim * dtype.itemsize


class Figure(Struct):
    """One measurement of one layer."""

    name: str
    dtype: str
    ours_ms: float
    gflop_per_s: float
    gb_per_s: float
    sdpa_ms: float

    def line(self) -> str:
        """Format for people."""
        speed = f"{self.gflop_per_s:6.1f} GFLOP/s {self.gb_per_s:5.1f} GB/s"
        ours = f"{self.ours_ms:9.3f} ms {speed}"
        return f"{self.name:36s} {self.dtype:8s} {ours}   sdpa {self.sdpa_ms:9.3f} ms"


def shapes() -> list[Shape]:
    """Decode, a long context, prompts, and what an encoder takes at once."""
    mixed = tuple(torch.randint(128, 257, (32,)).tolist())
    longer = tuple(torch.randint(320, 641, (16,)).tolist())
    return [
        Shape("decode 1 x 128 keys", (128,), 1, 4, 3, 64, True),
        Shape("decode 32 x 128-256 keys, hot", mixed, 1, 4, 3, 64, True),
        Shape("decode 32 x 128-256 keys", mixed, 1, 4, 3, 64),
        Shape("decode 16 x 320-640 keys", longer, 1, 4, 3, 64),
        Shape("decode 32 x 128-256 keys, 8 x 128", mixed, 1, 8, 2, 128),
        Shape("decode 1 x 1024 keys, 8 x 128", (1024,), 1, 8, 2, 128, True),
        Shape("prompt 1024", (1024,), 1024, 4, 3, 64, True),
        Shape("chunk 512 of 4096", (4096,), 512, 4, 3, 64, True),
        Shape("prompt 1024, 8 x 128", (1024,), 1024, 8, 2, 128, True),
        *(
            Shape(f"32 x 128, 12 x 64, {way}", (128,) * 32, 128, 12, 1, 64, True, causal)
            for way, causal in (("causal", True), ("both ways", False))
        ),
        Shape("512, 12 x 64, both ways", (512,), 512, 12, 1, 64, True, False),
    ]


def make_layer(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, KVCache, Batch]:
    """Make queries, memory in random blocks and the batch of one layer."""
    needs = [-(-n // BLOCK_SIZE) for n in shape.kv_lens]
    blocks = torch.randperm(sum(needs)).int()
    tables = torch.zeros((len(needs), max(needs)), dtype=torch.int32)
    for row, (need, ids) in enumerate(zip(needs, torch.split(blocks, needs), strict=True)):
        tables[row, :need] = ids
    cache = cpu.new_kv_cache(sum(needs), BLOCK_SIZE, shape.kv_heads, shape.head_dim, dtype)
    cache.keys.normal_()
    cache.values.normal_()
    rows = len(needs)
    tokens = rows * shape.queries
    nothing = torch.zeros(0, dtype=torch.int32)
    batch = Batch(
        positions=nothing,
        places=nothing,
        query_starts=torch.arange(rows + 1, dtype=torch.int32) * shape.queries,
        kv_lens=torch.tensor(shape.kv_lens, dtype=torch.int32),
        slots=torch.arange(rows, dtype=torch.int32),
        block_tables=tables,
    )
    q = torch.randn(tokens, shape.kv_heads * shape.group, shape.head_dim).to(dtype)
    return q, cache, batch


def make_dense(shape: Shape, dtype: torch.dtype) -> Callable[[], None]:
    """Make sdpa's form of one layer."""
    heads = shape.kv_heads * shape.group
    inputs = []
    alike = len(set(shape.kv_lens)) == 1
    count = len(shape.kv_lens) if alike else 1
    for n in set(shape.kv_lens) if alike else shape.kv_lens:
        q = torch.randn(count, heads, shape.queries, shape.head_dim).to(dtype)
        k, v = torch.randn(2, count, shape.kv_heads, n, shape.head_dim).to(dtype)
        mask = None
        if shape.causal and 1 < shape.queries < n:
            position = torch.arange(n - shape.queries, n)[:, None]
            mask = torch.arange(n) <= position
        inputs.append((q, k, v, mask, shape.causal and shape.queries == n))

    def call() -> None:
        for q, k, v, mask, is_causal in inputs:
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=True
            )

    return call


def least_ms(calls: list[Callable[[], object]]) -> float:
    """Return the least mean time of the calls, each with inputs of its own."""
    rounds = max(1, 20 // len(calls)) if len(calls) > 1 else 3
    best = float("inf")
    for _ in range(ROUNDS + 1):
        start = time.thread_time()
        for _ in range(rounds):
            for call in calls:
                call()
        best = min(best, (time.thread_time() - start) / rounds / len(calls))
    return best * 1e3


def measure(shape: Shape, dtype: torch.dtype) -> Figure:
    """Time one shape."""
    num_layers = 1 if shape.is_hot else -(-COLD_BYTES // shape.num_bytes(dtype))
    layers = [make_layer(shape, dtype) for _ in range(num_layers)]

    def attend(layer: tuple[Tensor, KVCache, Batch]) -> Callable[[], object]:
        options = {"scale": shape.head_dim**-0.5, "causal": shape.causal}
        return lambda: cpu.paged_attention(*layer, **options)

    ours_ms = least_ms([attend(layer) for layer in layers])
    del layers
    sdpa_ms = least_ms([make_dense(shape, dtype) for _ in range(num_layers)])
    return Figure(
        name=shape.name,
        dtype=str(dtype).removeprefix("torch."),
        ours_ms=ours_ms,
        gflop_per_s=shape.num_flops / ours_ms / 1e6,
        gb_per_s=shape.num_bytes(dtype) / ours_ms / 1e6,
        sdpa_ms=sdpa_ms,
    )


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = []
    for shape in shapes():
        for dtype in (torch.bfloat16, torch.float32):
            figures.append(measure(shape, dtype))
            print(figures[-1].line(), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(to_builtins(figures), indent=1))


if __name__ == "__main__":
    main()
