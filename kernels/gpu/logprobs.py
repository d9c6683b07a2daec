"""Log probabilities of raw logits. Twin of reference.sampling.logprobs.

Three launches: the scan of `candidates`; for each chunk its mass, its tokens above the one asked
for and its k greatest, where it may have any of the row's; then the place of each of these in the
row's order, which is where it is written. The last compares all with all: k is meant to be small.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.ops import Logprobs
from ...reference.sampling import WEIGHT_BITS
from .candidates import (
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
from .launch import let_next_come, next_power_of_2, start, wait
from .math import log

OWN = 32
"""Candidates that a program places at once,"""
OTHERS = 128
"""and how many it compares them with at once."""
KINDS = tl.constexpr(3)
"""Numbers of a chunk: see `candidates.scan_chunk`."""
_UNIT = tl.constexpr(2.0**-WEIGHT_BITS)


def logprobs(logits: Tensor, tokens: Tensor, k: int, asked: Tensor | None = None) -> Logprobs:
    """See Ops.logprobs."""
    if asked is not None:
        few = logprobs(logits.index_select(0, asked), tokens.index_select(0, asked), k)
        return Logprobs(
            *(
                part.new_zeros(len(tokens), *part.shape[1:]).index_copy_(0, asked, part)
                for part in few
            )
        )
    num_rows, vocab = logits.shape
    assert 0 <= k <= vocab, (k, vocab)
    assert tokens.shape == (num_rows,) and tokens.dtype == torch.int32, (tokens.shape, tokens.dtype)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    chunk, device = chunk_size(num_rows, vocab), logits.device
    chunks = triton.cdiv(vocab, chunk)
    width = min(k, chunk)
    result = Logprobs(
        sampled=torch.empty(num_rows, device=device),
        ranks=torch.empty(num_rows, dtype=torch.int32, device=device),
        top_ids=torch.empty((num_rows, k), dtype=torch.int32, device=device),
        top=torch.empty((num_rows, k), device=device),
    )
    sums = torch.empty((num_rows, 2), dtype=torch.int64, device=device)
    partials = torch.empty((num_rows, KINDS.value, chunks), dtype=torch.int64, device=device)
    items = torch.empty((num_rows, chunks * width), dtype=torch.int64, device=device)
    of_rows = (logits, logits.stride(0), vocab, partials, chunks, sums)
    of_tokens = (tokens, tokens.stride(0), items, width, k)
    sizes = {"CHUNKS": next_power_of_2(chunks), "HAS_TOP": k > 0}
    start(_scan, (num_rows, chunks), *of_rows, CHUNK=chunk)
    start(_measure, (num_rows, chunks), *of_rows, *of_tokens, CHUNK=chunk, **sizes)
    grid = (num_rows, chunks if k else 1)
    start(_place, grid, *of_rows, *of_tokens, *result, OWN=OWN, OTHERS=OTHERS, **sizes)
    return result


@triton.jit
def _scan(
    logits_ptr, stride_logits, vocab, partials_ptr, chunks, sums_ptr,
    CHUNK: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Scan a chunk; the first program of a row also clears its sums."""
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row_ptr = logits_ptr + row * stride_logits
    scan_chunk(row_ptr, vocab, partials_ptr + row * KINDS * chunks, chunks, chunk, CHUNK)
    if chunk == 0:
        tl.store(sums_ptr + 2 * row + tl.arange(0, 2), tl.zeros([2], tl.int64))


@triton.jit(do_not_specialize=["width", "k"])
def _measure(
    logits_ptr, stride_logits, vocab, partials_ptr, chunks, sums_ptr,
    tokens_ptr, stride_tokens, items_ptr, width, k,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, HAS_TOP: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Add a chunk's mass, and its tokens above the one asked for; list its greatest."""
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    partials_ptr += row * KINDS * chunks
    row_ptr = logits_ptr + row * stride_logits
    best, _, is_good = summary(partials_ptr, chunks, CHUNKS)
    if not is_good:
        return
    top = value_of(best)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    valid = tokens < vocab
    x = tl.load(row_ptr + tokens, valid, other=float("-inf")).to(tl.float32)
    if order_key(top) < INFINITY_KEY:
        mass = tl.sum(tl.where(valid, weights(x - top), 0), 0)
        tl.atomic_add(sums_ptr + 2 * row, mass, sem="relaxed")
    token = tl.load(tokens_ptr + row * stride_tokens)
    if (token >= 0) & (token < vocab):
        above = valid & (x > tl.load(row_ptr + token).to(tl.float32))
        tl.atomic_add(sums_ptr + 2 * row + 1, tl.sum(above.to(tl.int64), 0), sem="relaxed")
    if HAS_TOP:
        i = tl.arange(0, CHUNKS)
        maxima = tl.load(partials_ptr + i, i < chunks, other=NONE)
        ahead = tl.sum((maxima > tl.load(partials_ptr + chunk)).to(tl.int32), 0)
        item_ptr = items_ptr + (row * chunks + chunk) * width
        # As many chunks as are ahead have a greater candidate each.
        num_items = tl.where(ahead < k, width, 0)
        items = tl.where(valid, candidate(x, tokens), NONE)
        for place in range(num_items):
            greatest = tl.max(items, 0)
            tl.store(item_ptr + place, greatest)
            items = tl.where(items == greatest, NONE, items)
        for begin in range(num_items, width, CHUNK):
            places = begin + tl.arange(0, CHUNK)
            tl.store(item_ptr + places, tl.full([CHUNK], NONE, tl.int64), places < width)


@triton.jit(do_not_specialize=["width", "k"])
def _place(
    logits_ptr, stride_logits, vocab, partials_ptr, chunks, sums_ptr,
    tokens_ptr, stride_tokens, items_ptr, width, k,
    sampled_ptr, ranks_ptr, top_ids_ptr, top_ptr,
    OWN: tl.constexpr, OTHERS: tl.constexpr, CHUNKS: tl.constexpr, HAS_TOP: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Write a row's results: the first program the token's, each one what its chunk listed."""
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best, _, is_good = summary(partials_ptr + row * KINDS * chunks, chunks, CHUNKS)
    top = value_of(best)
    has_values = is_good & (order_key(top) < INFINITY_KEY)
    total = tl.load(sums_ptr + 2 * row).to(tl.float32) * _UNIT
    log_total = tl.where(has_values, log(total), float("nan"))
    if chunk == 0:
        token = tl.load(tokens_ptr + row * stride_tokens)
        known = is_good & (token >= 0) & (token < vocab)
        x = tl.load(logits_ptr + row * stride_logits + tl.where(known, token, 0)).to(tl.float32)
        value = tl.where(known, ((x - top) - log_total) + 0.0, float("nan"))
        tl.store(sampled_ptr + row, value)
        rank = tl.where(known, tl.load(sums_ptr + 2 * row + 1) + 1, 0)
        tl.store(ranks_ptr + row, rank.to(tl.int32))
    if HAS_TOP:
        top_ids_ptr += row * k
        top_ptr += row * k
        if is_good:
            items_ptr += row * chunks * width
            for begin in range(chunk * width, (chunk + 1) * width, OWN):
                i = begin + tl.arange(0, OWN)
                own = tl.load(items_ptr + i, i < (chunk + 1) * width, other=NONE)
                if tl.max(own, 0) > NONE:
                    places = _count_greater(items_ptr, chunks * width, own, OTHERS)
                    kept = (own > NONE) & (places < k)
                    tl.store(top_ids_ptr + places, token_of(own), kept)
                    values = ((value_of(own) - top) - log_total) + 0.0
                    tl.store(top_ptr + places, values, kept)
        elif chunk == 0:
            for begin in range(0, k, OTHERS):
                i = begin + tl.arange(0, OTHERS)
                tl.store(top_ids_ptr + i, tl.full([OTHERS], -1, tl.int32), i < k)
                tl.store(top_ptr + i, tl.full([OTHERS], float("nan"), tl.float32), i < k)


@triton.jit
def _count_greater(items_ptr, num_items, own, OTHERS: tl.constexpr):
    """Return for each of own, int64, how many items are greater."""
    counts = tl.zeros([own.shape[0], OTHERS], tl.int32)
    for begin in range(0, num_items, OTHERS):
        i = begin + tl.arange(0, OTHERS)
        others = tl.load(items_ptr + i, i < num_items, other=NONE)
        counts += (others[None, :] > own[:, None]).to(tl.int32)
    return tl.sum(counts, 1)
