"""Twin of reference.sampling. Nothing is sorted: the last kept candidate of a row is found instead.

A row goes through these passes, all of which vectorize: scan (greatest logit, maxima of groups of
64 tokens, NaN); divide by T; a histogram of counts and masses over the distance from the greatest
value, in bins of 1/32; the last kept candidate, by bisection inside one bin; noise for the groups
that hold a kept token. A floor found from the maxima of groups spares most groups all passes but
the first two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...reference.activation import LOG2_E
from ...reference.ops import EditRows, SamplingRows
from ...reference.sampling import MIN_NORMAL
from .activation import exp2, log
from .candidates import (
    HIGHEST_KEY,
    ID_MASK,
    LOWEST_KEY,
    candidate,
    first_of,
    kth_greatest,
    scan,
    value_of,
    weight,
)
from .edits import addresses, edit_row, entry_of
from .launch import compiled, inlined, outlined, run_ranges
from .masses import weigh
from .philox import GROUP, group_words, gumbel
from .simd import (
    between,
    bfloat16s,
    float32s,
    from_order_key,
    int32s,
    int64s,
    lowest_bit,
    order_key,
    widen,
)

_BINS = 1024
_BINS_PER_NAT = np.float32(32.0)
_LAST_BIN = np.float32(_BINS - 1)
_NO_WEIGHT = np.float32(30.0)
"""At this distance the weight is surely 0: exp(-30) < 2^-40."""
_SLACK, _RELATIVE_SLACK = np.float32(0.01), np.float32(2.0**-21)
"""Of a noise that is compared by its word, far more than its rounding and that of a sum."""
_WORD_BITS, _MOST_BITS = np.float32(32.0), np.float32(126.0)
_WORDS, _LAST_WORD = np.float32(2.0**32), np.uint32(2**32 - 1)
_BIT, _ALL = np.uint64(1), np.uint64(2**64 - 1)
_LOG2_E = np.float32(LOG2_E)
_MIN_NORMAL = np.float32(MIN_NORMAL)
_INFINITY = np.float32(np.inf)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_UNDECIDED = -2


@outlined
def _divide_maxima(maxima: Any, temperature: Any) -> None:
    """Make the maxima of logits / temperature of those of the logits: division keeps the order."""
    for group in range(len(maxima)):
        maxima[group] = order_key(from_order_key(maxima[group]) / temperature)


@outlined
def _divide(logits: Any, temperature: Any, x: Any, maxima: Any, floor: Any) -> None:
    """Fill the groups of x = logits / temperature that reach floor; -inf behind the last token."""
    vocab = len(logits)
    floor_key = order_key(floor)
    for group in range(vocab // GROUP):
        if maxima[group] >= floor_key:
            for i in range(group * GROUP, (group + 1) * GROUP):
                x[i] = widen(logits[i]) / temperature
    for i in range(vocab - vocab % GROUP, vocab):
        x[i] = widen(logits[i]) / temperature
    for i in range(vocab, len(x)):
        x[i] = -_INFINITY


@inlined
def _bin(x: Any, top: Any) -> Any:
    """Return the bin of a value's distance from the top."""
    place = (top - x) * _BINS_PER_NAT
    return np.int32(place if place < _LAST_BIN else _LAST_BIN)


@outlined
def _fill_bins(x: Any, maxima: Any, bounds: Any, bins: Any, counts: bool) -> None:
    """Sum masses, count candidates if asked: bins int64[2, _BINS]. bounds: (floor, top)."""
    floor, top = bounds
    for place in range(_BINS):
        bins[0, place] = bins[1, place] = 0
    masses = np.empty(GROUP, np.int64)
    places = np.empty(GROUP, np.int32)
    floor_key = order_key(floor)
    for group in range(len(maxima)):
        if maxima[group] < floor_key:
            continue
        start = group * GROUP
        hits = between(x.ctypes.data + 4 * start, floor, top)
        weigh(x.ctypes.data + 4 * start, top, masses.ctypes.data)
        if hits == _ALL and not counts:
            for i in range(GROUP):
                places[i] = _bin(x[start + i], top)
            for i in range(GROUP):
                bins[1, places[i]] += masses[i]
            continue
        while hits:
            i = lowest_bit(hits)
            hits &= hits - _BIT
            place = _bin(x[start + i], top)
            bins[0, place] += 1
            bins[1, place] += masses[i]


@outlined
def _find_bin(sums: Any, limit: Any) -> Any:
    """Return (bin in which the running sum reaches limit, or _BINS; the sum before it)."""
    before = np.int64(0)
    for place in range(_BINS):
        if before + sums[place] >= limit:
            return place, before
        before += sums[place]
    return _BINS, before


@outlined
def _ends_of_bin(place: int, bounds: Any) -> Any:
    """Return (least, greatest) value in a bin: bins ascend as values fall."""
    floor, top = bounds
    low, high = np.int64(order_key(floor)), np.int64(order_key(top))
    while low < high:
        middle = (low + high) >> 1
        if _bin(from_order_key(np.int32(middle)), top) <= place:
            high = middle
        else:
            low = middle + 1
    least, high = low, np.int64(order_key(top))
    while low < high:
        middle = (low + high + 1) >> 1
        if _bin(from_order_key(np.int32(middle)), top) >= place:
            low = middle
        else:
            high = middle - 1
    return from_order_key(np.int32(least)), from_order_key(np.int32(low))


@outlined
def _gather(x: Any, maxima: Any, bounds: Any, which: tuple[int, int], items: Any) -> int:
    """Collect in items the candidates of `which`: a bin, up to a last one. Return how many."""
    place, last = which
    count = 0
    least, greatest = _ends_of_bin(place, bounds)
    least_key = order_key(least)
    for group in range(len(maxima)):
        if maxima[group] < least_key:
            continue
        hits = between(x.ctypes.data + 4 * group * GROUP, least, greatest)
        while hits:
            token = group * GROUP + lowest_bit(hits)
            hits &= hits - _BIT
            item = candidate(x[token], token)
            if item <= last:
                items[count] = item
                count += 1
    return count


@outlined
def _mass(items: Any, bound: Any, top: Any) -> Any:
    """Sum the weights of items up to bound."""
    mass = np.int64(0)
    for i in range(len(items)):
        mass += weight(value_of(items[i]) - top) if items[i] <= bound else 0
    return mass


@outlined
def _select(items: Any, limit: Any, top: Any, by_mass: bool) -> Any:
    """Return the first item, in order, at which a running sum reaches limit.

    The sum is of weights, or of ones; that of all items must reach limit. Bisects the range of
    values that are left and drops what is outside: at most 64 passes, for any input. Destroys
    items.
    """
    count = len(items)
    while True:
        here = items[:count]
        low, high = here[0], here[0]
        for i in range(count):
            low, high = min(low, here[i]), max(high, here[i])
        if low == high:
            return low
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        if by_mass:
            reached = _mass(here, middle, top)
        else:
            reached = np.int64(0)
            for i in range(count):
                reached += 1 if items[i] <= middle else 0
        lower = reached >= limit
        if not lower:
            limit -= reached
        kept = 0
        for i in range(count):
            item = items[i]
            items[kept] = item
            kept += 1 if (item <= middle) == lower else 0
        count = kept


@outlined
def _floor(maxima: Any, vocab: int, top: Any, filters: Any) -> Any:
    """Return a value below which no candidate can be kept: exactly min_p's, or a higher one.

    The k-th greatest maximum of groups is at most the k-th greatest value. What has no weight is
    never kept by top_p.
    """
    min_p, top_k, top_p = filters
    floor = -_INFINITY
    if min_p > _ZERO:
        floor = top + log(max(min_p, _MIN_NORMAL))
    if 0 < top_k <= len(maxima) and top_k < vocab:
        floor = max(floor, from_order_key(kth_greatest(maxima, top_k)))
    if top_p < _ONE:
        floor = max(floor, top - _NO_WEIGHT)
    return floor


@outlined
def _last_kept(x: Any, maxima: Any, bounds: Any, filters: Any) -> Any:
    """Return the last candidate that min_p, top_k and top_p keep. filters: these three."""
    _, top_k, top_p = filters
    top = bounds[1]
    last = candidate(bounds[0], ID_MASK)
    bins = np.empty((2, _BINS), np.int64)
    items = np.empty(len(x), np.int64)
    _fill_bins(x, maxima, bounds, bins, top_k > 0)
    if top_k > 0:
        place, before = _find_bin(bins[0], top_k)
        if place < _BINS:
            count = _gather(x, maxima, bounds, (place, last), items)
            last = _select(items[:count], top_k - before, top, False)
            count = _gather(x, maxima, bounds, (place, last), items)
            bins[1, place] = _mass(items[:count], last, top)
            for later in range(place + 1, _BINS):
                bins[1, later] = 0
    if top_p < _ONE:
        total = np.int64(0)
        for place in range(_BINS):
            total += bins[1, place]
        limit = np.int64(np.ceil(np.float64(total) * np.float64(top_p)))
        place, before = _find_bin(bins[1], limit)
        count = _gather(x, maxima, bounds, (place, last), items)
        last = _select(items[:count], limit - before, top, True)
    return last


@inlined
def _chance(top: Any, best: Any) -> Any:
    """Return 2^32 * exp(top - best), and more than any rounding here could hide.

    Times exp(value - top) it is a word above which value + noise is surely less than best, which
    may be -inf: the noise -log(-log(1 - u)) reaches g where u <= 1 - exp(-exp(-g)) <= exp(-g), and
    u = (word + 1/2) / 2^32.
    """
    over = ((top - best) + (_SLACK + abs(best) * _RELATIVE_SLACK)) * _LOG2_E + _WORD_BITS
    return exp2(over if over < _MOST_BITS else _MOST_BITS)


@outlined
def _draw(logits: Any, row: Any, maxima: Any, last: int, top: Any) -> int:
    """Return the kept token with the greatest value plus noise, ties to the lowest id."""
    temperature, _, index, seed = row
    words, shares = np.empty(GROUP, np.uint32), np.empty(len(maxima), np.float32)
    for group in range(len(maxima)):
        shares[group] = exp2((from_order_key(maxima[group]) - top) * _LOG2_E)
    last_key = np.int32(-(last >> 32))
    last_id: Any = np.int64(last & ID_MASK)
    best, token = LOWEST_KEY, -1
    chance = _chance(top, -_INFINITY)
    for group in range(len(maxima)):
        greatest = shares[group] * chance
        if maxima[group] < last_key or greatest < _HALF:
            continue
        most = np.uint32(greatest) if greatest < _WORDS else _LAST_WORD
        hits = group_words(words, group, index, seed, most)
        while hits:
            place = lowest_bit(hits)
            hits &= hits - _BIT
            other = group * GROUP + place
            if other >= len(logits):
                break
            value = widen(logits[other]) / temperature
            key = order_key(value)
            if key > last_key or (key == last_key and other <= last_id):
                score = order_key(value + gumbel(words[place]))
                if score > best:
                    best, token = score, other
                    chance = _chance(top, from_order_key(best))
    return token


@outlined
def _open_row(logits: Any, temperature: Any, filters: Any, maxima: Any) -> Any:
    """Decide the row if it is bad or greedy, else fill the maxima of x = logits / temperature.

    Returns (token, (floor, greatest x)); token is _UNDECIDED where candidates and noise must tell.
    """
    key, good = scan(logits, maxima)
    top = from_order_key(key) / temperature
    if not good:
        return -1, (top, top)
    if temperature == _ZERO or abs(order_key(top)) >= HIGHEST_KEY:
        return first_of(logits, maxima, key), (top, top)
    _divide_maxima(maxima, temperature)
    return _UNDECIDED, (_floor(maxima, len(logits), top, filters), top)


@outlined
def _sample_row(logits: Any, row: Any, maxima: Any, x: Any) -> Any:
    """Draw from one row. row: (temperature, (min_p, top_k, top_p), index, seed)."""
    temperature, filters, _, _ = row
    _, top_k, top_p = filters
    token, bounds = _open_row(logits, temperature, filters, maxima)
    if token == _UNDECIDED:
        last = candidate(bounds[0], ID_MASK)
        if 0 < top_k < len(logits) or top_p < _ONE:
            _divide(logits, temperature, x, maxima, bounds[0])
            last = _last_kept(x, maxima, bounds, filters)
        token = _draw(logits, row, maxima, last, bounds[1])
    return token


@compiled("void(UniTuple(int64, 12), UniTuple(int64, 22), int64, int64)")
def _sample(args: tuple[int, ...], edits: tuple[int, ...], start: int, end: int) -> None:
    logits, stride, is_half, vocab, rows = args[:5]
    groups = (vocab + GROUP - 1) // GROUP
    maxima, x = np.empty(groups, np.int32), np.empty(groups * GROUP, np.float32)
    edited = np.empty(vocab if edits[0] else 0, np.float32)
    counts = np.zeros(len(edited), np.int32)
    temperature, top_k = float32s(args[5], rows), int32s(args[6], rows)
    top_p, min_p = float32s(args[7], rows), float32s(args[8], rows)
    seeds, indices, out = int64s(args[9], rows), int32s(args[10], rows), int32s(args[11], rows)
    for r in range(start, end):
        row = (temperature[r], (min_p[r], top_k[r], top_p[r]), indices[r], seeds[r])
        entry = entry_of(edits, r)
        if is_half:
            halves = bfloat16s(logits + r * stride * 2, vocab)
            if entry >= 0:
                edit_row(edits, entry, halves, edited, counts)
            else:
                out[r] = _sample_row(halves, row, maxima, x)
        else:
            floats = float32s(logits + r * stride * 4, vocab)
            if entry >= 0:
                edit_row(edits, entry, floats, edited, counts)
            else:
                out[r] = _sample_row(floats, row, maxima, x)
        if entry >= 0:
            out[r] = _sample_row(edited, row, maxima, x)


def sample(logits: Tensor, rows: SamplingRows, edits: EditRows | None = None) -> Tensor:
    """Twin of reference.sampling.sample."""
    num_rows, vocab = logits.shape
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int32)
    for field, dtype in zip(rows, dtypes, strict=True):
        assert field.shape == (num_rows,) and field.dtype == dtype, (field.shape, field.dtype)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    fields = [field.contiguous() for field in rows]
    out = torch.empty(num_rows, dtype=torch.int32)
    is_half = int(logits.dtype == torch.bfloat16)
    places = [field.data_ptr() for field in (*fields, out)]
    args = (logits.data_ptr(), logits.stride(0), is_half, vocab, num_rows, *places)
    of_edits = addresses(edits)

    def call(start: int, end: int) -> None:
        _sample(args, of_edits, start, end)

    run_ranges(call, num_rows, num_rows * vocab)
    return out
