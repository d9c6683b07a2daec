"""Candidates of a row of logits: one int64 each, the negated order key of its value above its id.

So integers ascend in the order of candidates. Helpers of sampling and log probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ...reference.activation import LOG2_E
from ...reference.sampling import WEIGHT_BITS
from .activation import exp2
from .launch import inlined, outlined
from .philox import GROUP
from .simd import INFINITY_KEY, cgutils, from_order_key, intrinsic, order_key, widen

VECTOR_BITS = 512
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_LOG2_E = np.float32(LOG2_E)
_SCALE = np.float32(2.0**WEIGHT_BITS)
ID_MASK = 0xFFFFFFFF
LOWEST_KEY = np.int32(-INFINITY_KEY)
HIGHEST_KEY = np.int32(INFINITY_KEY)


@inlined
def weight(distance: Any) -> Any:
    """Twin of reference.sampling.weights."""
    return np.int64(exp2(distance * _LOG2_E) * _SCALE)


@inlined
def candidate(x: Any, token: Any) -> Any:
    return (-np.int64(order_key(x)) << 32) | np.int64(token)


@inlined
def value_of(candidate: Any) -> Any:
    return from_order_key(np.int32(-(candidate >> 32)))


@intrinsic
def _scan_groups(_context: Any, logits: Any, count: Any, maxima: Any, element: Any) -> Any:
    """Fill maxima, int32[count], with the greatest order key of each group of logits.

    logits, maxima: addresses. element: any of the logits, for its type. Returns the greatest bits
    of all without their sign. A bfloat16 is ordered by its own 16 bits.
    """

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        b, (logits, count, maxima, _) = builder, args
        size = 16 if element == types.uint16 else 32
        kind = ir.VectorType(ir.IntType(size), VECTOR_BITS // size)
        sign_bits, all_but_sign = (
            ir.Constant(kind, [x] * kind.count) for x in (size - 1, 2 ** (size - 1) - 1)
        )

        def greater(x: Any, y: Any) -> Any:
            return b.select(b.icmp_signed(">", x, y), x, y)

        def reduced(x: Any) -> Any:
            name = f"llvm.vector.reduce.smax.v{kind.count}i{size}"
            function = ir.FunctionType(kind.element, [kind])
            found = b.call(cgutils.get_or_insert_function(b.module, function, name), [x])
            return b.shl(b.sext(found, _I32), ir.Constant(_I32, 32 - size))

        widest = cgutils.alloca_once_value(b, ir.Constant(kind, None))
        with cgutils.for_range(b, count) as loop:
            place = b.add(logits, b.mul(loop.index, ir.Constant(_I64, GROUP * size // 8)))
            high = None
            for part in range(GROUP // kind.count):
                part_place = b.add(place, ir.Constant(_I64, part * VECTOR_BITS // 8))
                word = b.load(b.inttoptr(part_place, kind.as_pointer()), align=2)
                sign, magnitude = b.ashr(word, sign_bits), b.and_(word, all_but_sign)
                b.store(greater(b.load(widest), magnitude), widest)
                key = b.sub(b.xor(magnitude, sign), sign)
                high = key if high is None else greater(high, key)
            target = b.add(maxima, b.mul(loop.index, ir.Constant(_I64, 4)))
            b.store(reduced(high), b.inttoptr(target, _I32.as_pointer()))
        return reduced(b.load(widest))

    return types.int32(types.intp, types.intp, types.intp, element), codegen


@outlined
def _has_finite(logits: Any) -> bool:
    found = False
    for i in range(len(logits)):
        found |= abs(order_key(widen(logits[i]))) < HIGHEST_KEY
    return found


@outlined
def scan(logits: Any, maxima: Any) -> Any:
    """Fill the greatest order key of each group; return (the greatest, whether the row is good)."""
    vocab, groups = len(logits), len(logits) // GROUP
    widest = _scan_groups(logits.ctypes.data, groups, maxima.ctypes.data, logits[0])
    if vocab % GROUP:
        maxima[groups] = LOWEST_KEY
        for i in range(groups * GROUP, vocab):
            key = order_key(widen(logits[i]))
            maxima[groups], widest = max(maxima[groups], key), max(widest, abs(key))
    greatest = LOWEST_KEY
    for group in range(len(maxima)):
        greatest = max(greatest, maxima[group])
    good = widest <= HIGHEST_KEY and greatest > LOWEST_KEY
    return greatest, good and (greatest < HIGHEST_KEY or _has_finite(logits))


@outlined
def first_of(logits: Any, maxima: Any, key: Any) -> int:
    """Return the first token whose order key is `key`, the greatest of all."""
    group = 0
    while maxima[group] != key:
        group += 1
    token = group * GROUP
    while order_key(widen(logits[token])) != key:
        token += 1
    return token


@outlined
def kth_greatest(keys: Any, k: int) -> Any:
    """Return the k-th greatest of keys, 1 <= k <= len(keys), by bisection of the values."""
    low, high = np.int64(LOWEST_KEY), np.int64(HIGHEST_KEY)
    while low < high:
        middle = (low + high + 1) >> 1
        bound = np.int32(middle)
        count = 0
        for i in range(len(keys)):
            count += 1 if keys[i] >= bound else 0
        if count >= k:
            low = middle
        else:
            high = middle - 1
    return np.int32(low)
