"""Attention tiles in explicit SIMD: scores, softmax row, values. Code generators, no kernel.

The arithmetic of reference.attention for a few rows and one tile of KV_TILE keys, in vectors of 16
float32 lanes (LLVM splits them on narrower machines, with the same result in every lane). The first
argument of each is a tag whose type tells the elements:

* float32: float32 elements, separate multiply and add.
* uint16: bfloat16, through the dot product instruction (vdpbf16ps: two fused multiply-adds, the odd
  element first, denormals flushed). Only where `has_dot_instruction()`.
* int16: bfloat16, the same results from float64 arithmetic, on any machine.

One *step* is 4 bytes of a row: an element, or a pair of bfloat16. All geometry is in steps, the same
for all tags: a part (16 keys) of keys is [steps of head_dim, 16 keys], of values [steps of 16 keys,
head_dim]. Addresses are integers; nothing here is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...reference.activation import EXP2_COEFFICIENTS
from ...reference.attention import FLUSHED, LEAST_FINITE, LEAST_NORMAL

LANES = 16
PARTS = 4
"""Parts of 16 keys in a tile."""
STEP_BYTES = 4
VECTOR_BYTES = 64
ROW_COUNTS = (6, 3, 1)
"""Rows of a register tile: 6 x 4 vectors of sums leave room for the operands in 32 registers."""

_FLOAT = ir.FloatType()
_I16 = ir.IntType(16)
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_I16S = ir.VectorType(_I16, LANES)
_I32S = ir.VectorType(_I32, LANES)
_ROUND_MAGIC = 12582912.0 + 127
"""1.5 * 2^23 + 127: added to a small integral float32, leaves integer + 127 in the low bits."""


def has_dot_instruction() -> bool:
    """Whether this machine multiplies bfloat16 pairs in one instruction."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16", False))


class _Emit:
    """Builder of vector code; operands are LLVM values."""

    def __init__(self, builder: Any, tag: Any) -> None:
        self.b = builder
        self.tag = tag

    def call(self, name: str, result: Any, *args: Any) -> Any:
        """Call an LLVM intrinsic."""
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    def address(self, base: Any, *terms: Any) -> Any:
        """Return base plus terms, each an integer or a value."""
        for term in terms:
            value = ir.Constant(_I64, term) if isinstance(term, int) else term
            base = self.b.add(base, value)
        return base

    def times(self, value: Any, factor: int) -> Any:
        """Return value * factor for an integer value."""
        return self.b.mul(value, ir.Constant(_I64, factor))

    def load(self, address: Any, kind: Any = _FLOATS) -> Any:
        """Load a vector or a number."""
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=2 if kind == _I16S else 4)

    def store(self, value: Any, address: Any) -> None:
        """Store a vector or a number."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=2)

    def splat(self, x: Any) -> Any:
        """Return a number in all lanes."""
        kind = ir.VectorType(x.type, LANES)
        v = self.b.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(v, v, ir.Constant(_I32S, [0] * LANES))

    def floats(self, x: float) -> Any:
        """Return a constant in all lanes."""
        return ir.Constant(_FLOATS, [x] * LANES)

    def fold(self, v: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """Fold lanes by halves; return lane 0."""
        for half in (8, 4, 2, 1):
            order = ir.Constant(_I32S, [(j + half) % LANES for j in range(LANES)])
            v = combine(v, self.b.shuffle_vector(v, v, order))
        return self.b.extract_element(v, ir.Constant(_I32, 0))

    def greater(self, x: Any, y: Any) -> Any:
        """Return the greater of two."""
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def exp2(self, x: Any) -> Any:
        """Twin of reference.activation.exp2."""
        b = self.b
        least = self.floats(-126.0)
        x = b.select(b.fcmp_ordered("<", x, least), least, x)
        n = self.call("llvm.floor.v16f32", _FLOATS, b.fadd(x, self.floats(0.5)))
        f = b.fsub(x, n)
        p = self.floats(EXP2_COEFFICIENTS[0])
        for coefficient in EXP2_COEFFICIENTS[1:]:
            p = b.fadd(b.fmul(p, f), self.floats(coefficient))
        biased = b.bitcast(b.fadd(n, self.floats(_ROUND_MAGIC)), _I32S)
        power = b.bitcast(b.shl(biased, ir.Constant(_I32S, [23] * LANES)), _FLOATS)
        return b.fmul(p, power)

    def narrow(self, x: Any) -> Any:
        """Round float32 lanes to bfloat16 bits, nearest even; NaN becomes the plain one."""
        b = self.b
        u = b.bitcast(x, _I32S)
        sixteen = ir.Constant(_I32S, [16] * LANES)
        odd = b.and_(b.lshr(u, sixteen), ir.Constant(_I32S, [1] * LANES))
        rounded = b.lshr(b.add(b.add(u, odd), ir.Constant(_I32S, [0x7FFF] * LANES)), sixteen)
        nan = b.fcmp_unordered("uno", x, x)
        return b.trunc(b.select(nan, ir.Constant(_I32S, [0x7FC0] * LANES), rounded), _I16S)

    def step(self, total: Any, left: Any, right: Any) -> Any:
        """Add left * right of one step; left, right: 16 x 4 bytes."""
        b = self.b
        if self.tag == types.float32:
            return b.fadd(total, b.fmul(b.bitcast(left, _FLOATS), b.bitcast(right, _FLOATS)))
        if self.tag == types.uint16:
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            return self.call(name, _FLOATS, total, right, left)
        high = ir.Constant(_I32S, [0xFFFF0000 - (1 << 32)] * LANES)
        sixteen = ir.Constant(_I32S, [16] * LANES)
        total = self.flush(total)
        for take in (lambda x: b.and_(x, high), lambda x: b.shl(x, sixteen)):
            x, y = (
                b.fpext(self.flush(b.bitcast(take(side), _FLOATS)), _DOUBLES)
                for side in (left, right)
            )
            exact = b.fadd(b.fpext(total, _DOUBLES), b.fmul(x, y))
            size = self.call("llvm.fabs.v16f64", _DOUBLES, exact)
            tiny = b.fcmp_ordered("<=", size, ir.Constant(_DOUBLES, [FLUSHED] * LANES))
            total = b.select(tiny, self.floats(0.0), b.fptrunc(exact, _FLOATS))
        return total

    def flush(self, x: Any) -> Any:
        """Denormals become zero."""
        size = self.call("llvm.fabs.v16f32", _FLOATS, x)
        tiny = self.b.fcmp_ordered("<", size, self.floats(LEAST_NORMAL))
        return self.b.select(tiny, self.floats(0.0), x)

    def store_probabilities(self, p: Any, address: Any) -> None:
        """Store 16 float32 in the elements' type."""
        if self.tag == types.uint16:
            p = self.call("llvm.x86.avx512bf16.cvtneps2bf16.512", _I16S, p)
        elif self.tag == types.int16:
            p = self.narrow(p)
        self.store(p, address)


def _intrinsic(num_addresses: int, result: Any = types.void, *extra: Any) -> Callable[..., Any]:
    """Make an intrinsic of (tag, num_addresses integers, extra) from emit code."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def typed(_context: Any, tag: Any, *rest: Any) -> Any:
            def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
                value = emit(_Emit(builder, tag), *args[1:])
                return context.get_dummy_value() if value is None else value

            return result(tag, *([types.int64] * num_addresses), *extra), codegen

        # numba reads the arity of an intrinsic from its signature.
        names = ", ".join(f"a{i}" for i in range(num_addresses + len(extra)))
        return intrinsic(eval(f"lambda _context, tag, {names}: typed(_context, tag)", {"typed": typed}))

    return decorate
