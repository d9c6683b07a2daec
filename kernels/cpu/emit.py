"""Vector code by hand: an emitter of LLVM instructions on 16 float32 lanes, for kernels in SIMD.

LLVM splits the vectors on narrower machines, with the same result in every lane. A tag, the first
argument of what is emitted, tells by its type the elements, the order in which their products are
added (`reference.sums`), and the instructions that do it:

| tag | elements | sums | by |
|---|---|---|---|
| float32 | float32 | in order | multiply and add, fused in `matmul` |
| uint16 | bfloat16 | pairs | vdpbf16ps |
| int16 | bfloat16 | pairs | fused multiply-add under the processor's flush modes |
| int8 | bfloat16 | pairs | float64, on any machine |
| uint32 | bfloat16 | tiles | tdpbf16ps, see `amx` |
| int32 | bfloat16 | tiles | as int16 |
| int64 | bfloat16 | tiles | as int8 |

Tags of the same sums have the same bits; `choice.best_tag` says which is the fastest here.

One *step* is 4 bytes of a row: an element, or a pair of bfloat16. Addresses are integers; nothing
here is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...reference.activation import EXP2_COEFFICIENTS, EXP2_MAGIC, LEAST_NORMAL
from ...reference.sums import FLUSHED, Sums
from . import amx
from .simd import cgutils

LANES = 16
STEP_BYTES = 4
VECTOR_BYTES = 64
FLOAT = ir.FloatType()
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
FLOATS = ir.VectorType(FLOAT, LANES)
DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
I16S = ir.VectorType(I16, LANES)
I32S = ir.VectorType(I32, LANES)
NARROW = not llvmlite.binding.get_host_cpu_features().get("avx512f")
"""A vector takes two of 16 registers, instead of one of 32."""
NARROW_SUMS = 6
"""Vectors of sums that those hold beside the operands."""
_FLUSH_MODES = 0x8040
"""Bits of MXCSR: flush results to zero, denormals are zeros."""


TAGS: dict[Sums, tuple[str, str, str]] = {
    "pairs": ("uint16", "int16", "int8"),
    "tiles": ("uint32", "int32", "int64"),
}
"""Of bfloat16: by the instruction, by fused multiply-add, by float64."""
TILES = TAGS["tiles"]
TILE_TYPES = (types.uint32, types.int32, types.int64)
_BY_FLUSH_MODES = (types.int16, types.int32)


def promised_tag(sums: Sums) -> str:
    """Return the fastest tag of bfloat16 with these sums, by what the processor says of itself."""
    features = llvmlite.binding.get_host_cpu_features()
    instruction, fused, exact = TAGS[sums]
    if amx.is_available() if sums == "tiles" else features.get("avx512bf16"):
        return instruction
    return fused if features.get("fma") else exact


def fastest_sums() -> Sums:
    """Return the order in which this machine adds products of bfloat16 fastest."""
    return "tiles" if amx.is_available() else "pairs"


class Emit:
    """Builder of vector code; operands are LLVM values."""

    def __init__(self, builder: Any, tag: Any, *, fused: bool = False) -> None:
        """fused: products of float32 are added by fused multiply-add."""
        self.b = builder
        self.tag = tag
        self._fused = fused

    def call(self, name: str, result: Any, *args: Any) -> Any:
        """Call an LLVM intrinsic."""
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    def address(self, base: Any, *terms: Any) -> Any:
        """Return base plus terms, each an integer or a value."""
        for term in terms:
            value = ir.Constant(I64, term) if isinstance(term, int) else term
            base = self.b.add(base, value)
        return base

    def times(self, value: Any, factor: int) -> Any:
        """Return value * factor for an integer value."""
        return self.b.mul(value, ir.Constant(I64, factor))

    def load(self, address: Any, kind: Any = FLOATS) -> Any:
        """Load a vector or a number."""
        return self.b.load(
            self.b.inttoptr(address, kind.as_pointer()), align=2 if kind == I16S else 4
        )

    def store(self, value: Any, address: Any) -> None:
        """Store a vector or a number."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=2)

    def prefetch(self, address: Any) -> None:
        """Ask for a cache line, into the second level: a third faster here than into the first."""
        pointer = self.b.inttoptr(address, ir.IntType(8).as_pointer())
        numbers = [ir.Constant(I32, n) for n in (0, 2, 1)]  # read, second-level cache, data
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, *numbers)

    def splat(self, x: Any) -> Any:
        """Return a number in all lanes."""
        kind = ir.VectorType(x.type, LANES)
        v = self.b.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(I32, 0))
        return self.b.shuffle_vector(v, v, ir.Constant(I32S, [0] * LANES))

    def floats(self, x: float) -> Any:
        """Return a constant in all lanes."""
        return ir.Constant(FLOATS, [x] * LANES)

    def fold(self, v: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """Fold lanes by halves; return lane 0."""
        for half in (8, 4, 2, 1):
            order = ir.Constant(I32S, [(j + half) % LANES for j in range(LANES)])
            v = combine(v, self.b.shuffle_vector(v, v, order))
        return self.b.extract_element(v, ir.Constant(I32, 0))

    def greater(self, x: Any, y: Any) -> Any:
        """Return the greater of two."""
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """Return x * y + z rounded once."""
        return self.call("llvm.fma.v16f32", FLOATS, x, y, z)

    def exp2(self, x: Any) -> Any:
        """Twin of reference.activation.exp2."""
        b = self.b
        least = self.floats(-126.0)
        x = b.select(b.fcmp_ordered("<", x, least), least, x)
        magic = self.floats(EXP2_MAGIC)
        biased = b.fadd(x, magic)
        f = b.fsub(x, b.fsub(biased, magic))
        p = self.floats(EXP2_COEFFICIENTS[0])
        for coefficient in EXP2_COEFFICIENTS[1:]:
            p = self.fma(p, f, self.floats(coefficient))
        power = b.bitcast(b.shl(b.bitcast(biased, I32S), ir.Constant(I32S, [23] * LANES)), FLOATS)
        return b.fmul(p, power)

    def widen(self, x: Any) -> Any:
        """Return 16 bfloat16, given as their bits, as float32."""
        high = self.b.shl(self.b.zext(x, I32S), ir.Constant(I32S, [16] * LANES))
        return self.b.bitcast(high, FLOATS)

    def load_wide(self, address: Any) -> Any:
        """Load 16 elements as float32."""
        if self.tag == types.float32:
            return self.load(address)
        return self.widen(self.load(address, I16S))

    def narrow(self, x: Any) -> Any:
        """Round float32 lanes to bfloat16 bits, nearest even; NaN becomes the plain one."""
        b = self.b
        u = b.bitcast(x, I32S)
        sixteen = ir.Constant(I32S, [16] * LANES)
        odd = b.and_(b.lshr(u, sixteen), ir.Constant(I32S, [1] * LANES))
        rounded = b.lshr(b.add(b.add(u, odd), ir.Constant(I32S, [0x7FFF] * LANES)), sixteen)
        nan = b.fcmp_unordered("uno", x, x)
        return b.trunc(b.select(nan, ir.Constant(I32S, [0x7FC0] * LANES), rounded), I16S)

    def at_once(self, num_rows: int, num_vectors: int) -> list[tuple[int, int]]:
        """Cut the vectors of a register tile into ranges whose sums registers hold.

        Sums that lie in memory cost half the speed and more.
        """
        size = num_vectors
        if NARROW:
            size = 1 << max(0, (NARROW_SUMS // num_rows).bit_length() - 1)
        return [(i, min(num_vectors, i + size)) for i in range(0, num_vectors, size)]

    def sum_products(
        self,
        sums: list[list[Any]],
        steps: tuple[Any, Any],
        load: Callable[[Any], tuple[list[Any], list[Any]]],
        tile_steps: int,
    ) -> None:
        """Add left[i] * right[j] of steps first..last-1 to sums[i][j], which are stack places.

        load(step) returns left and right, vectors of 16 x 4 bytes; on the left also tuples of the
        halves that `halves` would take out of them. tile_steps: steps in a block of
        "tiles", whose first begins at `first`.
        """
        first, last = steps
        if self.tag not in TILE_TYPES:
            with cgutils.for_range(self.b, last, start=first) as loop:
                self._add_step(sums, *load(loop.index))
            return
        size = ir.Constant(I64, tile_steps)
        rounded = self.b.add(self.b.sub(last, first), ir.Constant(I64, tile_steps - 1))
        with cgutils.for_range(self.b, self.b.udiv(rounded, size)) as block:
            start = self.b.add(first, self.b.mul(block.index, size))
            end = self.b.add(start, size)
            end = self.b.select(self.b.icmp_signed("<", end, last), end, last)
            odd, even = (
                [[cgutils.alloca_once_value(self.b, self.floats(0.0)) for _ in row] for row in sums]
                for _ in range(2)
            )
            with cgutils.for_range(self.b, end, start=start) as loop:
                left, right = load(loop.index)
                for half, chains in enumerate((odd, even)):
                    self._add_half(chains, left, right, half)
            for totals, evens, odds in zip(sums, even, odd, strict=True):
                for place, e, o in zip(totals, evens, odds, strict=True):
                    pair = self._add_flushed(self.b.load(e), self.b.load(o))
                    self.b.store(self._add_flushed(self.b.load(place), pair), place)

    def _add_step(self, sums: list[list[Any]], left: list[Any], right: list[Any]) -> None:
        for half in range(len(self.halves())):
            self._add_half(sums, left, right, half)

    def _add_half(
        self, sums: list[list[Any]], left: list[Any], right: list[Any], half: int
    ) -> None:
        take = self.halves()[half]
        right_half = [take(x) for x in right]
        for row, x in zip(sums, left, strict=True):
            left_half = x[half] if isinstance(x, tuple) else take(x)
            for place, y in zip(row, right_half, strict=True):
                self.b.store(self.add_product(self.b.load(place), left_half, y), place)

    def _add_flushed(self, x: Any, y: Any) -> Any:
        """Return x + y, rounded once, all denormals flushed; by the flush modes where they do."""
        if self.tag in _BY_FLUSH_MODES:
            return self.b.fadd(x, y)
        return self.flush(self.b.fadd(self.flush(x), self.flush(y)))

    def halves(self) -> tuple[Callable[[Any], Any], ...]:
        """Return what takes the factors out of 4 bytes, in the order of addition: odd, even."""
        b = self.b
        if self.tag == types.uint16:
            return (lambda x: x,)
        if self.tag == types.float32:
            return (lambda x: b.bitcast(x, FLOATS),)
        high = ir.Constant(I32S, [0xFFFF0000 - (1 << 32)] * LANES)
        sixteen = ir.Constant(I32S, [16] * LANES)
        return (
            lambda x: b.bitcast(b.and_(x, high), FLOATS),
            lambda x: b.bitcast(b.shl(x, sixteen), FLOATS),
        )

    def add_product(self, total: Any, x: Any, y: Any) -> Any:
        """Return total + x * y, or both products of a pair."""
        if self.tag == types.float32 and not self._fused:
            return self.b.fadd(total, self.b.fmul(x, y))
        if self.tag == types.uint16:
            return self.call("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, y, x)
        if self.tag in (*_BY_FLUSH_MODES, types.float32):
            return self.fma(x, y, total)
        return self.add_exact(total, x, y)

    def add_exact(self, total: Any, x: Any, y: Any) -> Any:
        """Return total + x * y rounded once, all denormals flushed; x, y: bfloat16 values."""
        b = self.b
        total, x, y = (b.fpext(self.flush(v), DOUBLES) for v in (total, x, y))
        exact = b.fadd(total, b.fmul(x, y))
        size = self.call("llvm.fabs.v16f64", DOUBLES, exact)
        tiny = b.fcmp_ordered("<=", size, ir.Constant(DOUBLES, [FLUSHED] * LANES))
        zero = b.fmul(exact, ir.Constant(DOUBLES, [0.0] * LANES))
        return b.fptrunc(b.select(tiny, zero, exact), FLOATS)

    @contextmanager
    def flush_modes(self, results: list[list[Any]] | None = None) -> Iterator[None]:
        """Let the processor flush denormal operands and results, for the tags that need it.

        The arithmetic between hangs on loads that follow the first change, and must not move behind
        the second: it ends in stores to memory, or in stack places that are given as results.
        """
        if self.tag not in _BY_FLUSH_MODES:
            yield
            return
        old, new = cgutils.alloca_once(self.b, I32), cgutils.alloca_once(self.b, I32)
        self.call("llvm.x86.sse.stmxcsr", ir.VoidType(), old)
        self.b.store(self.b.or_(self.b.load(old), ir.Constant(I32, _FLUSH_MODES)), new)
        self.call("llvm.x86.sse.ldmxcsr", ir.VoidType(), new)
        yield
        self._pin([place for row in results or [] for place in row])
        self.call("llvm.x86.sse.ldmxcsr", ir.VoidType(), old)

    def _pin(self, places: list[Any]) -> None:
        """Have the values of stack places computed here, before whatever side effect comes next.

        They pass through memory that assembly without an instruction might read.
        """
        memory = cgutils.alloca_once(self.b, ir.ArrayType(FLOATS, len(places)))
        zero = ir.Constant(I32, 0)
        slots = [self.b.gep(memory, [zero, ir.Constant(I32, i)]) for i in range(len(places))]
        for slot, place in zip(slots, places, strict=True):
            self.b.store(self.b.load(place), slot, align=4)
        kind = ir.FunctionType(ir.VoidType(), [memory.type])
        self.b.asm(kind, "", "r,~{memory}", [memory], True)
        for slot, place in zip(slots, places, strict=True):
            self.b.store(self.b.load(slot, align=4), place)

    def flush(self, x: Any) -> Any:
        """Denormals become zeros of their sign."""
        size = self.call("llvm.fabs.v16f32", FLOATS, x)
        tiny = self.b.fcmp_ordered("<", size, self.floats(LEAST_NORMAL))
        return self.b.select(tiny, self.b.fmul(x, self.floats(0.0)), x)

    def store_exactly(self, x: Any, address: Any) -> None:
        """Store 16 float32 in the elements' type, denormals too."""
        self.store(x if self.tag == types.float32 else self.narrow(x), address)

    def store_rounded(self, x: Any, address: Any) -> None:
        """Store 16 float32 in the elements' type; bfloat16 without denormals."""
        if self.tag in (types.uint16, types.uint32):
            x = self.call("llvm.x86.avx512bf16.cvtneps2bf16.512", I16S, x)
        elif self.tag != types.float32:
            x = self.narrow(self.flush(x))
        self.store(x, address)


def emitted(emit: Callable[..., None], *, dots: bool = False, fused: bool = False) -> Any:
    """Make an intrinsic of (tag, tuple of int64) from emit(emitter, *integers).

    dots: all of it is products and their sums, under the rules of the tag; fused: see Emit.
    """

    def typed(_context: Any, tag: Any, args: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            emitter = Emit(builder, tag, fused=fused)
            with emitter.flush_modes() if dots else nullcontext():
                emit(emitter, *cgutils.unpack_tuple(builder, values[1]))
            return context.get_dummy_value()

        return types.void(tag, args), codegen

    return intrinsic(typed)
