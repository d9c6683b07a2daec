"""Matrix multiplication by packed weights, in an order of Quire's own.

The sum over K, for each row and column by itself, from zero, in float32:

* float32 and bfloat16 in "pairs": K is cut into chunks of CHUNK elements; a chunk is added up from
  zero (`sums.add_fused`, `sums.add_products`), and chunks are added from left to right.
* bfloat16 in "tiles": one sum over all of K.

K is filled up with zeros to whole pairs or tiles. Results in bfloat16 are flushed: no denormals.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .activation import silu_mul
from .ops import PackedLinear
from .sums import TILE, Sums, add_fused, add_products, round_sums

CHUNK = 512
_CACHED_SUMS = 1 << 15
"""Sums that stay in a core's cache while all of K passes."""


def pack_linear(
    weight: Tensor,
    bias: Tensor | None,
    *,
    segments: int = 1,
    is_gated: bool = False,
    sums: Sums = "pairs",
) -> PackedLinear:
    """See Ops.pack_linear. A segment is [in, out] dtype."""
    check_linear(weight, bias)
    parts = cut_segments(weight, segments)
    return PackedLinear(
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        segments=tuple(part.t().clone(memory_format=torch.contiguous_format) for part in parts),
        bias=None if bias is None else bias.detach().clone(),
        sums=sums,
        is_gated=is_gated,
    )


def check_linear(weight: Tensor, bias: Tensor | None) -> None:
    """Assert that linears are defined for a weight [out, in] and a bias [out]."""
    assert weight.dtype in (torch.float32, torch.bfloat16), weight.dtype
    assert bias is None or bias.shape == weight.shape[:1], (bias.shape, weight.shape)
    assert bias is None or bias.dtype == weight.dtype, (bias.dtype, weight.dtype)


def cut_segments(weight: Tensor, segments: int) -> list[Tensor]:
    """Cut weight [out, in] into equal K segments: views."""
    in_features = weight.shape[1]
    width, rest = divmod(in_features, segments)
    if rest or (segments > 1 and width % 16):
        raise ValueError(
            f"{in_features} input features do not make {segments} equal segments, "
            "each a multiple of 16."
        )
    return list(torch.split(weight.detach(), width, dim=1))


def unpack_linear(weight: PackedLinear) -> tuple[Tensor, Tensor | None]:
    """See Ops.unpack_linear."""
    return torch.cat(weight.segments).t().contiguous(), weight.bias


def linear(x: Tensor, weight: PackedLinear) -> Tensor:
    """See Ops.linear."""
    assert x.shape[1] == weight.in_features, (x.shape, weight.in_features)
    assert x.dtype == weight.segments[0].dtype, (x.dtype, weight.segments[0].dtype)
    parts = torch.split(x, weight.in_features // len(weight.segments), dim=1)
    products = [
        _multiply(part, segment, weight.sums)
        for part, segment in zip(parts, weight.segments, strict=True)
    ]
    if len(products) > 1:
        products = [round_sums(product, x.dtype).float() for product in products]
    total = add_tree(products)
    if weight.bias is not None:
        total = total + weight.bias.float()
    return round_sums(total, x.dtype)


def gated_linear(x: Tensor, weight: PackedLinear) -> Tensor:
    """See Ops.gated_linear."""
    assert weight.is_gated, "gated_linear takes a weight that was packed for it"
    return silu_mul(linear(x, weight))


def _multiply(x: Tensor, segment: Tensor, sums: Sums) -> Tensor:
    """Return the float32 sums [rows, out] of x [rows, in] dtype by a segment [in, out] dtype."""
    width, out_features = segment.shape
    is_fused = x.dtype == torch.float32
    unit = 1 if is_fused else TILE if sums == "tiles" else 2
    a, b = (pad(t.float(), (0, 0, 0, -width % unit)) for t in (x.t(), segment))
    chunk = CHUNK if is_fused or sums == "pairs" else len(a)
    total = torch.empty((len(x), out_features))
    step = max(1, _CACHED_SUMS // out_features)
    for row in range(0, len(x), step):
        rows = slice(row, row + step)
        zeros = torch.zeros_like(total[rows])
        parts = []
        for start in range(0, len(a), chunk):
            left = a[start : start + chunk, rows, None]
            right = b[start : start + chunk, None]
            if is_fused:
                parts.append(add_fused(zeros, left, right))
            else:
                parts.append(add_products(zeros, left, right, sums))
        total[rows] = parts[0]
        for part in parts[1:]:
            total[rows] += part
    return total


def add_tree(sums: list[Tensor]) -> Tensor:
    """Add neighbours until one is left; an odd last one moves up unchanged."""
    while len(sums) > 1:
        pairs = [a + b for a, b in zip(sums[::2], sums[1::2], strict=False)]
        sums = pairs + sums[len(pairs) * 2 :]
    return sums[0]
