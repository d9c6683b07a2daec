"""Attention tiles in explicit SIMD: scores, softmax row, values. Code generators, no kernel.

The arithmetic of reference.attention for a few rows and one tile of KV_TILE keys, in vectors of 16
float32 lanes (LLVM splits them on narrower machines, with the same result in every lane). The first
argument of each is a tag whose type tells the elements and how their products are added:

* float32: float32, separate multiply and add.
* uint16: bfloat16 through the dot product instruction vdpbf16ps, which is two fused multiply-adds,
  the odd element first, with denormals flushed.
* int16: bfloat16 through fused multiply-adds while the processor's flush modes are on.
* int8: bfloat16 through float64 (see reference.attention), on any machine.

The last three have the same bits; `best_bfloat16_tag` says which is the fastest here.

One *step* is 4 bytes of a row: an element, or a pair of bfloat16. All geometry is in steps, the
same for all tags: a part (16 keys) of keys is [steps of head_dim, 16 keys], of values [steps of 16
keys, head_dim]. Addresses are integers; nothing here is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...reference.activation import EXP2_COEFFICIENTS
from ...reference.attention import FLUSHED, LEAST_FINITE, LEAST_NORMAL
from .simd import cgutils

LANES = 16
PARTS = 4
"""Parts of 16 keys in a tile."""
STEP_BYTES = 4
VECTOR_BYTES = 64
MAX_ROWS = 6
"""Rows of a register tile: 6 x 4 vectors of sums leave room for the operands in 32 registers."""
TOPS_OFFSET, RESCALE_OFFSET, FACTOR_OFFSET, SUMS_OFFSET = 64, 128, 192, 256
STATE_BYTES = SUMS_OFFSET + MAX_ROWS * VECTOR_BYTES
"""State of MAX_ROWS rows: float32 [16] running maxima, [16] and [16] scratch, the factor, and from
SUMS_OFFSET on the 16 sums of each row."""

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

_FLUSH_MODES = 0x8040
"""Bits of MXCSR: flush results to zero, denormals are zeros."""


@cache
def best_bfloat16_tag() -> str:
    """Return the fastest tag of bfloat16 that this machine has."""
    features = llvmlite.binding.get_host_cpu_features()
    return "uint16" if features.get("avx512bf16") else "int16" if features.get("fma") else "int8"


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
        return self.b.load(
            self.b.inttoptr(address, kind.as_pointer()), align=2 if kind == _I16S else 4
        )

    def store(self, value: Any, address: Any) -> None:
        """Store a vector or a number."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=2)

    def prefetch(self, address: Any) -> None:
        """Ask for a cache line, into the second level: a third faster here than into the first."""
        pointer = self.b.inttoptr(address, ir.IntType(8).as_pointer())
        numbers = [ir.Constant(_I32, n) for n in (0, 2, 1)]  # read, second-level cache, data
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, *numbers)

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

    def add_products(self, sums: list[list[Any]], left: list[Any], right: list[Any]) -> None:
        """Add left[i] * right[j] of one step to sums[i][j] (stack places); each 16 x 4 bytes."""
        for take in self.halves():
            right_half = [take(x) for x in right]
            for row, x in zip(sums, left, strict=True):
                left_half = take(x)
                for place, y in zip(row, right_half, strict=True):
                    self.b.store(self.add_product(self.b.load(place), left_half, y), place)

    def halves(self) -> tuple[Callable[[Any], Any], ...]:
        """Return what takes the factors out of 4 bytes, in the order of addition."""
        b = self.b
        if self.tag == types.uint16:
            return (lambda x: x,)
        if self.tag == types.float32:
            return (lambda x: b.bitcast(x, _FLOATS),)
        high = ir.Constant(_I32S, [0xFFFF0000 - (1 << 32)] * LANES)
        sixteen = ir.Constant(_I32S, [16] * LANES)
        return (
            lambda x: b.bitcast(b.and_(x, high), _FLOATS),
            lambda x: b.bitcast(b.shl(x, sixteen), _FLOATS),
        )

    def add_product(self, total: Any, x: Any, y: Any) -> Any:
        """Return total + x * y, or both products of a pair."""
        if self.tag == types.float32:
            return self.b.fadd(total, self.b.fmul(x, y))
        if self.tag == types.uint16:
            return self.call("llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, total, y, x)
        if self.tag == types.int16:
            return self.call("llvm.fma.v16f32", _FLOATS, x, y, total)
        return self.add_exact(total, x, y)

    def add_exact(self, total: Any, x: Any, y: Any) -> Any:
        """Return total + x * y rounded once, all denormals flushed; x, y: bfloat16 values."""
        b = self.b
        total, x, y = (b.fpext(self.flush(v), _DOUBLES) for v in (total, x, y))
        exact = b.fadd(total, b.fmul(x, y))
        size = self.call("llvm.fabs.v16f64", _DOUBLES, exact)
        tiny = b.fcmp_ordered("<=", size, ir.Constant(_DOUBLES, [FLUSHED] * LANES))
        return b.select(tiny, self.floats(0.0), b.fptrunc(exact, _FLOATS))

    @contextmanager
    def flush_modes(self) -> Iterator[None]:
        """Let the processor flush denormal operands and results, for the tag that needs it.

        The arithmetic between hangs on loads that follow the first change, stores that precede the
        second, and the machine's instructions are ordered by the mode register.
        """
        if self.tag != types.int16:
            yield
            return
        old, new = cgutils.alloca_once(self.b, _I32), cgutils.alloca_once(self.b, _I32)
        self.call("llvm.x86.sse.stmxcsr", ir.VoidType(), old)
        self.b.store(self.b.or_(self.b.load(old), ir.Constant(_I32, _FLUSH_MODES)), new)
        self.call("llvm.x86.sse.ldmxcsr", ir.VoidType(), new)
        yield
        self.call("llvm.x86.sse.ldmxcsr", ir.VoidType(), old)

    def flush(self, x: Any) -> Any:
        """Denormals become zero."""
        size = self.call("llvm.fabs.v16f32", _FLOATS, x)
        tiny = self.b.fcmp_ordered("<", size, self.floats(LEAST_NORMAL))
        return self.b.select(tiny, self.floats(0.0), x)

    def store_probabilities(self, p: Any, address: Any) -> None:
        """Store 16 float32 in the elements' type."""
        if self.tag == types.uint16:
            p = self.call("llvm.x86.avx512bf16.cvtneps2bf16.512", _I16S, p)
        elif self.tag != types.float32:
            p = self.narrow(p)
        self.store(p, address)


def _intrinsic(emit: Callable[..., None], *, dots: bool = False) -> Any:
    """Make an intrinsic of (tag, tuple of int64) from emit(emitter, *integers).

    dots: all of it is products and their sums, under the rules of the tag.
    """

    def typed(_context: Any, tag: Any, args: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            emitter = _Emit(builder, tag)
            with emitter.flush_modes() if dots else nullcontext():
                emit(emitter, *cgutils.unpack_tuple(builder, values[1]))
            return context.get_dummy_value()

        return types.void(tag, args), codegen

    return intrinsic(typed)


def _scores(num_rows: int) -> Callable[..., None]:
    """Scores of num_rows x KV_TILE.

    q: [num_rows, steps] steps; parts: [4, PARTS] addresses of the tile's keys, its values, the
    next tile's keys (which are prefetched) and its values; out: [num_rows, KV_TILE] float32.
    """

    def emit(e: _Emit, q: Any, parts: Any, out: Any, steps: Any) -> None:
        b = e.b
        keys = [e.load(e.address(parts, 8 * j), _I64) for j in range(PARTS)]
        coming = [e.load(e.address(parts, 8 * (2 * PARTS + j)), _I64) for j in range(PARTS)]
        sums = [
            [cgutils.alloca_once_value(b, e.floats(0.0)) for _ in range(PARTS)]
            for _ in range(num_rows)
        ]
        row_bytes = e.times(steps, STEP_BYTES)
        with cgutils.for_range(b, steps) as loop:
            offset = e.times(loop.index, VECTOR_BYTES)
            k = [e.load(e.address(part, offset), _I32S) for part in keys]
            for part in coming:
                e.prefetch(e.address(part, offset))
            places = [
                e.address(q, e.times(row_bytes, i), e.times(loop.index, STEP_BYTES))
                for i in range(num_rows)
            ]
            e.add_products(sums, [e.splat(e.load(place, _I32)) for place in places], k)
        for i, row in enumerate(sums):
            for j, total in enumerate(row):
                e.store(b.load(total), e.address(out, (i * PARTS + j) * VECTOR_BYTES))

    return emit


def _values(num_rows: int, num_vectors: int) -> Callable[..., None]:
    """Add probabilities times values, steps first..last-1 of the tile, to num_rows outputs.

    p: [num_rows, KV_TILE] elements; parts: as for scores (the next tile's values are prefetched);
    out: [num_rows, head_dim] float32; span: first << 32 | last. Columns: num_vectors * 16, from
    byte `column` on; row_bytes: head_dim * 4.
    """

    def emit(
        e: _Emit, p: Any, parts: Any, out: Any, span: Any, column: Any, row_bytes: Any
    ) -> None:
        b = e.b
        part_steps = 16 if e.tag == types.float32 else 8
        p_bytes = PARTS * part_steps * STEP_BYTES
        first, last = b.lshr(span, ir.Constant(_I64, 32)), b.and_(span, ir.Constant(_I64, 0xFFFF))
        places = [
            [
                e.address(out, e.times(row_bytes, i), column, j * VECTOR_BYTES)
                for j in range(num_vectors)
            ]
            for i in range(num_rows)
        ]
        sums = [[cgutils.alloca_once_value(b, e.load(place)) for place in row] for row in places]
        with cgutils.for_range(b, last, start=first) as loop:
            part = b.udiv(loop.index, ir.Constant(_I64, part_steps))
            base, next_base = (
                e.load(e.address(parts, e.times(part, 8), 8 * PARTS * table), _I64)
                for table in (1, 3)
            )
            inner = b.mul(b.urem(loop.index, ir.Constant(_I64, part_steps)), row_bytes)
            v = [
                e.load(e.address(base, inner, column, j * VECTOR_BYTES), _I32S)
                for j in range(num_vectors)
            ]
            for j in range(num_vectors):
                e.prefetch(e.address(next_base, inner, column, j * VECTOR_BYTES))
            left = [
                e.splat(e.load(e.address(p, i * p_bytes, e.times(loop.index, STEP_BYTES)), _I32))
                for i in range(num_rows)
            ]
            e.add_products(sums, left, v)
        for row, row_places in zip(sums, places, strict=True):
            for total, place in zip(row, row_places, strict=True):
                e.store(b.load(total), place)

    return emit


def _softmax(e: _Emit, rows: Any, scores: Any, masks: Any, state: Any, out: Any, p: Any) -> None:
    """One step of the online softmax for rows <= 16: probabilities, new sums, rescaled outputs.

    rows: number of rows << 32 | head_dim; scores: [rows, KV_TILE] float32, before the factor;
    masks: [rows] int64, bit j set where key j is visible; a row without any is left as it is, its
    probabilities are 0. state: see STATE_BYTES; out: [rows, head_dim] float32; p: [rows, KV_TILE].
    """
    b = e.b
    num_rows = b.lshr(rows, ir.Constant(_I64, 32))
    row_bytes = e.times(b.and_(rows, ir.Constant(_I64, 0xFFFF)), 4)
    num_vectors = b.udiv(row_bytes, ir.Constant(_I64, VECTOR_BYTES))
    element_bytes = STEP_BYTES if e.tag == types.float32 else STEP_BYTES // 2
    factor = e.splat(e.load(e.address(state, FACTOR_OFFSET), _FLOAT))
    tops = e.address(state, TOPS_OFFSET)
    e.store(e.floats(LEAST_FINITE), tops)
    with cgutils.for_range(b, num_rows) as loop:
        scaled, seen = _scaled(e, scores, masks, loop.index, factor)
        pairs = [b.select(s, x, e.floats(LEAST_FINITE)) for s, x in zip(seen, scaled, strict=True)]
        top = e.fold(e.greater(e.greater(*pairs[:2]), e.greater(*pairs[2:])), e.greater)
        e.store(top, e.address(tops, e.times(loop.index, 4)))
    m = e.load(state)
    new_m = e.greater(e.load(tops), m)
    e.store(new_m, state)
    factors = e.address(state, RESCALE_OFFSET)
    e.store(e.exp2(b.fsub(m, new_m)), factors)
    with cgutils.for_range(b, num_rows) as loop:
        scaled, seen = _scaled(e, scores, masks, loop.index, factor)
        m_row = e.splat(e.load(e.address(state, e.times(loop.index, 4)), _FLOAT))
        row_p = e.address(p, e.times(loop.index, PARTS * LANES * element_bytes))
        total = None
        for j in range(PARTS):
            x = b.select(seen[j], e.exp2(b.fsub(scaled[j], m_row)), e.floats(0.0))
            e.store_probabilities(x, e.address(row_p, j * LANES * element_bytes))
            total = x if total is None else b.fadd(total, x)
        c_row = e.load(e.address(factors, e.times(loop.index, 4)), _FLOAT)
        c = e.splat(c_row)
        sums = e.address(state, SUMS_OFFSET, e.times(loop.index, VECTOR_BYTES))
        e.store(b.fadd(b.fmul(e.load(sums), c), total), sums)
        row_out = e.address(out, b.mul(loop.index, row_bytes))
        changed = b.fcmp_unordered("une", c_row, ir.Constant(_FLOAT, 1.0))
        with b.if_then(changed), cgutils.for_range(b, num_vectors) as column:
            place = e.address(row_out, e.times(column.index, VECTOR_BYTES))
            e.store(b.fmul(e.load(place), c), place)


def _scaled(
    e: _Emit, scores: Any, masks: Any, row: Any, factor: Any
) -> tuple[list[Any], list[Any]]:
    """Scores of a row times the factor, and which are visible: PARTS vectors each."""
    b = e.b
    mask = e.load(e.address(masks, e.times(row, 8)), _I64)
    base = e.address(scores, e.times(row, PARTS * VECTOR_BYTES))
    scaled, seen = [], []
    for j in range(PARTS):
        scaled.append(b.fmul(e.load(e.address(base, j * VECTOR_BYTES)), factor))
        bits = b.trunc(b.lshr(mask, ir.Constant(_I64, LANES * j)), _I16)
        seen.append(b.bitcast(bits, ir.VectorType(ir.IntType(1), LANES)))
    return scaled, seen


def _finish(e: _Emit, sums: Any, out: Any, target: Any, head_dim: Any) -> None:
    """Divide one row by the sum of its probabilities and round it into target [head_dim].

    Leaves in sums[0] a number that is NaN where any element of the row is.
    """
    b = e.b
    row_sum = e.splat(e.fold(e.load(sums), b.fadd))
    nans = cgutils.alloca_once_value(b, e.floats(0.0))
    with cgutils.for_range(b, b.udiv(head_dim, ir.Constant(_I64, LANES))) as loop:
        place = e.address(out, e.times(loop.index, VECTOR_BYTES))
        x = b.fadd(b.fdiv(e.load(place), row_sum), e.floats(0.0))
        b.store(b.select(b.fcmp_unordered("uno", x, x), x, b.load(nans)), nans)
        if e.tag == types.float32:
            e.store(x, e.address(target, e.times(loop.index, VECTOR_BYTES)))
        else:
            e.store(e.narrow(x), e.address(target, e.times(loop.index, VECTOR_BYTES // 2)))
    e.store(e.fold(b.load(nans), b.fadd), sums)


scores_6 = _intrinsic(_scores(6), dots=True)
scores_3 = _intrinsic(_scores(3), dots=True)
scores_1 = _intrinsic(_scores(1), dots=True)
values_6x4 = _intrinsic(_values(6, 4), dots=True)
values_3x4 = _intrinsic(_values(3, 4), dots=True)
values_1x4 = _intrinsic(_values(1, 4), dots=True)
values_6x1 = _intrinsic(_values(6, 1), dots=True)
values_3x1 = _intrinsic(_values(3, 1), dots=True)
values_1x1 = _intrinsic(_values(1, 1), dots=True)
softmax_rows = _intrinsic(_softmax)
finish_row = _intrinsic(_finish)
