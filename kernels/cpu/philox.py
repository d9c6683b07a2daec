"""Twin of reference.philox, for groups of 64 tokens: 16 counters of four words each.

Written in vectors: left to itself, LLVM multiplies 64 bits by 64 where 32 by 32 would do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ...reference.philox import KEY_STEPS, MULTIPLIERS, ROUNDS, WORD
from .activation import log, log_of_parts, split_exponent, split_mantissa
from .launch import inlined
from .simd import intrinsic

GROUP = 64
"""Tokens whose noise is drawn together."""
_COUNTERS = 8
"""Of a vector."""
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_LANES = ir.VectorType(_I64, _COUNTERS)
_WORDS = ir.VectorType(_I32, 2 * _COUNTERS)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
_UNIT = np.float32(2.0**-32)


@intrinsic
def _store_words(
    _context: Any, address: Any, counter: Any, index: Any, seed: Any, most: Any
) -> Any:
    """Store the words of 16 counters; return a bit for each that is at most `most`."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address, counter, index, seed, most = args
        bits = ir.Constant(_I64, 0)
        for part in range(2):
            first = builder.add(counter, ir.Constant(_I64, _COUNTERS * part))
            for place, words in enumerate(_blocks(builder, first, index, seed)):
                number = 2 * part + place
                target = builder.add(address, ir.Constant(_I64, 64 * number))
                builder.store(words, builder.inttoptr(target, words.type.as_pointer()), align=4)
                under = builder.icmp_unsigned("<=", words, _splat(builder, most, words.type))
                under = builder.zext(builder.bitcast(under, ir.IntType(16)), _I64)
                bits = builder.or_(bits, builder.shl(under, ir.Constant(_I64, 16 * number)))
        return bits

    return types.uint64(types.intp, types.int64, types.int64, types.int64, types.uint32), codegen


def _splat(builder: Any, x: Any, kind: Any) -> Any:
    """Return a number in all lanes of a type of vector."""
    v = builder.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(_I32, 0))
    return builder.shuffle_vector(v, v, ir.Constant(ir.VectorType(_I32, kind.count), None))


def _blocks(builder: Any, first: Any, index: Any, seed: Any) -> list[Any]:
    """Emit Philox of _COUNTERS counters; return their words in order, in vectors of 16.

    What a word, and a key, has above its 32 bits is anything: then LLVM keeps the mask in front of
    each product, sees by it that 32 bits are multiplied, and takes the instruction for that.
    """
    b = builder
    ones = ir.Constant(_LANES, [WORD] * _COUNTERS)
    shift = ir.Constant(_LANES, [32] * _COUNTERS)

    def times(x: Any, factor: int) -> Any:
        return b.mul(b.and_(x, ones), ir.Constant(_LANES, [factor] * _COUNTERS))

    def high(x: Any) -> Any:
        """The high words of products: shuffled, which spares the port that multiplies."""
        v = b.bitcast(x, _WORDS)
        odd = ir.Constant(_WORDS, [i | 1 for i in range(_WORDS.count)])
        return b.bitcast(b.shuffle_vector(v, v, odd), _LANES)

    order = ir.Constant(_LANES, list(range(_COUNTERS)))
    x = [b.add(_splat(b, first, _LANES), order), _splat(b, index, _LANES)]
    x += [ir.Constant(_LANES, None)] * 2
    keys = [seed, b.ashr(seed, ir.Constant(_I64, 32))]
    for _ in range(ROUNDS):
        low, up = times(x[0], MULTIPLIERS[0]), times(x[2], MULTIPLIERS[1])
        crossed = (b.xor(high(up), x[1]), b.xor(high(low), x[3]))
        a, c = (b.xor(v, _splat(b, k, _LANES)) for v, k in zip(crossed, keys, strict=True))
        x = [a, up, c, low]
        keys = [b.add(k, ir.Constant(_I64, step)) for k, step in zip(keys, KEY_STEPS, strict=True)]
    pairs = [b.or_(b.and_(x[i], ones), b.shl(x[i + 1], shift)) for i in (0, 2)]
    half = _COUNTERS // 2
    orders = [
        [lane for i in range(start, start + half) for lane in (i, _COUNTERS + i)]
        for start in (0, half)
    ]
    words = [
        b.shuffle_vector(*pairs, ir.Constant(ir.VectorType(_I32, _COUNTERS), one)) for one in orders
    ]
    return [b.bitcast(v, _WORDS) for v in words]


@inlined
def group_words(words: Any, group: int, index: int, seed: int, most: Any) -> Any:
    """Fill words, uint32[64], with those of tokens 64 * group .. 64 * group + 63.

    Returns uint64: bit i tells whether word i is at most `most`, a uint32.
    """
    return _store_words(words.ctypes.data, group * (GROUP // 4), index, seed, most)


@inlined
def gumbel(word: Any) -> Any:
    """Twin of reference.philox.gumbel, for one uint32. The greater the word, the less."""
    low = np.int32(word) >= np.int32(0)
    t = (np.float32(np.int32(word) if low else np.int32(~word)) + _HALF) * _UNIT
    y = _ONE - t if low else t
    k = split_exponent(y)
    r = -t if low and k == np.float32(0.0) else split_mantissa(y) - _ONE
    return -log(-log_of_parts(k, r))
