"""Cases of kernels that add in an order of their own: the exact lattice, and sizes that a GPU cuts.

On the lattice all arithmetic is exact, so every order of sums gives the same bits, and a kernel is
held to the reference bit for bit. A case is a small description, see `kernel_cases`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from ..reference.ops import StepRows
from .attention_cases import (
    LATTICE_SCALE,
    AttentionCase,
    QKVCase,
    Sequence,
    allowed,
    softcaps,
    ways,
)
from .kernel_cases import dtypes, make_floats, seeds

ON_GPU = 20
"""How many times as many examples a GPU runs: interpreted kernels are slow."""
decode_keys = st.sampled_from([1, 63, 64, 65, 255, 256, 257, 513, 1025, 1290]) | st.integers(1, 700)


def examples(count: int) -> settings:
    """Run so many examples in the interpreter, and ON_GPU times as many on a GPU."""
    return settings(max_examples=count * (ON_GPU if torch.cuda.is_available() else 1))


def move(x: Tensor, device: str) -> Tensor:
    """Copy to a device, strides and all: what lies between the rows goes along."""
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return whole.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


@st.composite
def gpu_sequences(draw: st.DrawFn) -> Sequence:
    """Draw decode over up to six segments, a chunk, or a prompt."""
    kind = draw(st.sampled_from(["decode", "decode", "chunk", "prompt"]))
    if kind == "decode":
        return Sequence(1, draw(decode_keys))
    num_queries = draw(st.integers(2, 40))
    if kind == "prompt":
        return Sequence(num_queries, num_queries)
    return Sequence(num_queries, num_queries + draw(st.integers(0, 300)))


def gpu_attention_cases(scale: float = LATTICE_SCALE, max_rows: int = 3) -> Any:
    """Strategy of AttentionCase with plain numbers; by default for `make_lattice`."""
    cases = st.builds(
        AttentionCase,
        seed=seeds,
        flavour=st.just("normal"),
        dtype=dtypes,
        rows=st.lists(gpu_sequences(), min_size=1, max_size=max_rows).map(tuple),
        kv_heads=st.integers(1, 2),
        group=st.sampled_from([4, 1, 2, 3, 5, 7, 8, 16]),
        head_dim=st.sampled_from([64, 128, 64, 128, 16, 80, 96, 256]),
        block_size=st.sampled_from([16, 1, 8, 24, 32, 64, 128]),
        window=st.sampled_from([0, 0, 0, 1, 5, 64, 65, 200, 256, 700]),
        scale=st.just(scale),
        num_bad=st.just(0),
        stale=st.sampled_from([float("nan"), 2.0]),
        softcap=st.just(0.0) if scale == LATTICE_SCALE else softcaps,
        has_sinks=st.booleans(),
        causal=ways,
    )
    return cases.map(allowed)


class LinearCase(NamedTuple):
    """One linear."""

    seed: int
    dtype: torch.dtype
    rows: int
    in_features: int
    out_features: int
    segments: int
    has_bias: bool
    extra: int
    """Columns of x beside the ones that are multiplied: its rows are a slice of wider ones."""

    def make_lattice(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Make (x, weight, bias) of integers up to 8: sums of 4096 products fit in 24 bits."""
        return self._fill(integers)

    def make(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Make (x, weight, bias) of plain numbers."""
        return self._fill(lambda seed, shape, dtype: make_floats(seed, shape, "normal", dtype))

    def _fill(self, make: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        x = make(self.seed, (self.rows, self.in_features + self.extra), self.dtype)
        weight = make(self.seed + 1, (self.out_features, self.in_features), self.dtype)
        bias = make(self.seed + 2, (self.out_features,), self.dtype) if self.has_bias else None
        return x[:, self.extra :], weight, bias


def integers(seed: int, shape: tuple[int, ...], dtype: torch.dtype, most: int = 8) -> Tensor:
    """Make integers of up to `most` in magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).to(dtype)


linear_cases = st.builds(
    LinearCase,
    seed=seeds,
    dtype=dtypes,
    rows=st.sampled_from([1, 2, 15, 16, 17, 32, 33, 64, 65, 129]),
    in_features=st.sampled_from([64, 128, 192, 320, 1024, 4096]),
    out_features=st.sampled_from([1, 17, 32, 33, 64, 65, 100]),
    segments=st.sampled_from([1, 1, 2, 4]),
    has_bias=st.booleans(),
    extra=st.sampled_from([0, 0, 8, 3]),
)


class NormCase(NamedTuple):
    """One norm whose root is a power of two."""

    seed: int
    dtype: torch.dtype
    rows: int
    width: int
    form: int
    """0: entries +-1; 1: a quarter +-2, else 0; 2: three quarters +-1, with eps 1/4."""
    power: int
    """All is 2^power as great."""

    @property
    def eps(self) -> float:
        """What the mean of squares lacks of a power of four."""
        return 0.25 * 4.0**self.power if self.form == 2 else 0.0

    def make(self, width: int | None = None) -> Tensor:
        """Make [rows, width]: mean(x^2) + eps = 4^power."""
        width = width or self.width
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randint(0, 2, (self.rows, width), generator=generator).float() * 2 - 1
        kept = torch.rand(x.shape, generator=generator).argsort(1)
        if self.form == 1:
            x = torch.where(kept < width // 4, 2 * x, 0.0)
        if self.form == 2:
            x = torch.where(kept < width // 4, 0.0, x)
        return (x * 2.0**self.power).to(self.dtype)

    def make_shifted(self) -> Tensor:
        """Make [rows, width]: variance + eps = 4^power, and means that are no rounded number."""
        half = self.make(self.width // 2).float()
        shifts = integers(self.seed + 3, (self.rows, 1), torch.float32, 5) * 2.0**self.power
        return (torch.cat((half, -half), 1) + shifts).to(self.dtype)

    def make_weight(self, salt: int = 1) -> Tensor:
        """Make [width]."""
        return integers(self.seed + salt, (self.width,), self.dtype)


norm_cases = st.builds(
    NormCase,
    seed=seeds,
    dtype=dtypes,
    rows=st.integers(1, 4),
    width=st.sampled_from([16, 64, 80, 256, 1000 // 16 * 16, 1024, 3072]),
    form=st.integers(0, 2),
    power=st.integers(-2, 3),
)


class LatticeQKVCase(NamedTuple):
    """One qkv_post whose norms and turns are exact."""

    case: QKVCase
    norm: NormCase

    def make(self) -> tuple[Tensor, Any, Tensor, tuple[Tensor, Tensor] | None]:
        """Make (qkv, batch, cos_sin, norms), see QKVCase.make."""
        case = self.case
        qkv, batch, cos_sin, norms = case.make()
        heads = self.norm.make(case.head_dim).reshape(qkv.shape)
        cos_sin = integers(case.seed + 3, tuple(cos_sin.shape), torch.float32, 4) / 4
        if norms:
            size = (case.head_dim,)
            norms = (
                integers(case.seed + 4, size, case.dtype),
                integers(case.seed + 5, size, case.dtype),
            )
        return heads, batch, cos_sin, norms


@st.composite
def lattice_qkv_cases(draw: st.DrawFn) -> LatticeQKVCase:
    """Draw a case with norms or without."""
    tokens, heads, kv_heads = (
        draw(st.integers(1, 6)),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 3)),
    )
    case = QKVCase(
        seed=draw(seeds),
        flavour="normal",
        dtype=draw(dtypes),
        tokens=tokens,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([64, 128, 16, 80, 96])),
        block_size=draw(st.sampled_from([16, 1, 24, 64])),
        has_norms=draw(st.booleans()),
        is_strided=False,
        eps=0.0,
    )
    norm = NormCase(
        seed=draw(seeds),
        dtype=case.dtype,
        rows=tokens * (heads + 2 * kv_heads),
        width=case.head_dim,
        form=draw(st.integers(0, 2)),
        power=draw(st.integers(-2, 3)),
    )
    return LatticeQKVCase(case._replace(eps=norm.eps), norm)


PADDING = -1


class StepCase(NamedTuple):
    """What `prepare` gathers: (tokens, first position) of each row, PADDING for a position."""

    seed: int
    rows: tuple[tuple[int, int], ...]
    block_size: int

    def make(self) -> tuple[StepRows, Tensor, Tensor, int]:
        """Make (rows, known, block_tables, num_tokens); what no row holds is hostile."""
        generator = torch.Generator().manual_seed(self.seed)
        num_slots = len(self.rows) + 2
        slots = torch.randperm(num_slots, generator=generator)[: len(self.rows)].int()
        counts = torch.tensor([0] + [count for count, _ in self.rows])
        longest = max(count + first for count, first in self.rows) + 1
        max_blocks = -(-longest // self.block_size) + 1
        known = torch.full((num_slots, longest + 3), -99, dtype=torch.int32)
        tables = torch.full((num_slots, max_blocks), 2**31 - 1, dtype=torch.int32)
        starts = torch.full((len(self.rows),), 2**31 - 1, dtype=torch.int32)
        for i, (count, first) in enumerate(self.rows):
            if first == PADDING:
                slots[i] = -1
                continue
            end = count + first
            starts[i] = first
            known[slots[i], :end] = torch.randint(2**31 - 1, (end,), generator=generator).int()
            blocks = -(-end // self.block_size)
            tables[slots[i], :blocks] = torch.randint(
                2**31 - 1, (blocks,), generator=generator
            ).int()
        rows = StepRows(slots, starts, counts.cumsum(0).int())
        return rows, known, tables, int(counts.sum())


step_cases = st.builds(
    StepCase,
    seed=seeds,
    rows=st.lists(
        st.tuples(st.just(1) | st.integers(0, 150), st.just(PADDING))
        | st.tuples(st.just(1), st.integers(0, 300))
        | st.tuples(st.integers(1, 200), st.integers(0, 100)),
        min_size=1,
        max_size=5,
    ).map(tuple),
    block_size=st.sampled_from([16, 1, 24, 128]),
)
