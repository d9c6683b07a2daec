"""Mistral 7B and its kin: one sliding window for all layers, null for none, 4096 where unsaid."""

from __future__ import annotations

from .family import Family, FamilyTraits
from .values import ConfigValues


def traits(values: ConfigValues) -> FamilyTraits:
    """Read what is Mistral's own."""
    num_layers = values.integer("num_hidden_layers")
    values.demand("layer_types", ["sliding_attention"] * num_layers)
    unlimited = "sliding_window" in values.values and values.get("sliding_window") is None
    window = 0 if unlimited else values.integer("sliding_window", 4096)
    return FamilyTraits(windows=(window,) * num_layers, default_kv_heads=8)


FAMILY = Family("MistralForCausalLM", traits)
