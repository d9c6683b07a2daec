"""Cases of attention, KV memory and qkv post-processing: geometry and values; a float64 oracle.

A case is a small description from which tensors are made, see `kernel_cases`. The memory it makes
is hostile: blocks in random order, every place that no sequence holds is NaN, unused table entries
are out of range.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple, get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..reference.activation import LOG2_E
from ..reference.ops import Batch, KVCache
from ..reference.sums import Sums
from .kernel_cases import DTYPES, Flavour, flavours, make_floats, seeds

UNUSED_ENTRY = 2**31 - 1
LATTICE_SCALE = 1.0 / LOG2_E
"""A factor of exactly 1: integer scores, powers of two as probabilities."""

block_sizes = st.sampled_from([16, 1, 2, 8, 24, 32, 48, 64, 128])
head_dims = st.sampled_from([16, 32, 48, 64, 80, 112, 128, 256])
softcaps = st.sampled_from([0.0, 0.0, 5.0, 30.0])
ways = st.sampled_from([True, True, False])
"""Whether a call is causal."""
key_counts = st.sampled_from([1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 192]) | st.integers(1, 200)


class Sequence(NamedTuple):
    """One row of a batch."""

    num_queries: int
    num_keys: int


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    """Draw decode, a chunk of any size, or a whole prompt."""
    num_keys = draw(key_counts)
    queries = st.just(1) | st.integers(1, min(num_keys, 40)) | st.just(num_keys)
    return Sequence(draw(queries), num_keys)


class AttentionCase(NamedTuple):
    """One call of paged_attention."""

    seed: int
    flavour: Flavour
    dtype: torch.dtype
    rows: tuple[Sequence, ...]
    kv_heads: int
    group: int
    head_dim: int
    block_size: int
    window: int
    scale: float
    num_bad: int
    """Keys or values (one element each) that are infinite or NaN."""
    sums: Sums = "pairs"
    stale: float = math.nan
    """What lies in memory that no row holds. NaN sends whoever meets it on a careful path."""
    softcap: float = 0.0
    has_sinks: bool = False
    causal: bool = True
    """If not, there is no window."""

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of paged_attention."""
        sinks = self.make_sinks() if self.has_sinks else None
        return {
            "scale": self.scale,
            "window": self.window,
            "softcap": self.softcap,
            "sinks": sinks,
            "causal": self.causal,
        }

    def make_sinks(self) -> Tensor:
        """Make [heads] float32, each zero or a power of two up to 4, times LATTICE_SCALE."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randint(7, (self.kv_heads * self.group,), generator=generator)
        return torch.tensor([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0])[chosen] * LATTICE_SCALE

    def make_queries(self) -> Tensor:
        """Make q [tokens, heads, head_dim]."""
        tokens = sum(row.num_queries for row in self.rows)
        shape = (tokens, self.kv_heads * self.group, self.head_dim)
        return make_floats(self.seed, shape, self.flavour, self.dtype)

    def make_kv(self) -> list[tuple[Tensor, Tensor]]:
        """Make (k, v) of each row, each [keys, kv_heads, head_dim]."""
        result = []
        for i, row in enumerate(self.rows):
            shape = (row.num_keys, self.kv_heads, self.head_dim)
            pair = tuple(
                make_floats(self.seed + 2 * i + part, shape, self.flavour, self.dtype)
                for part in (1, 2)
            )
            generator = torch.Generator().manual_seed(self.seed + i)
            for _ in range(self.num_bad):
                chosen = int(torch.randint(4, (), generator=generator))
                place = int(torch.randint(math.prod(shape), (), generator=generator))
                pair[chosen % 2].view(-1)[place] = (math.nan, math.nan, math.inf, -math.inf)[chosen]
            result.append((pair[0], pair[1]))
        return result


def attention_cases(flavour: st.SearchStrategy[Any] = flavours) -> Any:
    """Strategy of AttentionCase."""
    cases = st.builds(
        AttentionCase,
        seed=seeds,
        flavour=flavour,
        dtype=st.sampled_from(DTYPES),
        rows=st.lists(sequences(), min_size=1, max_size=4).map(tuple),
        kv_heads=st.integers(1, 3),
        group=st.sampled_from([1, 2, 3, 4, 7, 8, 16]),
        head_dim=head_dims,
        block_size=block_sizes,
        window=st.just(0) | st.sampled_from([1, 5, 16, 63, 64, 65, 150]),
        scale=st.sampled_from([0.125, 1.0, 0.3, 1e-20, 1e4]),
        num_bad=st.sampled_from([0, 0, 1, 3]),
        sums=st.sampled_from(get_args(Sums)),
        stale=st.sampled_from([math.nan, 2.0]),
        softcap=softcaps,
        has_sinks=st.booleans(),
        causal=ways,
    )
    return cases.map(allowed)


def allowed(case: AttentionCase) -> AttentionCase:
    """Return the case without what a call that is not causal does not take."""
    return case if case.causal else case._replace(window=0)


def make_lattice(case: AttentionCase) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Make (q, kv) for which all arithmetic of attention is exact, with LATTICE_SCALE.

    Three elements of q are +-1, k in -2..2, v in -4..4: |score| <= 6, so 256 keys fit in 24 bits.
    Two, where a row has more keys: |score| <= 4, so 8192 do.
    """
    generator = torch.Generator().manual_seed(case.seed)
    num_ones = 3 if max(row.num_keys for row in case.rows) <= 256 else 2
    q = torch.zeros_like(case.make_queries(), dtype=torch.float32)
    places = torch.rand(q.shape, generator=generator).argsort(-1)[..., :num_ones]
    signs = torch.randint(0, 2, places.shape, generator=generator).float() * 2 - 1
    q.scatter_(-1, places, signs)
    kv = []
    for row in case.rows:
        shape = (row.num_keys, case.kv_heads, case.head_dim)
        k = torch.randint(-2, 3, shape, generator=generator).to(case.dtype)
        kv.append((k, torch.randint(-4, 5, shape, generator=generator).to(case.dtype)))
    return q.to(case.dtype), kv


def make_batch(case: AttentionCase, block_size: int) -> tuple[Batch, list[Tensor]]:
    """Lay the rows of a case into blocks: the batch, and the places of each row's keys."""
    generator = torch.Generator().manual_seed(case.seed)
    needs = [-(-row.num_keys // block_size) for row in case.rows]
    free = torch.randperm(num_blocks(case, block_size), generator=generator)
    slots = torch.randperm(len(needs) + 1, generator=generator)[: len(needs)]
    tables = torch.full((len(needs) + 1, max(needs) + 1), UNUSED_ENTRY, dtype=torch.int32)
    places, positions = [], []
    for row, slot, need in zip(case.rows, slots.tolist(), needs, strict=True):
        blocks, free = free[:need], free[need:]
        tables[slot, :need] = blocks.int()
        index = torch.arange(row.num_keys)
        places.append(blocks[index // block_size] * block_size + index % block_size)
        positions.append(index[row.num_keys - row.num_queries :])
    counts = torch.tensor([0] + [row.num_queries for row in case.rows])
    batch = Batch(
        positions=torch.cat(positions).int(),
        places=torch.cat([p[-r.num_queries :] for p, r in zip(places, case.rows, strict=True)]),
        query_starts=counts.cumsum(0).int(),
        kv_lens=torch.tensor([row.num_keys for row in case.rows]).int(),
        slots=slots.int(),
        block_tables=tables,
    )
    return batch, places


def num_blocks(case: AttentionCase, block_size: int) -> int:
    """Return the blocks of a case's memory, two of them nobody's."""
    return sum(-(-row.num_keys // block_size) for row in case.rows) + 2


def make_cache(
    ops: ModuleType,
    case: AttentionCase,
    kv: list[tuple[Tensor, Tensor]],
    places: list[Tensor],
    block_size: int,
    *,
    device: str = "cpu",
) -> KVCache:
    """Fill a cache of ops with the rows' keys and values and all else with what is stale."""
    blocks = num_blocks(case, block_size)
    shape = (blocks, block_size, case.kv_heads, case.head_dim)
    cache = ops.new_kv_cache(*shape, case.dtype, sums=case.sums, device=device)
    stale = torch.full((blocks * block_size, case.kv_heads, case.head_dim), case.stale)
    stale = stale.to(case.dtype)
    cache.write(torch.arange(blocks * block_size), stale, stale)
    for (k, v), row_places in zip(kv, places, strict=True):
        cache.write(row_places, k, v)
    return cache  # type: ignore[no-any-return]  # ops is any module of Ops


def attend(ops: ModuleType, case: AttentionCase, *, block_size: int = 0, **options: Any) -> Tensor:
    """Run a case through ops.paged_attention in memory of its own (block_size 0: the case's)."""
    q, kv = case.make_queries(), case.make_kv()
    return attend_to(ops, case, (q, kv), block_size=block_size, **options)


def attend_to(
    ops: ModuleType,
    case: AttentionCase,
    inputs: tuple[Tensor, list[tuple[Tensor, Tensor]]],
    *,
    block_size: int = 0,
    device: str = "cpu",
    **options: Any,
) -> Tensor:
    """Run given queries, keys and values in the geometry of a case; the result is on the CPU."""
    q, kv = inputs
    size = block_size or case.block_size
    batch, places = make_batch(case, size)
    cache = make_cache(ops, case, kv, places, size, device=device)
    batch = Batch(*(field.to(device) for field in batch))
    options = case.options | options
    if case.has_sinks:
        options["sinks"] = options["sinks"].to(device)
    result: Tensor = ops.paged_attention(q.to(device), cache, batch, **options)
    return result.cpu()


def attend_in_parts(
    ops: ModuleType,
    case: AttentionCase,
    batches: list[list[tuple[int, int, int]]],
    *,
    block_size: int,
    device: str = "cpu",
) -> Tensor:
    """Attention of a case in batches other than its own: of (row, first query, end query).

    Later keys are not there yet, unless they are seen.
    """
    q, kv = case.make_queries(), case.make_kv()
    starts = [sum(row.num_queries for row in case.rows[:i]) for i in range(len(case.rows))]
    out = torch.full_like(q, 77.0)
    for batch in batches:
        rows, part_kv, tokens = [], [], []
        for i, start, end in batch:
            num_keys = case.rows[i].num_keys
            if case.causal:
                num_keys += end - case.rows[i].num_queries
            rows.append(Sequence(end - start, num_keys))
            part_kv.append((kv[i][0][:num_keys], kv[i][1][:num_keys]))
            tokens.append(torch.arange(starts[i] + start, starts[i] + end))
        part = case._replace(rows=tuple(rows))
        index = torch.cat(tokens)
        inputs = (q[index], part_kv)
        out[index] = attend_to(ops, part, inputs, block_size=block_size, device=device)
    return out


def exact_attention(
    case: AttentionCase, q: Tensor, kv: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention in float64: (numerators, sums, numerators of |v|), each [tokens, heads, head_dim].

    Probabilities are 2 ** (score - greatest), not divided by their sum.
    """
    results = []
    start = 0
    for row, (k, v) in zip(case.rows, kv, strict=True):
        q_row = q[start : start + row.num_queries].double()
        start += row.num_queries
        k_wide, v_wide = (x.double().repeat_interleave(case.group, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q_row, k_wide)
        if case.softcap:
            scores = torch.tanh(scores * case.scale / case.softcap) * (case.softcap * LOG2_E)
        else:
            scores = scores * (case.scale * LOG2_E)
        position = torch.arange(row.num_keys - row.num_queries, row.num_keys)[:, None]
        index = torch.arange(row.num_keys)
        hidden = index > (position if case.causal else row.num_keys)
        if case.window:
            hidden |= index <= position - case.window
        scores = scores.masked_fill(hidden, -math.inf)
        top = scores.amax(-1, keepdim=True)
        sinks = torch.full((scores.shape[0], 1, 1), -math.inf, dtype=torch.float64)
        if case.has_sinks:
            sinks = (case.make_sinks() * LOG2_E).double()[:, None, None]
            top = torch.maximum(top, sinks)
        p = torch.exp2(scores - top)
        sums = p.sum(-1) + torch.exp2(sinks - top).squeeze(-1)
        sums = sums.T[..., None].expand(q_row.shape)
        results.append(
            (
                torch.einsum("hqk,khd->qhd", p, v_wide),
                sums,
                torch.einsum("hqk,khd->qhd", p, v_wide.abs()),
            )
        )
    return (
        torch.cat([r[0] for r in results]),
        torch.cat([r[1] for r in results]),
        torch.cat([r[2] for r in results]),
    )


class QKVCase(NamedTuple):
    """One call of qkv_post."""

    seed: int
    flavour: Flavour
    dtype: torch.dtype
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    has_norms: bool
    is_strided: bool
    """The rows are a slice of wider ones."""
    eps: float

    def make(self) -> tuple[Tensor, Batch, Tensor, tuple[Tensor, Tensor] | None]:
        """Make (qkv, batch, cos_sin, norms)."""
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        wide = (self.tokens, width + 48 * self.is_strided)
        qkv = make_floats(self.seed, wide, self.flavour, self.dtype)[:, :width]
        generator = torch.Generator().manual_seed(self.seed)
        empty = torch.zeros(0, dtype=torch.int32)
        batch = Batch(
            positions=torch.randint(0, 50, (self.tokens,), generator=generator).int(),
            places=torch.randperm(self.num_places, generator=generator)[: self.tokens],
            query_starts=empty,
            kv_lens=empty,
            slots=empty,
            block_tables=empty,
        )
        angles = torch.rand((50, self.head_dim // 2), generator=generator) * 7
        norms = tuple(
            make_floats(self.seed + i, (self.head_dim,), self.flavour, self.dtype) for i in (1, 2)
        )
        pair = (norms[0], norms[1]) if self.has_norms else None
        return qkv, batch, torch.cat((angles.cos(), angles.sin()), 1), pair

    @property
    def num_places(self) -> int:
        """Places of the cache."""
        return (self.tokens // self.block_size + 2) * self.block_size

    def make_cache(self, ops: ModuleType, device: str = "cpu") -> Any:
        """Make an empty cache."""
        blocks = self.num_places // self.block_size
        shape = (blocks, self.block_size, self.kv_heads, self.head_dim)
        return ops.new_kv_cache(*shape, self.dtype, device=device)


qkv_cases = st.builds(
    QKVCase,
    seed=seeds,
    flavour=flavours,
    dtype=st.sampled_from(DTYPES),
    tokens=st.integers(0, 20),
    heads=st.integers(1, 6),
    kv_heads=st.integers(1, 3),
    head_dim=head_dims,
    block_size=block_sizes,
    has_norms=st.booleans(),
    is_strided=st.booleans(),
    eps=st.sampled_from([1e-6, 1e-5, 0.0]),
)
