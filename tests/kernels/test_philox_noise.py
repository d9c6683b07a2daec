"""Philox and Gumbel noise: known vectors, twins on every edge, accuracy, distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.kernels.cpu import philox as kernels
from quire.kernels.cpu.launch import compiled
from quire.kernels.cpu.simd import float32s, int32s, int64s
from quire.reference.philox import gumbel, philox, token_words
from torch import Tensor

FULL = 0xFFFFFFFF
# Random123's known answers (kat_vectors, philox4x32 10): counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((FULL,) * 4, (FULL, FULL), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@compiled("void(int64, int64, int64, int64, uint32, int64)")
def _fill_words(out: int, group: int, index: int, seed: int, most: int, hits: int) -> None:
    words = np.empty(64, np.uint32)
    int64s(hits, 1)[0] = np.int64(kernels.group_words(words, group, index, seed, most))
    target = int32s(out, 64)
    for i in range(64):
        target[i] = np.int32(words[i])


@compiled("void(int64, int64, int64)")
def _fill_noise(words: int, out: int, count: int) -> None:
    source, target = int32s(words, count), float32s(out, count)
    for i in range(count):
        target[i] = kernels.gumbel(np.uint32(source[i]))


def kernel_noise(words: Tensor) -> Tensor:
    """Gumbel noise of int64 words, by the kernel."""
    source, out = words.to(torch.int32), torch.empty(len(words))
    _fill_noise(source.data_ptr(), out.data_ptr(), len(words))
    return out


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter: Any, key: tuple[int, int], words: str) -> None:
    a, b, c, d = (torch.tensor([c]) for c in counter)
    block = philox((a, b, c, d), key)
    assert " ".join(f"{int(word):08x}" for word in block) == words


@settings(max_examples=60)
@given(
    st.integers(0, 4000),
    st.integers(0, 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 63),
)
def test_words_of_twins_agree(group: int, index: int, seed: int, place: int) -> None:
    """And a bit tells which are at most another, which one of them is here."""
    out, hits = torch.empty(64, dtype=torch.int32), torch.empty(1, dtype=torch.int64)
    words = token_words(seed, index, torch.arange(64 * group, 64 * group + 64))
    most = int(words[place])
    _fill_words(out.data_ptr(), group, index, seed, most, hits.data_ptr())
    assert torch.equal(out.long() & FULL, words)
    assert torch.equal((hits >> torch.arange(64)) & 1, (words <= most).long())


def test_words_differ_by_seed_index_and_token() -> None:
    tokens = torch.arange(1000)
    base = token_words(1, 0, tokens)
    assert len(set(base.tolist())) == 1000
    for other in (token_words(2, 0, tokens), token_words(1 + 2**32, 0, tokens)):
        assert not (other == base).any()
    assert not (token_words(1, 1, tokens) == base).any()
    assert torch.equal(token_words(-1, 3, tokens), token_words(2**64 - 1, 3, tokens))
    assert torch.equal(token_words(1, 0, tokens[500:]), base[500:])


EDGES = torch.cat(
    [
        torch.arange(0, 70_000),
        2**24 + torch.arange(-3000, 3000),
        2**30 + torch.arange(-3000, 3000),
        2**31 + torch.arange(-70_000, 70_000),
        3 * 2**30 + torch.arange(-3000, 3000),
        2**32 - 1 - torch.arange(0, 70_000),
        torch.arange(0, 2**32, 21_001),
    ]
)


def test_noise_of_twins_agrees_and_is_accurate() -> None:
    noise = gumbel(EDGES)
    assert torch.equal(noise, kernel_noise(EDGES))
    v = (EDGES.double() + 0.5) * 2.0**-32
    exact = -torch.log(-torch.log1p(-v))
    assert (noise - exact).abs().max() < 3e-6
    near_zero = exact.abs() < 1
    assert (noise - exact)[near_zero].abs().max() < 4e-7
    assert noise.isfinite().all()
    assert noise.min() > -3.14
    assert noise.max() < 22.88


def test_noise_falls_with_its_word() -> None:
    coarse = gumbel(torch.arange(0, 2**32, 2**12 + 1))
    assert (coarse[1:] <= coarse[:-1] + 4e-6).all()


def test_words_are_uniform() -> None:
    words = token_words(123, 5, torch.arange(1 << 18))
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words >> shift) & 255, minlength=256).double()
        chi_square = ((counts - 1024) ** 2 / 1024).sum().item()
        assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255), (shift, chi_square)
    neighbours = (words[1:] ^ words[:-1]) >> 31
    assert abs(neighbours.double().mean().item() - 0.5) < 5 * 0.5 / 512


@pytest.mark.parametrize("axis", ["token", "index", "seed"])
def test_noise_has_the_gumbel_distribution_along(axis: str) -> None:
    size = 1 << 16 if axis == "token" else 1 << 11
    if axis == "token":
        words = token_words(9, 1, torch.arange(size))
    else:
        one = torch.tensor([17])
        draws = [
            token_words(i, 4, one) if axis == "seed" else token_words(4, i, one)
            for i in range(size)
        ]
        words = torch.cat(draws)
    noise = gumbel(words).double().sort().values
    cdf = torch.exp(-torch.exp(-noise))
    steps = torch.arange(size + 1).double() / size
    distance = torch.maximum((steps[1:] - cdf).abs(), (cdf - steps[:-1]).abs()).max().item()
    # The Kolmogorov-Smirnov statistic stays below 1.95 / sqrt(n) in 999 of 1000 samples.
    assert distance < 1.95 / math.sqrt(size)
