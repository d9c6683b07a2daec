"""Attention tiles in explicit SIMD: scores, the passes of the softmax, values. No kernel.

The arithmetic of reference.attention for a few rows and one tile of KV_TILE keys, by the tags of
`emit`. All geometry is in steps, the same for all tags: a part (16 keys) of keys is [steps of
head_dim, 16 keys], of values [steps of 16 keys, head_dim].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

from llvmlite import ir
from numba import types

from ...reference.attention import LEAST_FINITE, VALUE_TILE
from ...reference.sums import TILE
from . import amx
from .emit import (
    FLOAT,
    I16,
    I32,
    I32S,
    I64,
    LANES,
    STEP_BYTES,
    TILE_TYPES,
    VECTOR_BYTES,
    Emit,
    emitted,
)
from .launch import inlined
from .simd import cgutils

AMX = types.uint32
PARTS = 4
"""Parts of 16 keys in a tile."""
FULL = PARTS + 1
"""Number of parts of a tile that every row sees whole."""
MAX_ROWS = 6
"""Rows of a register tile: 6 x 4 vectors of sums leave room for the operands in 32 registers."""
TOPS_OFFSET, RESCALE_OFFSET, FACTOR_OFFSET, SUMS_OFFSET = 64, 128, 192, 256
STATE_BYTES = SUMS_OFFSET + MAX_ROWS * VECTOR_BYTES
"""State of MAX_ROWS rows: float32 [16] running maxima, [16] and [16] scratch, the factor and (for a
cap) the one in front of the tanh, and from SUMS_OFFSET on the 16 sums of each row."""


def _scores(num_rows: int, num_parts: int = PARTS) -> Callable[..., None]:
    """Scores of num_rows with the first num_parts parts of a tile.

    q: [num_rows, steps] steps; parts: [4, PARTS] addresses of the tile's keys, its values, the
    next tile's keys (which are prefetched) and its values; out: [num_rows, KV_TILE] float32.
    """

    def emit(e: Emit, q: Any, parts: Any, out: Any, steps: Any) -> None:
        if e.tag == AMX:
            return
        b = e.b
        keys = [e.load(e.address(parts, 8 * j), I64) for j in range(num_parts)]
        coming = [e.load(e.address(parts, 8 * (2 * PARTS + j)), I64) for j in range(PARTS)]
        row_bytes = e.times(steps, STEP_BYTES)

        def load(step: Any, first: int, end: int) -> tuple[list[Any], list[Any]]:
            offset = e.times(step, VECTOR_BYTES)
            k = [e.load(e.address(part, offset), I32S) for part in keys[first:end]]
            for part in coming if first == 0 else ():
                e.prefetch(e.address(part, offset))
            places = [
                e.address(q, e.times(row_bytes, i), e.times(step, STEP_BYTES))
                for i in range(num_rows)
            ]
            return [e.splat(e.load(place, I32)) for place in places], k

        for first, end in e.at_once(num_rows, num_parts):
            sums = [
                [cgutils.alloca_once_value(b, e.floats(0.0)) for _ in range(first, end)]
                for _ in range(num_rows)
            ]
            some = partial(load, first=first, end=end)
            e.sum_products(sums, (ir.Constant(I64, 0), steps), some, TILE // 2)
            for i, row in enumerate(sums):
                for j, total in enumerate(row, first):
                    e.store(b.load(total), e.address(out, (i * PARTS + j) * VECTOR_BYTES))

    return emit


def _values(num_rows: int, num_vectors: int) -> Callable[..., None]:
    """Add probabilities times values, steps first..last-1 of the tile, to num_rows outputs.

    p: [num_rows, KV_TILE] elements; parts: as for scores (the next tile's values are prefetched);
    out: [num_rows, head_dim] float32; span: first << 32 | last. Columns: num_vectors * 16, from
    byte `column` on; row_bytes: head_dim * 4.
    """

    def emit(e: Emit, p: Any, parts: Any, out: Any, span: Any, column: Any, row_bytes: Any) -> None:
        if e.tag == AMX:
            return
        b = e.b
        part_steps = 16 if e.tag == types.float32 else 8
        p_bytes = PARTS * part_steps * STEP_BYTES
        first, last = b.lshr(span, ir.Constant(I64, 32)), b.and_(span, ir.Constant(I64, 0xFFFF))

        def load(step: Any, start: int, end: int) -> tuple[list[Any], list[Any]]:
            part = b.udiv(step, ir.Constant(I64, part_steps))
            base, next_base = (
                e.load(e.address(parts, e.times(part, 8), 8 * PARTS * table), I64)
                for table in (1, 3)
            )
            inner = b.mul(b.urem(step, ir.Constant(I64, part_steps)), row_bytes)
            columns = [e.address(inner, column, j * VECTOR_BYTES) for j in range(start, end)]
            v = [e.load(e.address(base, place), I32S) for place in columns]
            for place in columns:
                e.prefetch(e.address(next_base, place))
            left = [
                e.splat(e.load(e.address(p, i * p_bytes, e.times(step, STEP_BYTES)), I32))
                for i in range(num_rows)
            ]
            return left, v

        tile_steps = VALUE_TILE // 2
        if e.tag in TILE_TYPES:  # whole blocks: what is masked adds zero
            first = b.and_(first, ir.Constant(I64, -tile_steps))
            last = b.and_(
                b.add(last, ir.Constant(I64, tile_steps - 1)), ir.Constant(I64, -tile_steps)
            )
        for start, end in e.at_once(num_rows, num_vectors):
            places = [
                [
                    e.address(out, e.times(row_bytes, i), column, j * VECTOR_BYTES)
                    for j in range(start, end)
                ]
                for i in range(num_rows)
            ]
            sums = [
                [cgutils.alloca_once_value(b, e.load(place)) for place in row] for row in places
            ]
            some = partial(load, start=start, end=end)
            e.sum_products(sums, (first, last), some, tile_steps)
            for row, row_places in zip(sums, places, strict=True):
                for total, place in zip(row, row_places, strict=True):
                    e.store(b.load(total), place)

    return emit


def _tops(num_parts: int, masked: bool) -> Callable[..., None]:
    """First pass of the softmax, for rows <= 16: the greatest score of each into the state.

    rows: number of rows << 32 | head_dim; scores: [rows, KV_TILE] float32, before the factor, of
    which the first num_parts parts are there; masks: [rows] int64, bit j set where key j is
    visible (not masked: all are); state: see STATE_BYTES.
    """

    def emit(e: Emit, rows: Any, scores: Any, masks: Any, state: Any) -> None:
        b = e.b
        factor = e.splat(e.load(e.address(state, FACTOR_OFFSET), FLOAT))
        tops = e.address(state, TOPS_OFFSET)
        e.store(e.floats(LEAST_FINITE), tops)
        with cgutils.for_range(b, b.lshr(rows, ir.Constant(I64, 32))) as loop:
            scaled = _scaled(e, scores, loop.index, factor, num_parts)
            if masked:
                seen = _seen(e, masks, loop.index, num_parts)
                least = e.floats(LEAST_FINITE)
                scaled = [b.select(s, x, least) for s, x in zip(seen, scaled, strict=True)]
            top = e.fold(reduce(e.greater, scaled), e.greater)
            e.store(top, e.address(tops, e.times(loop.index, 4)))

    return emit


def _cap(e: Emit, rows: Any, scores: Any, state: Any) -> None:
    """Before the first pass, for rows: make scores the tanh that the factor is a cap of.

    Of scores that are not there it makes other numbers that nobody reads.
    """
    b = e.b
    factor = e.splat(e.load(e.address(state, FACTOR_OFFSET + 4), FLOAT))
    one, two, most = (e.floats(x) for x in (1.0, 2.0, 126.0))
    with cgutils.for_range(b, e.times(rows, PARTS)) as loop:
        place = e.address(scores, e.times(loop.index, VECTOR_BYTES))
        x = b.fmul(e.load(place), factor)
        t = e.exp2(b.select(b.fcmp_ordered(">", x, most), most, x))
        e.store(b.fsub(one, b.fdiv(two, b.fadd(t, one))), place)


def _new_maxima(e: Emit, state: Any) -> None:
    """Second pass: running maxima, and the factors that bring old sums down to them."""
    m = e.load(state)
    new_m = e.greater(e.load(e.address(state, TOPS_OFFSET)), m)
    e.store(new_m, state)
    e.store(e.exp2(e.b.fsub(m, new_m)), e.address(state, RESCALE_OFFSET))


def _probabilities(num_parts: int, masked: bool) -> Callable[..., None]:
    """Third pass: probabilities p [rows, KV_TILE], new sums, rescaled outputs [rows, head_dim].

    Arguments as in the first pass. A row that sees no key is left as it is, its p are 0.
    """

    def emit(e: Emit, rows: Any, scores: Any, masks: Any, state: Any, out: Any, p: Any) -> None:
        b = e.b
        row_bytes = e.times(b.and_(rows, ir.Constant(I64, 0xFFFF)), 4)
        factor = e.splat(e.load(e.address(state, FACTOR_OFFSET), FLOAT))
        element_bytes = STEP_BYTES if e.tag == types.float32 else STEP_BYTES // 2
        with cgutils.for_range(b, b.lshr(rows, ir.Constant(I64, 32))) as loop:
            scaled = _scaled(e, scores, loop.index, factor, num_parts)
            word = e.times(loop.index, 4)
            m_row = e.splat(e.load(e.address(state, word), FLOAT))
            xs = [e.exp2(b.fsub(x, m_row)) for x in scaled]
            if masked:
                seen = _seen(e, masks, loop.index, num_parts)
                xs = [b.select(s, x, e.floats(0.0)) for s, x in zip(seen, xs, strict=True)]
            row_p = e.address(p, e.times(loop.index, PARTS * LANES * element_bytes))
            for j, x in enumerate(xs):
                e.store_rounded(x, e.address(row_p, j * LANES * element_bytes))
            if e.tag == AMX:
                for j in range(num_parts, PARTS):
                    e.store_rounded(e.floats(0.0), e.address(row_p, j * LANES * element_bytes))
            c = e.load(e.address(state, RESCALE_OFFSET, word), FLOAT)
            sums = e.address(state, SUMS_OFFSET, e.times(loop.index, VECTOR_BYTES))
            e.store(b.fadd(b.fmul(e.load(sums), e.splat(c)), reduce(b.fadd, xs)), sums)
            _rescale(e, c, e.address(out, b.mul(loop.index, row_bytes)), row_bytes)

    return emit


def _rescale(e: Emit, factor: Any, out: Any, row_bytes: Any) -> None:
    """Multiply the outputs of a row by a factor, which is one more often than not."""
    b = e.b
    changed = b.fcmp_unordered("une", factor, ir.Constant(FLOAT, 1.0))
    with b.if_then(changed):
        c = e.splat(factor)
        with cgutils.for_range(b, b.udiv(row_bytes, ir.Constant(I64, VECTOR_BYTES))) as column:
            place = e.address(out, e.times(column.index, VECTOR_BYTES))
            e.store(b.fmul(e.load(place), c), place)


def _scaled(e: Emit, scores: Any, row: Any, factor: Any, num_parts: int) -> list[Any]:
    """Scores of a row times the factor: num_parts vectors."""
    base = e.address(scores, e.times(row, PARTS * VECTOR_BYTES))
    vectors = (e.load(e.address(base, j * VECTOR_BYTES)) for j in range(num_parts))
    return [e.b.fmul(vector, factor) for vector in vectors]


def _seen(e: Emit, masks: Any, row: Any, num_parts: int) -> list[Any]:
    """Which scores of a row are visible: num_parts vectors."""
    b = e.b
    mask = e.load(e.address(masks, e.times(row, 8)), I64)
    words = (b.trunc(b.lshr(mask, ir.Constant(I64, LANES * j)), I16) for j in range(num_parts))
    return [b.bitcast(word, ir.VectorType(ir.IntType(1), LANES)) for word in words]


def _finish(e: Emit, sums: Any, out: Any, target: Any, head_dim: Any) -> None:
    """Divide one row by the sum of its probabilities and round it into target [head_dim].

    Leaves in sums[0] a number that is NaN where any element of the row is.
    """
    b = e.b
    row_sum = e.splat(e.fold(e.load(sums), b.fadd))
    nans = cgutils.alloca_once_value(b, e.floats(0.0))
    with cgutils.for_range(b, b.udiv(head_dim, ir.Constant(I64, LANES))) as loop:
        place = e.address(out, e.times(loop.index, VECTOR_BYTES))
        x = b.fadd(b.fdiv(e.load(place), row_sum), e.floats(0.0))
        b.store(b.select(b.fcmp_unordered("uno", x, x), x, b.load(nans)), nans)
        if e.tag == types.float32:
            e.store(x, e.address(target, e.times(loop.index, VECTOR_BYTES)))
        else:
            e.store(e.narrow(x), e.address(target, e.times(loop.index, VECTOR_BYTES // 2)))
    e.store(e.fold(b.load(nans), b.fadd), sums)


def _begin(e: Emit, palette: Any) -> None:
    """Give the matrix unit its shapes, if it is used."""
    if e.tag == AMX:
        amx.configure(e, palette)


def _end(e: Emit, _: Any) -> None:
    if e.tag == AMX:
        amx.release(e)


def _all_scores(e: Emit, q: Any, parts: Any, scores: Any, steps: Any, rows: Any) -> None:
    """Scores of all rows with a whole tile, in the matrix unit; nothing where it is not used.

    Arguments as for one group of rows. Reads q, and writes scores, up to a multiple of 16 rows.
    """
    if e.tag != AMX:
        return
    b = e.b
    keys, coming = (_addresses(e, parts, table) for table in (0, 2))
    row_bytes = e.times(steps, STEP_BYTES)
    whole = b.udiv(steps, ir.Constant(I64, LANES))
    has_half = b.icmp_signed("!=", e.times(whole, LANES), steps)
    with cgutils.for_range(b, _tiles_of(e, rows)) as loop:
        q_tile = e.address(q, b.mul(loop.index, e.times(row_bytes, amx.TILE_ROWS)))
        for j in range(PARTS):
            amx.zero(e, j)
        with cgutils.for_range(b, whole) as step:
            amx.load(e, _Q, e.address(q_tile, e.times(step.index, VECTOR_BYTES)), row_bytes)
            for j, part in enumerate(keys):
                amx.load(e, _KEYS, e.address(part, e.times(step.index, amx.TILE_BYTES)))
                amx.multiply(e, j, _Q, _KEYS)
        with b.if_then(has_half):
            amx.load(e, _HALF_ROWS, e.address(q_tile, e.times(whole, VECTOR_BYTES)), row_bytes)
            for j, part in enumerate(keys):
                amx.load(e, _HALF_STEPS, e.address(part, e.times(whole, amx.TILE_BYTES)))
                amx.multiply(e, j, _HALF_ROWS, _HALF_STEPS)
        target = e.address(scores, e.times(loop.index, amx.TILE_ROWS * PARTS * VECTOR_BYTES))
        for j in range(PARTS):
            amx.store(e, j, e.address(target, j * VECTOR_BYTES), PARTS * VECTOR_BYTES)
    for part in coming:
        amx.prefetch_lines(e, part, steps)


def _all_values(e: Emit, p: Any, parts: Any, out: Any, row_bytes: Any, rows: Any) -> None:
    """Add probabilities times values for all rows, in the matrix unit; nothing without it.

    Arguments as for one group of rows. Rows up to a multiple of 16 get zeros for probabilities and
    add them: harmless, or they come out NaN.
    """
    if e.tag != AMX:
        return
    b = e.b
    values, coming = (_addresses(e, parts, table) for table in (1, 3))
    tiles = _tiles_of(e, rows)
    p_bytes = PARTS * LANES * 2
    with cgutils.for_range(b, e.times(tiles, amx.TILE_ROWS), start=rows) as loop:
        for half in range(2):
            place = e.address(p, e.times(loop.index, p_bytes), half * VECTOR_BYTES)
            e.store(e.floats(0.0), place)
    vectors = b.udiv(row_bytes, ir.Constant(I64, VECTOR_BYTES))
    whole = b.udiv(vectors, ir.Constant(I64, 4))
    with cgutils.for_range(b, tiles) as loop:
        p_tile = e.address(p, e.times(loop.index, amx.TILE_ROWS * p_bytes))
        out_tile = e.address(out, b.mul(loop.index, e.times(row_bytes, amx.TILE_ROWS)))

        def add(first: Any, count: int, p_tile: Any = p_tile, out_tile: Any = out_tile) -> None:
            offsets = [
                e.address(e.times(first, VECTOR_BYTES), j * VECTOR_BYTES) for j in range(count)
            ]
            for j, offset in enumerate(offsets):
                amx.load(e, j, e.address(out_tile, offset), row_bytes)
            for i, part in enumerate(values):
                amx.load(e, _HALF_ROWS, e.address(p_tile, i * LANES * 2), p_bytes)
                for j, offset in enumerate(offsets):
                    amx.load(e, _HALF_STEPS, e.address(part, offset), row_bytes)
                    amx.multiply(e, j, _HALF_ROWS, _HALF_STEPS)
            for j, offset in enumerate(offsets):
                amx.store(e, j, e.address(out_tile, offset), row_bytes)

        with cgutils.for_range(b, whole) as columns:
            add(e.times(columns.index, 4), 4)
        with cgutils.for_range(b, vectors, start=e.times(whole, 4)) as columns:
            add(columns.index, 1)
    for part in coming:
        amx.prefetch_lines(e, part, b.udiv(row_bytes, ir.Constant(I64, 8)))


def _addresses(e: Emit, parts: Any, table: int) -> list[Any]:
    """Return line `table` of parts: the addresses of PARTS parts."""
    return [e.load(e.address(parts, 8 * (j + table * PARTS)), I64) for j in range(PARTS)]


def _tiles_of(e: Emit, rows: Any) -> Any:
    rounded = e.address(rows, amx.TILE_ROWS - 1)
    return e.b.udiv(rounded, ir.Constant(I64, amx.TILE_ROWS))


def _clear(e: Emit, p: Any) -> None:
    """Zero the probabilities of a group that the matrix unit will meet though it sees no key."""
    if e.tag == AMX:
        for i in range(MAX_ROWS * 2):
            e.store(e.floats(0.0), e.address(p, i * VECTOR_BYTES))


_Q, _HALF_ROWS, _KEYS, _HALF_STEPS = 4, 5, 6, 7
PALETTE = {
    _HALF_ROWS: (amx.TILE_ROWS, VECTOR_BYTES // 2),
    _HALF_STEPS: (amx.TILE_ROWS // 2, VECTOR_BYTES),
}
"""Shapes of the registers that are not 16 x 64: half a block of pairs, or all of one of values."""
begin = emitted(_begin)
end = emitted(_end)
all_scores = emitted(_all_scores)
all_values = emitted(_all_values)
clear = emitted(_clear)
scores_6x4 = emitted(_scores(6), dots=True)
scores_6x3 = emitted(_scores(6, 3), dots=True)
scores_6x2 = emitted(_scores(6, 2), dots=True)
scores_6x1 = emitted(_scores(6, 1), dots=True)
scores_3x4 = emitted(_scores(3), dots=True)
scores_1x4 = emitted(_scores(1), dots=True)
values_6x4 = emitted(_values(6, 4), dots=True)
values_3x4 = emitted(_values(3, 4), dots=True)
values_1x4 = emitted(_values(1, 4), dots=True)
values_6x1 = emitted(_values(6, 1), dots=True)
values_3x1 = emitted(_values(3, 1), dots=True)
values_1x1 = emitted(_values(1, 1), dots=True)
cap_scores = emitted(_cap)
tops_full = emitted(_tops(PARTS, masked=False))
tops_4 = emitted(_tops(4, masked=True))
tops_3 = emitted(_tops(3, masked=True))
tops_2 = emitted(_tops(2, masked=True))
tops_1 = emitted(_tops(1, masked=True))
new_maxima = emitted(_new_maxima)
probabilities_full = emitted(_probabilities(PARTS, masked=False))
probabilities_4 = emitted(_probabilities(4, masked=True))
probabilities_3 = emitted(_probabilities(3, masked=True))
probabilities_2 = emitted(_probabilities(2, masked=True))
probabilities_1 = emitted(_probabilities(1, masked=True))
finish_row = emitted(_finish)


@inlined
def add_scores(tag: Any, num_rows: int, num_parts: int, args: Any) -> None:
    """Scores of 1, 2 to 3 or more rows; num_parts: of the last kind only."""
    if num_rows > 3:
        if num_parts >= 4:
            scores_6x4(tag, args)
        elif num_parts == 3:
            scores_6x3(tag, args)
        elif num_parts == 2:
            scores_6x2(tag, args)
        else:
            scores_6x1(tag, args)
    elif num_rows > 1:
        scores_3x4(tag, args)
    else:
        scores_1x4(tag, args)


@inlined
def find_tops(tag: Any, num_parts: int, args: Any) -> None:
    """First pass of the softmax; num_parts may be FULL."""
    if num_parts == FULL:
        tops_full(tag, args)
    elif num_parts == 4:
        tops_4(tag, args)
    elif num_parts == 3:
        tops_3(tag, args)
    elif num_parts == 2:
        tops_2(tag, args)
    else:
        tops_1(tag, args)


@inlined
def find_probabilities(tag: Any, num_parts: int, args: Any) -> None:
    """Third pass of the softmax; num_parts may be FULL."""
    if num_parts == FULL:
        probabilities_full(tag, args)
    elif num_parts == 4:
        probabilities_4(tag, args)
    elif num_parts == 3:
        probabilities_3(tag, args)
    elif num_parts == 2:
        probabilities_2(tag, args)
    else:
        probabilities_1(tag, args)


@inlined
def add_values(tag: Any, num_rows: int, wide: bool, args: Any) -> None:
    """Values of 1, 2 to 3 or more rows, for 64 columns (wide) or 16."""
    if num_rows > 3:
        if wide:
            values_6x4(tag, args)
        else:
            values_6x1(tag, args)
    elif num_rows > 1:
        if wide:
            values_3x4(tag, args)
        else:
            values_3x1(tag, args)
    elif wide:
        values_1x4(tag, args)
    else:
        values_1x1(tag, args)
