"""Qwen3 (dense): RMS norms on every head of q and k, a head_dim of its own, windows as Qwen2."""

from __future__ import annotations

from .family import Family, FamilyTraits, sliding_windows
from .values import ConfigValues


def traits(values: ConfigValues) -> FamilyTraits:
    """Read what is Qwen3's own."""
    biased = values.flag("attention_bias")
    return FamilyTraits(
        windows=sliding_windows(values, default_first=28),
        qkv_bias=biased,
        o_bias=biased,
        qk_norm=True,
        default_kv_heads=32,
        default_head_dim=128,
    )


FAMILY = Family("Qwen3ForCausalLM", traits)
