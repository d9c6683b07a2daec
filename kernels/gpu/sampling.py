"""Twin of reference.sampling. Nothing is sorted, and no row runs on one processor alone.

Log probabilities are in `logprobs`. To sample takes five launches, whatever the rows; what
`candidates` says of chunks and integers holds for all:

* scan: the greatest logit of each chunk, and what makes a row bad. Greedy rows are done.
* weigh, twice, rows with top_k or top_p only: counts and masses of what lies above WAYS thresholds,
  evenly spaced from the greatest value down; then again inside the interval that is in question.
  `narrow` says which candidates are kept for sure (those from `upper` on), and which surely are not
  (those below `floor`).
* draw: noise and scores of those kept for sure, and a list of the candidates between.
* finish: the last kept candidate, by a search of WAYS branches in the list, or in the row where the
  list is too short (ties, mostly); noise for the kept ones of the list; the token.

A line of int64 holds a row's parameters, the length of its list, and its counts and masses.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.ops import EditRows, SamplingRows
from ...reference.sampling import MIN_NORMAL
from .candidates import (
    ID_MASK,
    INFINITY_KEY,
    NONE,
    candidate,
    chunk_size,
    order_key,
    scan_chunk,
    summary,
    token_of,
    value_of,
    weights,
)
from .edits import edit_logits
from .launch import let_next_come, next_power_of_2, start, wait
from .logprobs import logprobs
from .math import log
from .philox import block_words, gumbel, token_words

__all__ = ["logprobs", "sample"]

WAYS = 16
"""Thresholds of one level, and branches of the search."""
LEVELS = 2
"""Launches of `_weigh`."""
TILE = 256
"""Candidates that a program compares with all thresholds at once."""
CAPACITY = 8192
"""Candidates in question that a row's list can hold."""

SUMS = tl.constexpr(8)
"""Where in a line the counts and masses start; before them parameters."""
LISTED = tl.constexpr(6)
"""Where in a line the length of the list is."""
LINE = 8 + LEVELS * 2 * WAYS
KINDS = tl.constexpr(4)
"""Numbers of a chunk: greatest candidate, least key, least absolute key, best drawn."""

NO_LIMIT = tl.constexpr(2**62)
NO_WEIGHT = tl.constexpr(30.0)
"""At this distance the weight is surely 0: exp(-30) < 2^-40."""
COUNT_BITS = tl.constexpr(51)
ONE = tl.constexpr(2**51)
"""A count of one beside the masses of up to 2,048 candidates, 2^40 each at most."""
_MIN_NORMAL = tl.constexpr(MIN_NORMAL)


def sample(logits: Tensor, rows: SamplingRows, edits: EditRows | None = None) -> Tensor:
    """See Ops.sample."""
    if edits is not None:
        logits = edit_logits(logits, edits)
    num_rows, vocab = logits.shape
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int32)
    for field, dtype in zip(rows, dtypes, strict=True):
        assert field.shape == (num_rows,) and field.dtype == dtype, (field.shape, field.dtype)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    chunk = chunk_size(num_rows, vocab)
    chunks, capacity, device = triton.cdiv(vocab, chunk), min(CAPACITY, vocab), logits.device
    lines = torch.empty((num_rows, LINE), dtype=torch.int64, device=device)
    partials = torch.empty((num_rows, KINDS.value, chunks), dtype=torch.int64, device=device)
    items = torch.empty((num_rows, capacity), dtype=torch.int64, device=device)
    out = torch.empty(num_rows, dtype=torch.int32, device=device)
    of_rows = (logits, logits.stride(0), vocab, lines, partials, chunks)
    sizes = {"CHUNKS": next_power_of_2(chunks), "LINE": LINE, "WAYS": WAYS}
    grid, strides = (num_rows, chunks), [field.stride(0) for field in rows]
    start(_scan, grid, *of_rows, *rows, *strides, CHUNK=chunk, LINE=LINE)
    for level in range(LEVELS):
        start(_weigh, grid, *of_rows, LEVEL=level, CHUNK=chunk, TILE=min(TILE, chunk), **sizes)
    levels = {"LEVELS": LEVELS, **sizes}
    warps = max(4, chunk // 512)
    start(_draw, grid, *of_rows, items, capacity, CHUNK=chunk, warps=warps, **levels)
    start(_finish, (num_rows,), *of_rows, items, capacity, out, TILE=TILE, warps=8, **levels)
    return out


@triton.jit
def _scan(
    logits_ptr, stride_logits, vocab, lines_ptr, partials_ptr, chunks,
    temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seeds_ptr, indices_ptr,
    stride_temperature, stride_top_k, stride_top_p, stride_min_p, stride_seeds, stride_indices,
    CHUNK: tl.constexpr, LINE: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Scan a chunk; the first program of a row also fills its line."""
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row_ptr = logits_ptr + row * stride_logits
    scan_chunk(row_ptr, vocab, partials_ptr + row * KINDS * chunks, chunks, chunk, CHUNK)
    if chunk == 0:
        line_ptr = lines_ptr + row * LINE
        temperature = tl.load(temperature_ptr + row * stride_temperature)
        top_k = tl.load(top_k_ptr + row * stride_top_k)
        top_p = tl.load(top_p_ptr + row * stride_top_p)
        min_p = tl.load(min_p_ptr + row * stride_min_p)
        limit = tl.where((top_k > 0) & (top_k < vocab), top_k.to(tl.int64), NO_LIMIT)
        tl.store(line_ptr, temperature.to(tl.int32, bitcast=True).to(tl.int64))
        tl.store(line_ptr + 1, limit)
        tl.store(line_ptr + 2, top_p.to(tl.int32, bitcast=True).to(tl.int64))
        tl.store(line_ptr + 3, min_p.to(tl.int32, bitcast=True).to(tl.int64))
        tl.store(line_ptr + 4, tl.load(seeds_ptr + row * stride_seeds))
        tl.store(line_ptr + 5, tl.load(indices_ptr + row * stride_indices).to(tl.int64))
        i = tl.arange(0, 128)
        tl.store(line_ptr + i, tl.zeros([128], tl.int64), (i >= LISTED) & (i < LINE))


@triton.jit
def _float(word_ptr):
    """Return a float32 parameter of a line."""
    return tl.load(word_ptr).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _filters(line_ptr):
    """Return (top_k, NO_LIMIT for none; top_p; whether either limits)."""
    top_k, top_p = tl.load(line_ptr + 1), _float(line_ptr + 2)
    return top_k, top_p, (top_k < NO_LIMIT) | (top_p < 1.0)


@triton.jit
def _open(line_ptr, partials_ptr, chunks, CHUNKS: tl.constexpr):
    """Return (the token of a row that is not drawn, whether it is drawn, its bounds).

    Bounds: the greatest x, the least one, and min_p's threshold.
    """
    best, least, is_good = summary(partials_ptr, chunks, CHUNKS)
    temperature, min_p = _float(line_ptr), _float(line_ptr + 3)
    top = tl.div_rn(value_of(best), temperature)
    is_drawn = is_good & (temperature != 0.0) & (tl.abs(order_key(top)) < INFINITY_KEY)
    threshold = top + log(tl.maximum(min_p, _MIN_NORMAL))
    floor = tl.where(min_p > 0.0, threshold, float("-inf"))
    token = tl.where(is_good, token_of(best), -1)
    return token, is_drawn, (top, tl.div_rn(least, temperature), floor)


@triton.jit
def _thresholds(bounds, upper, floor, WAYS: tl.constexpr):
    """Return WAYS values from upper down to floor, or to where weights end if that is higher."""
    top, least, _ = bounds
    high = tl.minimum(upper, top)
    low = tl.maximum(tl.maximum(floor, least), top - NO_WEIGHT)
    i = tl.arange(0, WAYS)
    values = high - (high - low) * (1.0 / WAYS) * (i + 1).to(tl.float32)
    return tl.where(i == WAYS - 1, low, tl.maximum(values, low))


@triton.jit
def _limit(total, top_p):
    """Return the mass before which candidates are kept."""
    limit = tl.ceil(total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)
    return tl.where(top_p < 1.0, limit, NO_LIMIT)


@triton.jit
def _pick(values, i, WAYS: tl.constexpr):
    """Return values[i], or 0 where there is none."""
    return tl.sum(tl.where(tl.arange(0, WAYS) == i, values, 0), 0)


@triton.jit
def _narrow(interval, filters, thresholds, counts, masses, WAYS: tl.constexpr):
    """Return the interval of candidates in question, by what lies from each of the thresholds on.

    interval: (upper, floor, count and mass from upper on, least and greatest mass that top_k may
    keep). What lies below floor is not kept, and counts in no sum that is yet to be made.
    """
    upper, floor, count_above, mass_above, least_mass, greatest_mass = interval
    top_k, top_p, _ = filters
    by_count = tl.sum((counts < top_k).to(tl.int32), 0)
    least_mass = tl.maximum(least_mass, _pick(masses, by_count - 1, WAYS))
    kept = tl.sum((masses < _limit(least_mass, top_p)).to(tl.int32), 0)
    kept = tl.minimum(kept, by_count)
    last = tl.sum((masses < _limit(greatest_mass, top_p)).to(tl.int32), 0)
    # While the kept mass is not known, all that top_k may keep is in question.
    last = tl.where(least_mass == greatest_mass, tl.minimum(last, by_count), by_count)
    upper = tl.where(kept > 0, _pick(thresholds, kept - 1, WAYS), upper)
    count_above = tl.where(kept > 0, _pick(counts, kept - 1, WAYS), count_above)
    mass_above = tl.where(kept > 0, _pick(masses, kept - 1, WAYS), mass_above)
    floor = tl.where(last < WAYS, _pick(thresholds, last, WAYS), floor)
    return upper, floor, count_above, mass_above, least_mass, greatest_mass


@triton.jit
def _interval(line_ptr, bounds, LEVELS: tl.constexpr, WAYS: tl.constexpr):
    """Return the interval of `_narrow` after a number of levels."""
    zero = tl.zeros([], tl.int64)
    interval = (tl.full([], float("inf"), tl.float32), bounds[2], zero, zero, zero, zero)
    for level in tl.static_range(LEVELS):
        sums_ptr = line_ptr + SUMS + level * 2 * WAYS + tl.arange(0, WAYS)
        upper, floor, count, mass, least_mass, greatest_mass = interval
        masses = mass + tl.load(sums_ptr + WAYS)
        if level == 0:
            greatest_mass = tl.max(masses, 0)
        interval = _narrow(
            (upper, floor, count, mass, least_mass, greatest_mass),
            _filters(line_ptr),
            _thresholds(bounds, upper, floor, WAYS),
            count + tl.load(sums_ptr),
            masses,
            WAYS,
        )
    return interval


@triton.jit
def _values(row_ptr, tokens, vocab, temperature):
    """Return x of tokens, -inf past the vocabulary."""
    logits = tl.load(row_ptr + tokens, tokens < vocab, other=float("-inf")).to(tl.float32)
    return tl.div_rn(logits, temperature)


@triton.jit
def _settled(values):
    """Return values [n], in a way that Triton 3.6 does not compute anew for each of WAYS."""
    return tl.max(tl.join(values, values), 1)


@triton.jit
def _weigh(
    logits_ptr, stride_logits, vocab, lines_ptr, partials_ptr, chunks,
    LEVEL: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, TILE: tl.constexpr,
    LINE: tl.constexpr, WAYS: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Add up counts and masses of a chunk's candidates in the interval, from each threshold on."""
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line_ptr, partials_ptr = lines_ptr + row * LINE, partials_ptr + row * KINDS * chunks
    temperature, filters = _float(line_ptr), _filters(line_ptr)
    if temperature == 0.0 or not filters[2]:
        return
    _, is_drawn, bounds = _open(line_ptr, partials_ptr, chunks, CHUNKS)
    interval = _interval(line_ptr, bounds, LEVEL, WAYS)
    upper = interval[0]
    thresholds = _thresholds(bounds, upper, interval[1], WAYS)
    low = tl.min(thresholds, 0)
    greatest = tl.div_rn(value_of(tl.load(partials_ptr + chunk)), temperature)
    if not is_drawn or greatest < low:
        return
    row_ptr = logits_ptr + row * stride_logits
    sums = tl.zeros([TILE, WAYS], tl.int64)
    for begin in range(chunk * CHUNK, (chunk + 1) * CHUNK, TILE):
        tokens = begin + tl.arange(0, TILE)
        x = _values(row_ptr, tokens, vocab, temperature)
        inside = (x >= low) & (x < upper) & (tokens < vocab)
        mass = _settled(tl.where(inside, weights(x - bounds[0]) + ONE, 0))
        sums += tl.where(x[:, None] >= thresholds[None, :], mass[:, None], 0)
    sums_ptr = line_ptr + SUMS + LEVEL * 2 * WAYS + tl.arange(0, WAYS)
    tl.atomic_add(sums_ptr, tl.sum(sums >> COUNT_BITS, 0), sem="relaxed")
    tl.atomic_add(sums_ptr + WAYS, tl.sum(sums & (ONE - 1), 0), sem="relaxed")


@triton.jit
def _score(x, tokens, words, kept):
    """Return candidates by x plus noise, NONE where not kept."""
    return tl.where(kept, candidate(x + gumbel(words), tokens), NONE)


@triton.jit
def _draw(
    logits_ptr, stride_logits, vocab, lines_ptr, partials_ptr, chunks, items_ptr, capacity,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, LINE: tl.constexpr, WAYS: tl.constexpr,
    LEVELS: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Draw among a chunk's tokens that are kept for sure; list those in question."""
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line_ptr, partials_ptr = lines_ptr + row * LINE, partials_ptr + row * KINDS * chunks
    temperature, filters = _float(line_ptr), _filters(line_ptr)
    if temperature == 0.0:
        return
    _, is_drawn, bounds = _open(line_ptr, partials_ptr, chunks, CHUNKS)
    if not is_drawn:
        return
    upper, floor = bounds[2], bounds[2]
    if filters[2]:
        interval = _interval(line_ptr, bounds, LEVELS, WAYS)
        upper, floor = interval[0], interval[1]
    row_ptr = logits_ptr + row * stride_logits
    greatest = tl.div_rn(value_of(tl.load(partials_ptr + chunk)), temperature)
    best = tl.full([], NONE, tl.int64)
    if greatest >= upper:
        seed, index = tl.load(line_ptr + 4), tl.load(line_ptr + 5)
        counters = chunk * (CHUNK // 4) + tl.arange(0, CHUNK // 4)
        words = block_words(seed, index, counters)
        drawn = tl.full([CHUNK // 4], NONE, tl.int64)
        for i in tl.static_range(4):
            tokens = 4 * counters + i
            x = _values(row_ptr, tokens, vocab, temperature)
            kept = (x >= upper) & (tokens < vocab)
            drawn = tl.maximum(drawn, _score(x, tokens, words[i], kept))
        best = tl.max(drawn, 0)
    tl.store(partials_ptr + 3 * chunks + chunk, best)
    if filters[2] and greatest >= floor:
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        x = _values(row_ptr, tokens, vocab, temperature)
        listed = (x >= floor) & (x < upper) & (tokens < vocab)
        places = tl.cumsum(listed.to(tl.int32), 0)
        places += (tl.atomic_add(line_ptr + LISTED, tl.max(places, 0).to(tl.int64)) - 1).to(
            tl.int32
        )
        item_ptr = items_ptr + row * capacity + places
        tl.store(item_ptr, candidate(x, tokens), listed & (places < capacity))


@triton.jit
def _items(source, begin, TILE: tl.constexpr):
    """Return candidates in question, NONE past the end: of the list, or of the row."""
    list_ptr, is_listed, size, row_ptr, temperature, floor, upper = source
    i = begin + tl.arange(0, TILE)
    if is_listed:
        items = tl.load(list_ptr + i, i < size, other=NONE)
    else:
        x = _values(row_ptr, i, size, temperature)
        inside = (x >= floor) & (x < upper) & (i < size)
        items = tl.where(inside, candidate(x, i), NONE)
    return items


@triton.jit
def _survey(source, top, bound, TILE: tl.constexpr):
    """Return (least, greatest, count, mass) of the candidates in question from bound on."""
    least = tl.full([TILE], ID_MASK, tl.int64) << 32
    greatest = tl.full([TILE], NONE, tl.int64)
    counts, masses = tl.zeros([TILE], tl.int32), tl.zeros([TILE], tl.int64)
    for begin in range(0, source[2], TILE):
        items = _items(source, begin, TILE)
        inside = items >= bound
        least = tl.minimum(least, tl.where(inside, items, least))
        greatest = tl.maximum(greatest, tl.where(inside, items, NONE))
        counts += inside.to(tl.int32)
        masses += tl.where(inside, weights(value_of(items) - top), 0)
    return tl.min(least, 0), tl.max(greatest, 0), tl.sum(counts, 0), tl.sum(masses, 0)


@triton.jit
def _search(
    source, top, surveyed, needed, BY_MASS: tl.constexpr, TILE: tl.constexpr, WAYS: tl.constexpr
):
    """Return a bound from which on lie all candidates up to that with which a sum reaches needed.

    The sum, in order, is of weights or of ones. Cuts the range of candidates, below 2^63, in WAYS
    until one is left in it: 16 rounds at most.
    """
    low, high, count, _ = surveyed
    within = count
    ways = tl.arange(0, WAYS)
    while (within > 1) & (low < high):
        step = (high - low) // WAYS + 1
        pivots = low + step * (1 + ways).to(tl.int64)
        counts = tl.zeros([TILE, WAYS], tl.int32)
        masses = tl.zeros([TILE, WAYS], tl.int64)
        for begin in range(0, source[2], TILE):
            items = _items(source, begin, TILE)
            hits = items[:, None] >= pivots[None, :]
            counts += hits.to(tl.int32)
            if BY_MASS:
                masses += tl.where(hits, _settled(weights(value_of(items) - top))[:, None], 0)
        counted = tl.sum(counts, 0)
        sums = tl.sum(masses, 0) if BY_MASS else counted.to(tl.int64)
        reached = tl.sum((sums >= needed).to(tl.int32), 0)
        count = tl.where(reached > 0, _pick(counted, reached - 1, WAYS), count)
        within = count - _pick(counted, reached, WAYS)
        low += step * reached
        high = tl.minimum(high, low + step - 1)
    return low


@triton.jit
def _draw_listed(source, line_ptr, top, interval, TILE: tl.constexpr, WAYS: tl.constexpr):
    """Return the best of the candidates in question that are kept, NONE if none is."""
    _, _, count_above, mass_above, least_mass, greatest_mass = interval
    top_k, top_p, _ = _filters(line_ptr)
    surveyed = _survey(source, top, NONE + 1, TILE)
    last = surveyed[0]
    if top_k - count_above < surveyed[2]:
        last = _search(source, top, surveyed, top_k - count_above, False, TILE, WAYS)
    if top_p < 1.0:
        kept = _survey(source, top, last, TILE)
        total = tl.where(least_mass == greatest_mass, least_mass, mass_above + kept[3])
        needed = _limit(total, top_p) - mass_above
        last = _search(source, top, kept, needed, True, TILE, WAYS)
    best = tl.full([TILE], NONE, tl.int64)
    seed, index = tl.load(line_ptr + 4), tl.load(line_ptr + 5)
    for begin in range(0, source[2], TILE):
        items = _items(source, begin, TILE)
        tokens = token_of(items)
        scores = _score(value_of(items), tokens, token_words(seed, index, tokens), items >= last)
        best = tl.maximum(best, scores)
    return tl.max(best, 0)


@triton.jit
def _finish(
    logits_ptr, stride_logits, vocab, lines_ptr, partials_ptr, chunks, items_ptr, capacity, out_ptr,
    CHUNKS: tl.constexpr, TILE: tl.constexpr, LINE: tl.constexpr, WAYS: tl.constexpr,
    LEVELS: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Write the token of a row."""
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row = tl.program_id(0).to(tl.int64)
    line_ptr, partials_ptr = lines_ptr + row * LINE, partials_ptr + row * KINDS * chunks
    token, is_drawn, bounds = _open(line_ptr, partials_ptr, chunks, CHUNKS)
    if is_drawn:
        i = tl.arange(0, CHUNKS)
        best = tl.max(tl.load(partials_ptr + 3 * chunks + i, i < chunks, other=NONE), 0)
        _, _, is_filtered = _filters(line_ptr)
        if is_filtered:
            interval = _interval(line_ptr, bounds, LEVELS, WAYS)
            length = tl.load(line_ptr + LISTED).to(tl.int32)
            is_listed = length <= capacity
            size = tl.where(is_listed, length, vocab)
            row_ptr = logits_ptr + row * stride_logits
            list_ptr, temperature = items_ptr + row * capacity, _float(line_ptr)
            source = (list_ptr, is_listed, size, row_ptr, temperature, interval[1], interval[0])
            found = _draw_listed(source, line_ptr, bounds[0], interval, TILE, WAYS)
            best = tl.maximum(best, found)
        token = token_of(best)
    tl.store(out_ptr + row, token)
