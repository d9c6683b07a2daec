"""Twin of reference.linear: the same bits from own blocked weights, where they can be had.

`matmul` multiplies as oneDNN does, only faster: a few rows at the speed of memory, and without
padding. How oneDNN cuts K is not documented, so it is found by comparison, once for each shape;
where no cut gives its bits (another processor, a later oneDNN), oneDNN itself multiplies.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...reference.linear import add_tree, cut_segments, has_packed_matmul, self_test
from ...reference.linear import linear as library_linear
from ...reference.linear import pack_linear as library_pack_linear
from ...reference.linear import unpack_linear as library_unpack_linear
from ...reference.ops import PackedLinear
from .emit import STEP_BYTES, best_bfloat16_tag
from .matmul import COLUMNS, block_weight, multiply, unblock_weight
from .pages import Arena

__all__ = ["linear", "pack_linear", "self_test", "unpack_linear"]

OWN_ROWS = 1
"""`PackedLinear.padded` of a blocked weight."""
_DTYPES = (torch.float32, torch.bfloat16)
_CHUNKS = (512, 1024, 256, 128, 64)
_TEST_ROWS = 7
_LEAST_NORMAL = 2.0**-126
_MAX_TEST_COLUMNS = 4096
_arena = Arena()


def pack_linear(
    weight: Tensor, bias: Tensor | None, *, segments: int = 1, padded: int | None = None
) -> PackedLinear:
    """See Ops.pack_linear. padded=4 or 16 leaves the multiplication to the library."""
    if padded not in (None, OWN_ROWS):
        return library_pack_linear(weight, bias, segments=segments, padded=padded)
    parts = cut_segments(weight, segments)
    out_features, width = parts[0].shape
    chunk = find_chunk(weight.dtype, width, out_features)
    if not chunk or (bias is not None and bias.dtype != weight.dtype):
        return library_pack_linear(weight, bias, segments=segments)
    if bias is not None:
        assert bias.shape == (out_features,), (bias.shape, out_features)
        bias = _pad(bias)
    return PackedLinear(
        in_features=weight.shape[1],
        out_features=out_features,
        segments=tuple(block_weight(part, _arena.empty) for part in parts),
        bias=bias,
        padded=OWN_ROWS,
        chunk=chunk,
    )


def unpack_linear(weight: PackedLinear) -> tuple[Tensor, Tensor | None]:
    """See Ops.unpack_linear."""
    if weight.padded != OWN_ROWS:
        return library_unpack_linear(weight)
    parts = [unblock_weight(segment, weight.out_features) for segment in weight.segments]
    bias = None if weight.bias is None else weight.bias[: weight.out_features].clone()
    return torch.cat(parts, dim=1), bias


def linear(x: Tensor, weight: PackedLinear) -> Tensor:
    """See Ops.linear."""
    if weight.padded != OWN_ROWS:
        return library_linear(x, weight)
    assert x.shape[1] == weight.in_features, (x.shape, weight.in_features)
    out_features, bias, chunk = weight.out_features, weight.bias, weight.chunk
    tag = _tag(x.dtype)
    if len(weight.segments) == 1:
        return multiply(
            x.contiguous(), weight.segments[0], out_features, bias, chunk=chunk, tag=tag
        )
    width = weight.in_features // len(weight.segments)
    parts = x.contiguous().view(len(x), len(weight.segments), width).unbind(1)
    sums = [
        multiply(part, segment, out_features, None, chunk=chunk, tag=tag).float()
        for part, segment in zip(parts, weight.segments, strict=True)
    ]
    total = add_tree(sums)
    if bias is not None:
        total = total + bias[:out_features].float()
    return total.to(x.dtype)


@cache
def find_chunk(dtype: torch.dtype, in_features: int, out_features: int) -> int:
    """Return how many elements of K oneDNN adds up before it adds them to the rest.

    0 where no number gives its bits, or where oneDNN is absent.
    """
    if dtype not in _DTYPES or not has_packed_matmul(dtype):
        return 0
    if in_features % (STEP_BYTES // dtype.itemsize):
        return 0
    tests = [
        _Test.make(sample, out_features, biased=biased)
        for sample in (_near_denormals(in_features, dtype), _cancelling(in_features, dtype))
        for biased in (False, True)
    ]
    for chunk in (in_features, *(c for c in _CHUNKS if c < in_features)):
        if all(test.passes(chunk) for test in tests):
            return chunk
    return 0


class _Test(NamedTuple):
    """A product of the library, and what own kernels make it of."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    wanted: Tensor

    @classmethod
    def make(cls, sample: tuple[Tensor, Tensor], out_features: int, *, biased: bool) -> Self:
        """Multiply x by weight [COLUMNS, in] among out_features columns: it may cut K by them."""
        x, weight = sample
        columns = min(out_features, _MAX_TEST_COLUMNS)
        tested = min(columns, COLUMNS)
        whole = weight.new_zeros((columns, weight.shape[1]))
        whole[:tested] = weight[:tested]
        bias = None
        if biased:
            bias = torch.linspace(-1e-6, 1e-6, columns).to(x.dtype)
        wanted = library_linear(x, library_pack_linear(whole, bias))[:, :tested]
        return cls(x, block_weight(weight), None if bias is None else _pad(bias)[:COLUMNS], wanted)

    def passes(self, chunk: int) -> bool:
        """Return whether own kernels give the same bits with this chunk."""
        own = multiply(self.x, self.weight, COLUMNS, self.bias, chunk=chunk, tag=_tag(self.x.dtype))
        return torch.equal(own[:, : self.wanted.shape[1]], self.wanted)


def _pad(bias: Tensor) -> Tensor:
    """Append zeros to a bias up to whole blocks."""
    return pad(bias.detach(), (0, -len(bias) % COLUMNS))


def _near_denormals(in_features: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make x [_TEST_ROWS, in] and weight [COLUMNS, in] with sums on the border of denormals.

    What is flushed to zero on the way tells the order that rounding to bfloat16 would hide.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((_TEST_ROWS, in_features), generator=generator)
    weight = torch.randn((COLUMNS, in_features), generator=generator)
    return x.to(dtype), (weight * _LEAST_NORMAL).to(dtype)


def _cancelling(in_features: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make x [_TEST_ROWS, in] and weight [COLUMNS, in] whose exact product is zero.

    Every product comes together with its negative, in random places, so that nothing but rounding
    errors is left: another order of addition gives other numbers everywhere, but in a short last
    chunk, where the last sums round nothing.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(in_features, generator=generator)

    def mirrored(count: int, sign: float) -> Tensor:
        half = torch.randn((count, in_features // 2), generator=generator)
        rest = torch.zeros((count, in_features % 2))
        return torch.cat((half, sign * half, rest), dim=1)[:, order].to(dtype)

    return mirrored(_TEST_ROWS, 1), mirrored(COLUMNS, -1)


def _tag(dtype: torch.dtype) -> str:
    return "float32" if dtype == torch.float32 else best_bfloat16_tag()
