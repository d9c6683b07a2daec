"""Weights of candidates, 64 values at a time: what reference.sampling.weights gives, in vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from ...reference.activation import LOG2_E
from ...reference.sampling import WEIGHT_BITS
from .candidates import weight
from .emit import I64, LANES, VECTOR_BYTES, Emit
from .launch import outlined
from .philox import GROUP
from .simd import cgutils, intrinsic

_MASSES = ir.VectorType(I64, LANES)


def _weights(emit: Emit, address: Any, top: Any) -> Any:
    """Emit the weights of 16 values at an address; top: in all lanes."""
    b = emit.b
    distance = b.fsub(emit.load(address), top)
    exponential = emit.exp2(b.fmul(distance, emit.floats(LOG2_E)))
    return b.fptosi(b.fmul(exponential, emit.floats(2.0**WEIGHT_BITS)), _MASSES)


@intrinsic
def weigh(_context: Any, address: Any, top: Any, masses: Any) -> Any:
    """Fill masses, int64[64] at an address, with the weights of float32[64]. top: the greatest."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        emit, (address, top, masses) = Emit(builder, types.float32), args
        for part in range(GROUP // LANES):
            place = emit.address(address, VECTOR_BYTES * part)
            found = _weights(emit, place, emit.splat(top))
            emit.store(found, emit.address(masses, 2 * VECTOR_BYTES * part))
        return None

    return types.void(types.intp, types.float32, types.intp), codegen


@intrinsic
def _sum(_context: Any, address: Any, num_groups: Any, top: Any) -> Any:
    """Sum the weights of float32[64 * num_groups] at an address."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        emit, (address, num_groups, top) = Emit(builder, types.float32), args
        total = cgutils.alloca_once_value(builder, ir.Constant(_MASSES, None))
        with cgutils.for_range(builder, num_groups) as loop:
            group = emit.address(address, emit.times(loop.index, 4 * GROUP))
            for part in range(GROUP // LANES):
                found = _weights(emit, emit.address(group, VECTOR_BYTES * part), emit.splat(top))
                builder.store(builder.add(builder.load(total), found), total)
        return emit.fold(builder.load(total), builder.add)

    return types.int64(types.intp, types.intp, types.float32), codegen


@outlined
def sum_weights(x: Any, top: Any) -> Any:
    """Return the sum of the weights of x, float32[n]: exact in any order. top: the greatest."""
    groups = len(x) // GROUP
    total = _sum(x.ctypes.data, groups, top)
    for i in range(groups * GROUP, len(x)):
        total += weight(x[i] - top)
    return total
