"""Measure the ways of cutting matrix products of known models, write kernels/gpu/tiles.json.

Run on the GPU that the table is for: `python -m quire.benchmarks.gpu_tiles [--write FILE]`. A way
is timed as it is used: in a CUDA graph, launches behind one another, over copies of the weight that
do not fit into the L2 together. No way changes a bit of a result, so this is about time alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..kernels import gpu
from ..kernels.gpu import tiles as table
from ..kernels.gpu.tiles import BUCKETS, MANY, Tiles
from .gpu_shapes import SHAPES, ModelShape

ROTATED_BYTES = 300e6
"""Copies of a weight take so much together: several times the L2."""
ROUNDS = 3


def loaded(rows: int, *cuts: tuple[int, int, int, int]) -> list[Tiles]:
    """Ways that threads load. cuts: (out, k, warps, stages)."""
    return [Tiles(rows, *cut) for cut in cuts]


def moved(rows: int, *cuts: tuple[int, int, int, int], programs: int = 1) -> list[Tiles]:
    """Ways that the copy engine moves."""
    return [Tiles(rows, *cut, copy_engine=True, programs=programs) for cut in cuts]


WIDE = [
    *moved(128, (64, 128, 4, 4), (64, 128, 8, 4), (128, 64, 8, 5), (128, 128, 8, 3)),
    *moved(128, (256, 64, 8, 4), (32, 128, 4, 5)),
    *moved(64, (64, 128, 4, 4), (64, 128, 4, 6), (128, 128, 4, 4), (256, 64, 8, 5)),
    *moved(128, (64, 64, 4, 4), (128, 64, 4, 3), programs=2),
]
CANDIDATES = {
    16: [
        *loaded(16, *((32, 256, 4, stages) for stages in (3, 4, 5, 6, 8)), (32, 256, 2, 4)),
        *loaded(16, (64, 256, 4, 3), (64, 256, 4, 5), (64, 128, 4, 5), (64, 128, 4, 8)),
        *loaded(16, (16, 256, 4, 6), (16, 512, 4, 4), (32, 512, 4, 4), (16, 256, 2, 8)),
        *moved(16, (64, 256, 4, 4), (32, 256, 4, 6), (32, 256, 4, 8), (64, 128, 4, 8)),
    ],
    32: [
        *loaded(32, (32, 256, 4, 3), (32, 256, 4, 5), (64, 128, 4, 4), (64, 128, 4, 6)),
        *loaded(32, (32, 128, 4, 4)),
        *moved(32, (32, 256, 4, 4), (32, 256, 4, 6), (64, 256, 4, 4), (64, 128, 4, 6)),
        *moved(32, (128, 128, 4, 4)),
    ],
    64: [
        *loaded(64, (64, 128, 4, 4), (32, 256, 4, 3)),
        *moved(64, (32, 256, 4, 4), (32, 256, 4, 5), (64, 128, 4, 4), (64, 128, 4, 6)),
        *moved(64, (64, 256, 4, 3), (128, 128, 4, 4), (128, 64, 4, 6), (256, 64, 4, 4)),
        *moved(64, (64, 128, 4, 3), (32, 128, 4, 4), programs=2),
    ],
    128: WIDE,
    256: WIDE,
    512: WIDE,
    MANY: [
        *moved(128, (256, 64, 8, 3), (256, 64, 8, 4), (128, 64, 8, 4)),
        *moved(256, (128, 64, 8, 3), (128, 64, 8, 4)),
    ],
}


def products(shape: ModelShape) -> Iterator[tuple[int, int, bool]]:
    """Yield (out, in, is_gated) of a model's matrices."""
    heads = shape.heads * shape.head_dim
    yield heads + 2 * shape.kv_heads * shape.head_dim, shape.hidden, False
    yield shape.hidden, heads, False
    yield 2 * shape.intermediate, shape.hidden, True
    yield shape.hidden, shape.intermediate, False
    yield shape.vocab, shape.hidden, False


def graph_us(calls: Sequence[Callable[[], Tensor]]) -> float:
    """Return the median microseconds of one of calls, replayed as one CUDA graph."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(statistics.median(times)) * 1e3 / len(calls)


def measure(
    out_features: int, width: int, bucket: int, *, is_gated: bool
) -> list[tuple[float, Tiles]]:
    """Return every way that fits with its microseconds, the fastest first."""
    num_bytes = 2 * out_features * width
    copies = max(1, min(8, int(ROTATED_BYTES / num_bytes) + 1))
    weights = [
        gpu.pack_linear(
            torch.randn(out_features, width, dtype=torch.bfloat16, device="cuda") * width**-0.5,
            None,
            is_gated=is_gated,
        )
        for _ in range(copies)
    ]
    x = torch.randn(8 if bucket == BUCKETS[0] else bucket, width, device="cuda").bfloat16()
    multiply = gpu.gated_linear if is_gated else gpu.linear
    found = []
    for tiles in CANDIDATES[bucket]:
        with mock.patch.object(gpu_linear(), "choose_tiles", lambda *_, tiles=tiles: tiles):
            calls = [partial(multiply, x, weight) for weight in weights * (8 // copies or 1)]
            try:
                found.append((graph_us(calls), tiles))
            except Exception as error:  # does not fit: shared memory, registers
                if "out of resource" not in str(error):
                    raise
    return sorted(found)


def gpu_linear() -> Any:
    """Return the module of linears; the package's attribute of that name is the function."""
    import importlib

    return importlib.import_module("quire.kernels.gpu.linear")


def main() -> None:
    """Measure all shapes, print the fastest ways, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, default=table.TABLE)
    options = parser.parse_args()
    rows: dict[str, dict[str, Tiles]] = {}
    shapes = {product for shape in SHAPES.values() for product in products(shape)}
    for out_features, width, is_gated in sorted(shapes):
        name = f"{out_features}x{width}"
        rows[name] = {}
        for bucket in (*BUCKETS, MANY):
            if bucket == MANY and out_features > 100_000:
                continue  # no step has logits of so many rows
            found = measure(out_features, width, bucket, is_gated=is_gated)
            rows[name][str(bucket)] = found[0][1]
            line = "; ".join(f"{us:.1f} {tuple(tiles)}" for us, tiles in found[:3])
            print(f"{name:>14} {bucket:5d}: {line}", flush=True)
    lines = ",\n".join(f' "{name}": {json.dumps(buckets)}' for name, buckets in rows.items())
    options.write.write_text(f"{{\n{lines}\n}}\n", encoding="ascii")


if __name__ == "__main__":
    main()
