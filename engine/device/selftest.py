"""The start-up test of what nothing documents: that rows of the packed matmul keep their bits.

A shape that fails is packed again in the padded form, which is slower and was measured to hold.
"""

from __future__ import annotations

import logging

from ...reference.linear import PADDED_FALLBACK, self_test
from ...reference.ops import Ops, PackedLinear

logger = logging.getLogger("quire")

SEED = 0


def check_linears(linears: list[PackedLinear], ops: Ops) -> list[tuple[int, int]]:
    """Test one matrix of every distinct shape; repack all of a failing shape in place.

    Returns the failing shapes (in, out), each logged as a warning.
    """
    shapes: dict[tuple[int, int, int, bool], list[PackedLinear]] = {}
    for linear in linears:
        biased = linear.bias is not None
        key = linear.in_features, linear.out_features, len(linear.segments), biased
        shapes.setdefault(key, []).append(linear)
    failed = []
    for (in_features, out_features, _, _), alike in shapes.items():
        if alike[0].padded == PADDED_FALLBACK or self_test(alike[0], SEED, ops.linear):
            continue
        logger.warning(
            "The packed matmul of %d -> %d does not keep a row's bits on this machine: "
            "using the slower padded form.",
            in_features,
            out_features,
        )
        for linear in alike:
            _repack(linear, ops)
        failed.append((in_features, out_features))
    return failed


def _repack(linear: PackedLinear, ops: Ops) -> None:
    weight, bias = ops.unpack_linear(linear)
    padded = ops.pack_linear(weight, bias, segments=len(linear.segments), padded=PADDED_FALLBACK)
    linear.segments, linear.bias, linear.padded = padded.segments, padded.bias, padded.padded
