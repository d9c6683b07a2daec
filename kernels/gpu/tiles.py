"""How matrix products are cut into tiles: a table for shapes that were measured, a rule for others.

No choice changes a bit of a result, only its time. The table is `tiles.json`, written by
`python -m quire.benchmarks.gpu_tiles`: for "out x in" of a weight and a bucket of rows, the fields
of Tiles. It is read once and never changes while a process runs: nothing is tuned at run time.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

TABLE = Path(__file__).with_name("tiles.json")
BUCKETS = (16, 32, 64, 128, 256, 512)
"""Most rows of each bucket but the last, which has no bound."""
MANY = 4096
"""The last bucket's name: the rows that it was measured with."""


class Tiles(NamedTuple):
    """How a matrix product is cut. `out` counts rows of weights: gates and ups."""

    rows: int
    out: int
    k: int
    warps: int
    stages: int
    copy_engine: bool = False
    """Whether the copy engine moves tiles; bfloat16 only."""
    programs: int = 1
    """Programs on a processor, where the copy engine moves tiles."""


def choose_tiles(rows: int, out_features: int, width: int, dtype: torch.dtype) -> Tiles:
    """Choose for x [rows, width] and a weight [out_features, width]."""
    if dtype == torch.float32:
        return Tiles(16 if rows <= 16 else 64, 32, 32, 4, 2)
    bucket = bucket_of(rows)
    return read_table().get((out_features, width, bucket)) or by_rule(bucket, out_features)


def bucket_of(rows: int) -> int:
    """Return the bucket of a number of rows."""
    return next((bucket for bucket in BUCKETS if rows <= bucket), MANY)


@cache
def read_table() -> dict[tuple[int, int, int], Tiles]:
    """Return what was measured: by (out_features, width, bucket)."""
    found = {}
    for shape, buckets in json.loads(TABLE.read_text(encoding="ascii")).items():
        out_features, width = (int(size) for size in shape.split("x"))
        for bucket, fields in buckets.items():
            found[out_features, width, int(bucket)] = Tiles(*fields)
    return found


def by_rule(bucket: int, out_features: int) -> Tiles:
    """Choose for a shape that nobody measured, as measured ones came out on an H200.

    Few rows are a stream of weights: many programs, and enough bytes on their way in each. Many
    rows are arithmetic: tiles as large as registers hold.
    """
    wide = out_features >= 16384
    match bucket:
        case 16:
            return Tiles(16, 32, 256, 4, 6 if out_features <= 4224 else 4)
        case 32:
            return Tiles(32, 64 if wide else 32, 128 if wide else 256, 4, 4, copy_engine=not wide)
        case 64 if wide:
            return Tiles(64, 128, 128, 4, 4, copy_engine=True)
        case 64:
            return Tiles(64, 32 if out_features <= 4096 else 64, 256, 4, 3, copy_engine=True)
        case 128:
            return Tiles(64, 128 if out_features > 4096 else 64, 128, 4, 4, copy_engine=True)
        case 256 | 512 if not wide:
            return Tiles(128, 128 if out_features > 4096 else 64, 64, 8, 5, copy_engine=True)
    return Tiles(128, 256, 64, 8, 4, copy_engine=True)
