"""Matrix multiplication by packed weights: the one reduction that Quire leaves to a library.

oneDNN's packed linear keeps the bits of a row at every number of rows from two on, whatever stands
beside it and on any number of threads (measured, not documented: hence `self_test`); a single row
takes another path, so fewer than four are padded (two would do, and take a quarter longer than
four, measured at several shapes). Where oneDNN is absent or the self-test fails,
pack with `padded=16`: F.linear on rows padded to a multiple of 16.

`kernels.cpu` multiplies with the same bits, by own kernels where they are proven to have them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear as plain_linear

from .ops import PackedLinear

LEAST_ROWS = 4
PADDED_FALLBACK = 16
_SELF_TEST_ROWS = (1, 2, 3, 16, 17, 64)

Multiply = Callable[[Tensor, PackedLinear], Tensor]


def pack_linear(
    weight: Tensor, bias: Tensor | None, *, segments: int = 1, padded: int | None = None
) -> PackedLinear:
    """See Ops.pack_linear. padded=16 chooses the fallback without oneDNN."""
    padded = LEAST_ROWS if padded is None else padded
    if padded not in (LEAST_ROWS, PADDED_FALLBACK):
        raise ValueError(f"padded is {padded}: it must be {LEAST_ROWS} or {PADDED_FALLBACK}.")
    if not has_packed_matmul(weight.dtype):
        padded = PADDED_FALLBACK
    parts = [
        part.clone(memory_format=torch.contiguous_format) for part in cut_segments(weight, segments)
    ]
    if padded != PADDED_FALLBACK:
        parts = [torch.ops.mkldnn._reorder_linear_weight(part, None) for part in parts]
    return PackedLinear(
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        segments=tuple(parts),
        bias=None if bias is None else bias.detach().clone(),
        padded=padded,
    )


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
    parts = [
        segment.to_dense() if weight.padded == LEAST_ROWS else segment
        for segment in weight.segments
    ]
    return torch.cat(parts, dim=1), weight.bias


def has_packed_matmul(dtype: torch.dtype) -> bool:
    """Whether this build and this processor multiply packed weights of dtype."""
    if not torch._C._has_mkldnn:
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def linear(x: Tensor, weight: PackedLinear) -> Tensor:
    """See Ops.linear."""
    rows, width = x.shape
    assert width == weight.in_features, (width, weight.in_features)
    if rows == 0:
        return x.new_empty((0, weight.out_features))
    num_segments = len(weight.segments)
    x = _pad_rows(x.contiguous(), weight.padded)
    if num_segments == 1:
        return _multiply(x, weight.segments[0], weight.bias, weight.padded)[:rows]
    parts = x.view(len(x), num_segments, -1).unbind(1)
    sums = [
        _multiply(part.contiguous(), segment, None, weight.padded).float()
        for part, segment in zip(parts, weight.segments, strict=True)
    ]
    total = add_tree(sums)
    if weight.bias is not None:
        total = total + weight.bias.float()
    return total[:rows].to(x.dtype)


def _pad_rows(x: Tensor, padded: int) -> Tensor:
    """Bring rows to at least four, or to a multiple of 16; the filling has no effect."""
    rows = len(x)
    missing = max(0, padded - rows) if padded == LEAST_ROWS else -rows % padded
    return torch.cat((x, x.new_zeros((missing, x.shape[1])))) if missing else x


def _multiply(x: Tensor, segment: Tensor, bias: Tensor | None, padded: int) -> Tensor:
    assert padded in (LEAST_ROWS, PADDED_FALLBACK), f"padded is {padded}: not packed here"
    if padded == PADDED_FALLBACK:
        return plain_linear(x, segment, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, segment, bias, "none", [], "")
    return product


def add_tree(sums: list[Tensor]) -> Tensor:
    """Add neighbours until one is left; an odd last one moves up unchanged."""
    while len(sums) > 1:
        pairs = [a + b for a, b in zip(sums[::2], sums[1::2], strict=False)]
        sums = pairs + sums[len(pairs) * 2 :]
    return sums[0]


def self_test(weight: PackedLinear, seed: int, multiply: Multiply = linear) -> bool:
    """Return whether rows keep their bits at several numbers of rows, offsets and neighbours.

    Cheap (seven matmuls, 167 rows together); run once for each distinct shape of a model at start.
    """
    generator = torch.Generator().manual_seed(seed)
    offsets = (0, 3)
    shape = (max(_SELF_TEST_ROWS) + max(offsets), weight.in_features)
    x = torch.randn(shape, generator=generator).to(weight.segments[0].dtype)
    whole = multiply(x, weight)
    for index, rows in enumerate(_SELF_TEST_ROWS):
        start = offsets[index % 2]
        if not torch.equal(multiply(x[start : start + rows], weight), whole[start : start + rows]):
            return False
    return True
