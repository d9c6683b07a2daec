"""Inputs that operations get wrong, and the comparison of twins bit by bit.

Strategies draw a small description (seed, flavour, sizes), from which tensors are made: shrinking
stays fast, and a failure prints as a line. Owns no operation and no expectation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..kernels.cpu.emit import TAGS, promised_tag
from ..reference.ops import SamplingRows
from ..reference.sums import Sums

Flavour = Literal["normal", "small", "large", "bits", "special", "lattice", "ties"]
"""bits: any bit pattern; special: zeros, denormals, infinities, extremes; ties: few values."""
DTYPES = (torch.float32, torch.bfloat16)
SPECIAL = (
    *(0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754944e-38, -1.1754944e-38, 6e-39),
    *(3.4028235e38, -3.4028235e38, float("inf"), float("-inf"), 126.0, -126.0, 88.8, -104.0),
)


def make_floats(
    seed: int, shape: tuple[int, ...], flavour: Flavour, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Make a tensor of one flavour. Only "bits" has NaN (of any payload)."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator)
    match flavour:
        case "normal":
            values = normal
        case "small":
            values = normal * 1e-38
        case "large":
            values = normal * 1e30
        case "bits":
            words = torch.randint(-(2**31), 2**31, shape, generator=generator)
            values = words.to(torch.int32).view(torch.float32)
        case "special":
            chosen = torch.randint(len(SPECIAL), shape, generator=generator)
            values = torch.where(normal > 1.0, normal, torch.tensor(SPECIAL)[chosen])
        case "lattice":
            values = torch.randint(-8, 9, shape, generator=generator).float()
        case "ties":
            values = torch.randint(0, 3, shape, generator=generator).float() * 0.5
    return values.to(dtype)


# Sums round, and so tell their order, in the first flavour only: it comes more often.
_normal: Flavour = "normal"
flavours = st.just(_normal) | st.sampled_from(get_args(Flavour))
seeds = st.integers(0, 2**32)
dtypes = st.sampled_from(DTYPES)


class MatrixCase(NamedTuple):
    """A matrix of hidden states."""

    seed: int
    flavour: Flavour
    dtype: torch.dtype
    rows: int
    width: int
    is_strided: bool
    """The rows are a slice of wider ones."""

    def make(self, salt: int = 0, *, width: int | None = None) -> Tensor:
        """Make [rows, width]; another salt gives other values."""
        width = self.width if width is None else width
        shape = (self.rows, width + 32 * self.is_strided)
        return make_floats(self.seed + salt, shape, self.flavour, self.dtype)[:, :width]

    def make_row(self, salt: int) -> Tensor:
        """Make [width], contiguous."""
        return make_floats(self.seed + salt, (self.width,), self.flavour, self.dtype)


matrix_cases = st.builds(
    MatrixCase,
    seed=seeds,
    flavour=flavours,
    dtype=dtypes,
    rows=st.integers(0, 5),
    width=st.integers(1, 20).map(lambda lanes: 16 * lanes),
    is_strided=st.booleans(),
)


class LogitsCase(NamedTuple):
    """Logits and how they are to be sampled, the same for all rows but seeds and indices."""

    seed: int
    flavour: Flavour
    dtype: torch.dtype
    rows: int
    vocab: int
    scale: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float

    def make_logits(self) -> Tensor:
        """Make [rows, vocab]."""
        logits = make_floats(self.seed, (self.rows, self.vocab), self.flavour)
        return (logits * self.scale).to(self.dtype)

    def make_rows(self) -> SamplingRows:
        """Make the sampling rows; seeds use all 64 bits."""
        return make_sampling_rows(
            self.rows,
            temperature=self.temperature,
            filters=(self.top_k, self.top_p, self.min_p),
            seed=self.seed * 0x9E3779B97F4A7C15,
        )


def make_sampling_rows(
    rows: int,
    *,
    temperature: float = 1.0,
    filters: tuple[int, float, float] = (0, 1.0, 0.0),
    seed: int = 1,
    index: int = 0,
) -> SamplingRows:
    """Make rows that share all but the index, which counts up. filters: (top_k, top_p, min_p)."""
    top_k, top_p, min_p = filters
    signed = (seed + 2**63) % 2**64 - 2**63
    return SamplingRows(
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k, dtype=torch.int32),
        top_p=torch.full((rows,), top_p),
        min_p=torch.full((rows,), min_p),
        seeds=torch.full((rows,), signed, dtype=torch.int64),
        indices=torch.arange(index, index + rows, dtype=torch.int32),
    )


logits_cases = st.builds(
    LogitsCase,
    seed=seeds,
    flavour=flavours,
    dtype=dtypes,
    rows=st.integers(0, 3),
    vocab=st.integers(1, 70) | st.integers(120, 1500),
    scale=st.sampled_from([1.0, 3.0, 30.0, 1e-3]),
    temperature=st.sampled_from([0.0, 1e-45, 1e-30, 0.1, 0.7, 1.0, 2.0, 100.0, 1e4]),
    top_k=st.just(0) | st.integers(1, 8) | st.integers(1, 1600),
    top_p=st.just(1.0) | st.floats(2.0**-140, 1.0, width=32),
    min_p=st.just(0.0) | st.floats(0.0, 1.0, width=32),
)


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    """Fail unless a and b agree in dtype, shape and every bit, payloads of NaN aside."""
    assert a.dtype == b.dtype and a.shape == b.shape, (a.dtype, b.dtype, a.shape, b.shape)
    if not a.dtype.is_floating_point:
        assert torch.equal(a, b), (a, b)
        return
    words = torch.int16 if a.element_size() == 2 else torch.int32
    same = a.contiguous().view(words) == b.contiguous().view(words)
    wrong = ~(same | (a.isnan() & b.isnan()))
    assert not wrong.any(), (wrong.nonzero()[:4].tolist(), a[wrong][:4], b[wrong][:4])


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill new tensors with NaN (integers: with their greatest value) while inside."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all(), "torch did not fill uninitialized memory"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def usable_tag(sums: Sums, tag: str) -> str:
    """Return a tag of bfloat16 if this machine has its instructions, else the last, which any has.

    What needs less than the best tag is usable too.
    """
    tags = TAGS[sums]
    return tag if tags.index(tag) >= tags.index(promised_tag(sums)) else tags[-1]
