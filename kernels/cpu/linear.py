"""Twin of reference.linear: own blocked weights, by the matrix unit or in vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...reference.linear import add_tree, check_linear, cut_segments
from ...reference.ops import PackedLinear
from ...reference.sums import Sums, round_sums
from .activation import silu_mul
from .choice import best_tag, form_weight, multiply_by
from .matmul import COLUMNS, block_weight, lies_apart, unblock_weight
from .pages import Arena

__all__ = ["gated_linear", "linear", "pack_linear", "unpack_linear"]

_arena = Arena()


def pack_linear(
    weight: Tensor,
    bias: Tensor | None,
    *,
    segments: int = 1,
    is_gated: bool = False,
    sums: Sums = "pairs",
) -> PackedLinear:
    """See Ops.pack_linear. A segment is a blocked weight, bias has whole blocks."""
    check_linear(weight, bias)

    def block(part: Tensor) -> Tensor:
        if weight.dtype == torch.float32:
            is_apart = lies_apart("float32")
            return block_weight(part, unit=1, is_apart=is_apart, empty=_arena.empty)
        return form_weight(part, sums, _arena.empty)

    out_features, in_features = weight.shape
    return PackedLinear(
        in_features=in_features,
        out_features=out_features,
        segments=tuple(block(part) for part in cut_segments(weight, segments)),
        bias=None if bias is None else pad(bias.detach(), (0, -len(bias) % COLUMNS)),
        sums=sums,
        is_gated=is_gated,
    )


def unpack_linear(weight: PackedLinear) -> tuple[Tensor, Tensor | None]:
    """See Ops.unpack_linear."""
    width = weight.in_features // len(weight.segments)
    parts = [unblock_weight(segment, weight.out_features, width) for segment in weight.segments]
    bias = None if weight.bias is None else weight.bias[: weight.out_features].clone()
    return torch.cat(parts, dim=1), bias


def gated_linear(x: Tensor, weight: PackedLinear) -> Tensor:
    """See Ops.gated_linear."""
    assert weight.is_gated, "gated_linear takes a weight that was packed for it"
    return silu_mul(linear(x, weight))


def linear(x: Tensor, weight: PackedLinear, *, tag: str | None = None) -> Tensor:
    """See Ops.linear. tag: of kernels.cpu.emit, None for the best."""
    assert x.shape[1] == weight.in_features, (x.shape, weight.in_features)
    if tag is None:
        tag = "float32" if x.dtype == torch.float32 else best_tag(weight.sums)
    if x.stride(1) != 1:
        x = x.contiguous()
    if len(weight.segments) == 1:
        return _multiply(x, weight, weight.segments[0], weight.bias, tag)
    parts = torch.split(x, weight.in_features // len(weight.segments), dim=1)
    products = [
        _multiply(part, weight, segment, None, tag).float()
        for part, segment in zip(parts, weight.segments, strict=True)
    ]
    total = add_tree(products)
    if weight.bias is not None:
        total = total + weight.bias[: weight.out_features].float()
    return round_sums(total, x.dtype)


def _multiply(
    x: Tensor, weight: PackedLinear, segment: Tensor, bias: Tensor | None, tag: str
) -> Tensor:
    """Multiply by one segment, x filled up to its width."""
    missing = segment[0].numel() // COLUMNS - x.shape[1]
    if missing:
        x = pad(x, (0, missing))
    return multiply_by(tag, x, segment, weight.out_features, bias)
