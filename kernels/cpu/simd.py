"""What kernels are made of: memory at an address, bits of floats, bfloat16, and the 16-lane sum.

Helpers only, no kernel. Plain loops over these arrays vectorize by themselves, since no step is
reassociated; only the 16-lane sum, which LLVM may not vectorize without fast-math, is written in
vectors. On narrower machines LLVM splits the vectors, with the same result in every lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numba.extending
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils

from .launch import inlined

# numba's own types come and go with its versions; nothing of it is typed here.
_numba: Any = numba
cgutils: Any = _cgutils

LANES = 16
INFINITY_KEY = 0x7F800000
"""`order_key` of infinity."""
_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


def intrinsic(typed: Callable[..., Any]) -> Any:
    """Make a function that emits instructions; callers leave out the context."""
    return numba.extending.intrinsic(typed)


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    """Turn an integer into a pointer."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), codegen


@intrinsic
def bits(_context: Any, x: Any) -> Any:
    """Return the bits of a float32 as uint32."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _I32)

    return types.uint32(types.float32), codegen


@intrinsic
def from_bits(_context: Any, x: Any) -> Any:
    """Return the float32 that has the bits of a uint32."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.uint32), codegen


@intrinsic
def widen(_context: Any, x: Any) -> Any:
    """Return a stored value as float32: from the bits of a bfloat16 (uint16), or float32 itself."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if x == types.float32:
            return args[0]
        high = builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(high, _FLOAT)

    if x not in (types.float32, types.uint16):
        return None
    return types.float32(x), codegen


@intrinsic
def fma(_context: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z of float32, rounded once."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOAT, [_FLOAT] * 3), "llvm.fma.f32"
        )
        return builder.call(function, args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def order_key(_context: Any, x: Any) -> Any:
    """Return an int32 that orders as the float32 does; both zeros give 0.

    Infinities give +-INFINITY_KEY, NaN keys lie beyond. Sign and magnitude to two's complement.
    Written in instructions since numba widens int32 arithmetic to int64, which halves the speed of
    a scan.
    """

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = builder.bitcast(args[0], _I32)
        sign = builder.ashr(word, ir.Constant(_I32, 31))
        magnitude = builder.and_(word, ir.Constant(_I32, 0x7FFFFFFF))
        return builder.sub(builder.xor(magnitude, sign), sign)

    return types.int32(types.float32), codegen


@intrinsic
def from_order_key(_context: Any, key: Any) -> Any:
    """Return the float32 of an order key (never negative zero)."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        sign = builder.ashr(args[0], ir.Constant(_I32, 31))
        magnitude = builder.sub(builder.xor(args[0], sign), sign)
        word = builder.or_(magnitude, builder.and_(sign, ir.Constant(_I32, 0x80000000)))
        return builder.bitcast(word, _FLOAT)

    return types.float32(types.int32), codegen


@intrinsic
def between(_context: Any, address: Any, least: Any, greatest: Any) -> Any:
    """Return a bit for each of float32[64] at an address: whether least <= x <= greatest."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address, least, greatest = args
        zeros = ir.Constant(ir.VectorType(_I32, LANES), None)
        ends = []
        for end in (least, greatest):
            v = builder.insert_element(
                ir.Constant(_FLOATS, ir.Undefined), end, ir.Constant(_I32, 0)
            )
            ends.append(builder.shuffle_vector(v, v, zeros))
        found = ir.Constant(_I64, 0)
        for part in range(4):
            place = builder.add(address, ir.Constant(_I64, 4 * LANES * part))
            x = builder.load(builder.inttoptr(place, _FLOATS.as_pointer()), align=4)
            above, below = (
                builder.fcmp_ordered(">=", x, ends[0]),
                builder.fcmp_ordered("<=", x, ends[1]),
            )
            hits = builder.bitcast(builder.and_(above, below), ir.IntType(LANES))
            hits = builder.shl(builder.zext(hits, _I64), ir.Constant(_I64, LANES * part))
            found = builder.or_(found, hits)
        return found

    return types.uint64(types.intp, types.float32, types.float32), codegen


@intrinsic
def lowest_bit(_context: Any, word: Any) -> Any:
    """Return the place of the lowest bit of a uint64 that has one."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64, ir.IntType(1)])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.cttz.i64")
        return builder.call(function, [args[0], ir.Constant(ir.IntType(1), 1)])

    return types.int64(types.uint64), codegen


def _sum(term: Callable[[Any, Any], Any]) -> Any:
    """Make the 16-lane sum of a term, made by (builder, x), of float32[width] at an address.

    width is a multiple of 16. The order of reference.ops: lane j adds elements j, j+16, .., then
    lanes fold by halves.
    """

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address, width = args
        total = cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [0.0] * LANES))
        steps = builder.udiv(width, ir.Constant(_I64, LANES))
        with cgutils.for_range(builder, steps) as loop:
            offset = builder.mul(loop.index, ir.Constant(_I64, 4 * LANES))
            place = builder.inttoptr(builder.add(address, offset), _FLOATS.as_pointer())
            x = builder.load(place, align=4)
            builder.store(builder.fadd(builder.load(total), term(builder, x)), total)
        lanes = builder.load(total)
        for half in (8, 4, 2, 1):
            order = ir.Constant(
                ir.VectorType(_I32, LANES), [(j + half) % LANES for j in range(LANES)]
            )
            lanes = builder.fadd(lanes, builder.shuffle_vector(lanes, lanes, order))
        return builder.extract_element(lanes, ir.Constant(_I32, 0))

    def typed(_context: Any, address: Any, width: Any) -> Any:
        return types.float32(types.intp, types.intp), codegen

    return intrinsic(typed)


sum_lanes = _sum(lambda _, x: x)
sum_squares = _sum(lambda builder, x: builder.fmul(x, x))


@inlined
def float32s(address: int, count: int) -> Any:
    """View memory as float32[count]."""
    return _numba.carray(_pointer(address), count, np.float32)


@inlined
def bfloat16s(address: int, count: int) -> Any:
    """View memory as the bits of bfloat16[count]: uint16."""
    return _numba.carray(_pointer(address), count, np.uint16)


@inlined
def booleans(address: int, count: int) -> Any:
    """View memory as bool[count]."""
    return _numba.carray(_pointer(address), count, np.bool_)


@inlined
def int32s(address: int, count: int) -> Any:
    """View memory as int32[count]."""
    return _numba.carray(_pointer(address), count, np.int32)


@inlined
def int64s(address: int, count: int) -> Any:
    """View memory as int64[count]."""
    return _numba.carray(_pointer(address), count, np.int64)


@inlined
def narrow(x: Any) -> Any:
    """Round a float32 to bfloat16, to nearest even; NaN stays NaN. Returns its bits, uint16."""
    u = bits(x)
    rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(np.uint32(0x7FC0) if np.isnan(x) else rounded)
