"""What a model family declares, and what the Llama-like families share in reading their config.

A family file maps config.json (the spelling of transformers 5 and the older one) to a DecoderConfig
and names its tensors. Nothing here reads a file or computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ...reference.decoder import DecoderConfig
from ...reference.sums import Sums
from ..errors import ConfigError
from ..layers.rope import (
    Llama3Scaling,
    default_frequencies,
    linear_frequencies,
    llama3_frequencies,
)
from .values import ConfigValues


class TensorNames(NamedTuple):
    """Names of the checkpoint's modules; several where parts lie side by side in one matrix."""

    embedding: str = "model.embed_tokens"
    layer: str = "model.layers.{}."
    input_norm: str = "input_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qk_norms: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    o: str = "self_attn.o_proj"
    post_norm: str = "post_attention_layernorm"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    final_norm: str = "model.norm"
    head: str = "lm_head"


class FamilyTraits(NamedTuple):
    """What distinguishes a family inside the common shape."""

    windows: tuple[int, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    default_kv_heads: int | None = None
    """Where the config does not say; None: as many as heads."""
    default_head_dim: int | None = None
    """Where the config does not say; None: hidden_size / heads."""


class Family(NamedTuple):
    """One architecture."""

    architecture: str
    """As in config.json's `architectures`."""
    traits: Callable[[ConfigValues], FamilyTraits]
    names: TensorNames = TensorNames()


def decoder_config(
    values: ConfigValues,
    traits: FamilyTraits,
    dtype: torch.dtype,
    linear_segments: int,
    sums: Sums,
) -> DecoderConfig:
    """Read the common shape. Raises ConfigError for everything that is not supported."""
    values.demand("hidden_act", "silu")
    values.demand("quantization_config")
    values.demand("dual_chunk_attention_config")
    values.demand("partial_rotary_factor", 1, 1.0)
    heads = values.integer("num_attention_heads")
    kv_heads = values.integer("num_key_value_heads", traits.default_kv_heads or heads)
    if heads % kv_heads:
        raise values.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    hidden = values.width("hidden_size")
    head_dim = values.width("head_dim", traits.default_head_dim or _head_dim(values, hidden, heads))
    intermediate = values.width("intermediate_size")
    for key, width in (
        ("num_attention_heads * head_dim", heads * head_dim),
        ("intermediate_size", intermediate),
    ):
        if width % (16 * linear_segments):
            raise ConfigError(
                f"linear_segments is {linear_segments} and {values.source}'s {key} is {width}: "
                f"the width must be a multiple of 16 * linear_segments."
            )
    return DecoderConfig(
        vocab_size=values.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=values.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        rms_eps=values.number("rms_norm_eps", 1e-6),
        inverse_frequencies=_frequencies(values, head_dim),
        windows=traits.windows,
        max_positions=values.integer("max_position_embeddings", low=16),
        dtype=dtype,
        qk_norm=traits.qk_norm,
        qkv_bias=traits.qkv_bias,
        o_bias=traits.o_bias,
        mlp_bias=traits.mlp_bias,
        tie_word_embeddings=values.flag("tie_word_embeddings"),
        linear_segments=linear_segments,
        sums=sums,
    )


def sliding_windows(values: ConfigValues, default_first: int) -> tuple[int, ...]:
    """Read Qwen's windows: by layer_types, or all layers from max_window_layers on."""
    num_layers = values.integer("num_hidden_layers")
    window = 0
    if values.flag("use_sliding_window"):
        window = values.integer("sliding_window", 4096)
    kinds = values.get("layer_types")
    if kinds is None:
        first = values.integer("max_window_layers", default_first, low=0)
        return tuple(window if index >= first else 0 for index in range(num_layers))
    known = {"full_attention": 0, "sliding_attention": window}
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or not all(isinstance(kind, str) and kind in known for kind in kinds)
    ):
        raise values.wrong("layer_types", f"a list of {num_layers} of {tuple(known)}")
    return tuple(known[kind] for kind in kinds)


def _head_dim(values: ConfigValues, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise values.wrong("num_attention_heads", f"a divisor of hidden_size ({hidden})")
    return hidden // heads


def _frequencies(values: ConfigValues, head_dim: int) -> tuple[float, ...]:
    """Read rope_parameters (transformers 5) or rope_theta and rope_scaling (before)."""
    theta = values.number("rope_theta", 10000.0)
    scaling = values.section("rope_parameters")
    if scaling is None:
        scaling = values.section("rope_scaling")
    if scaling is None:
        return default_frequencies(head_dim, theta)
    scaling.demand("partial_rotary_factor", 1, 1.0)
    theta = scaling.number("rope_theta", theta)
    if any(isinstance(value, dict) for value in scaling.values.values()):
        raise ConfigError(f"{scaling.source} differs between layers: it must be one for all.")
    key = "type" if "type" in scaling.values else "rope_type"
    match scaling.get(key):
        case None | "default":
            return default_frequencies(head_dim, theta)
        case "linear":
            return linear_frequencies(head_dim, theta, scaling.number("factor"))
        case "llama3":
            low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
            if not low < high:
                raise scaling.wrong("high_freq_factor", f"above low_freq_factor ({low:g})")
            length = scaling.integer(
                "original_max_position_embeddings", values.integer("max_position_embeddings")
            )
            parameters = Llama3Scaling(scaling.number("factor"), low, high, length)
            return llama3_frequencies(head_dim, theta, parameters)
    raise scaling.wrong(key, "'default', 'linear' or 'llama3'")
