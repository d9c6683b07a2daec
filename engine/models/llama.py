"""Llama 2 and 3.x: no windows; biases on attention or MLP matrices where the config says so."""

from __future__ import annotations

from .family import Family, FamilyTraits
from .values import ConfigValues


def traits(values: ConfigValues) -> FamilyTraits:
    """Read what is Llama's own."""
    biased = values.flag("attention_bias")
    return FamilyTraits(
        windows=(0,) * values.integer("num_hidden_layers"),
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=values.flag("mlp_bias"),
    )


FAMILY = Family("LlamaForCausalLM", traits)
