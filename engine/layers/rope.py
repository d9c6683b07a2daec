"""Rotary frequencies of every supported rope type, in float64.

Pure. The table of angles is `reference.decoder.rotary_table`; here is only what a checkpoint's
config decides: base, scaling and its parameters.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Llama3Scaling(NamedTuple):
    """Parameters of rope type "llama3"; see llama3_frequencies."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


def default_frequencies(head_dim: int, theta: float) -> tuple[float, ...]:
    """Return theta ** (-2 i / head_dim) for i below head_dim / 2: radians a position."""
    return tuple(theta ** (-2 * i / head_dim) for i in range(head_dim // 2))


def linear_frequencies(head_dim: int, theta: float, factor: float) -> tuple[float, ...]:
    """Stretch every wave by factor (position interpolation, Chen et al. 2023, arXiv:2306.15595)."""
    return tuple(frequency / factor for frequency in default_frequencies(head_dim, theta))


def llama3_frequencies(head_dim: int, theta: float, scaling: Llama3Scaling) -> tuple[float, ...]:
    """Stretch the slow waves only (Llama 3.1's config; Grattafiori et al. 2024, arXiv:2407.21783).

    A wave that turns less than low_freq_factor times within the original length is stretched by
    factor, one that turns more than high_freq_factor times is kept, between them it is blended.
    """
    factor, low, high, length = scaling

    def scaled(frequency: float) -> float:
        turns = length * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return frequency * (kept + (1 - kept) / factor)

    return tuple(scaled(frequency) for frequency in default_frequencies(head_dim, theta))
