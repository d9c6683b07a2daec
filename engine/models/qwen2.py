"""Qwen2 and Qwen2.5: biases on q, k and v only; windows from max_window_layers on, where used."""

from __future__ import annotations

from .family import Family, FamilyTraits, sliding_windows
from .values import ConfigValues


def traits(values: ConfigValues) -> FamilyTraits:
    """Read what is Qwen2's own."""
    return FamilyTraits(
        windows=sliding_windows(values, default_first=28), qkv_bias=True, default_kv_heads=32
    )


FAMILY = Family("Qwen2ForCausalLM", traits)
