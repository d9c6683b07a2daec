"""Dot products of a tile: every instruction equals the reference's words about denormals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from quire.fuzz.kernel_cases import assert_same_bits, seeds
from quire.kernels.cpu import emit, tiles
from quire.reference.attention import _dot

STEPS = 8
KEYS = 64


def scores_of(tag: str) -> Callable[[int, int, int, int], None]:
    """Compile the scores of one row for a tag."""

    @njit(f"void({tag}, int64, int64, int64)")
    def run(kind: int, q: int, parts: int, out: int) -> None:
        tiles.scores_1x4(kind, (q, parts, out, STEPS))

    return run


def make_near_denormal(seed: int, spread: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make q [16] and k [16, KEYS] bfloat16 whose products lie around 2^-126 and far below.

    The first pair gives +-2^-126 or the next numbers, so that the rest decides what is flushed.
    """
    generator = torch.Generator().manual_seed(seed)

    def numbers(shape: tuple[int, ...], exponent: float) -> torch.Tensor:
        scales = torch.randint(-spread, spread + 1, shape, generator=generator)
        mantissas = 1 + torch.randint(0, 4, shape, generator=generator) / 4
        signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return (signs * mantissas * 2.0 ** (scales + exponent)).bfloat16()

    q, k = numbers((2 * STEPS,), -75.5 + 0.5), numbers((2 * STEPS, KEYS), -75.0)
    q[:2], k[:2] = 2.0**-63, 2.0**-63
    k[0] *= torch.randint(-1, 2, (KEYS,), generator=generator).bfloat16()
    q[torch.rand(q.shape, generator=generator) < 0.1] = 1e-39
    k[torch.rand(k.shape, generator=generator) < 0.05] = -1e-39
    return q, k


@pytest.mark.parametrize("tag", ["uint16", "int16", "int8"])
def test_dot_products_flush_as_the_reference_says(tag: str) -> None:
    best = emit.best_bfloat16_tag()
    if (tag == "uint16" and best != "uint16") or (tag == "int16" and best == "int8"):
        tag = "int8"
    run = scores_of(tag)

    @settings(max_examples=100)
    @given(seeds, st.integers(0, 4))
    def check(seed: int, spread: int) -> None:
        q, k = make_near_denormal(seed, spread)
        out = torch.full((KEYS,), float("nan"))
        steps = k.view(STEPS, 2, tiles.PARTS, emit.LANES).permute(2, 0, 3, 1).contiguous()
        bases = [steps[i % tiles.PARTS].data_ptr() for i in range(4 * tiles.PARTS)]
        parts = torch.tensor(bases)
        run(0, q.data_ptr(), parts.data_ptr(), out.data_ptr())
        wide = q.float()[:, None].expand(2 * STEPS, KEYS)
        expected = _dot(torch.zeros(KEYS), wide, k.float(), torch.bfloat16)
        assert_same_bits(out + 0.0, expected + 0.0)

    check()
