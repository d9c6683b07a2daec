"""Dot products of a tile: every instruction equals the reference's words about denormals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from quire.fuzz.kernel_cases import assert_same_bits, seeds, usable_tag
from quire.kernels.cpu import amx, emit, tiles
from quire.reference.sums import Sums, add_products

STEPS = 8
KEYS = 64
PALETTE = amx.make_palette(tiles.PALETTE)
BFLOAT16_TAGS = [(sums, tag) for sums, tags in emit.TAGS.items() for tag in tags]


def scores_of(tag: str) -> Callable[[int, int, int, int], None]:
    """Compile the scores of one row for a tag; the matrix unit makes those of 16 rows."""
    palette = PALETTE.data_ptr()

    @njit(f"void({tag}, int64, int64, int64)")
    def run(kind: int, q: int, parts: int, out: int) -> None:
        tiles.begin(kind, (palette,))
        tiles.all_scores(kind, (q, parts, out, STEPS, 1))
        tiles.scores_1x4(kind, (q, parts, out, STEPS))
        tiles.end(kind, (0,))

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


@pytest.mark.parametrize(("sums", "tag"), BFLOAT16_TAGS)
def test_dot_products_flush_as_the_reference_says(sums: Sums, tag: str) -> None:
    run = scores_of(usable_tag(sums, tag))

    @settings(max_examples=100)
    @given(seeds, st.integers(0, 4))
    def check(seed: int, spread: int) -> None:
        q, k = make_near_denormal(seed, spread)
        all_q = torch.zeros(amx.TILE_ROWS, 2 * STEPS, dtype=torch.bfloat16)
        all_q[0] = q
        out = torch.full((amx.TILE_ROWS, KEYS), float("nan"))
        steps = k.view(STEPS, 2, tiles.PARTS, emit.LANES).permute(2, 0, 3, 1).contiguous()
        bases = [steps[i % tiles.PARTS].data_ptr() for i in range(4 * tiles.PARTS)]
        parts = torch.tensor(bases)
        run(0, all_q.data_ptr(), parts.data_ptr(), out.data_ptr())
        wide = q.float()[:, None].expand(2 * STEPS, KEYS)
        expected = add_products(torch.zeros(KEYS), wide, k.float(), sums)
        assert_same_bits(out[0], expected)

    check()
