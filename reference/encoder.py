"""A whole encoder (BERT: Devlin et al. 2019, arXiv:1810.04805) on one dense sequence: the oracle.

Owns the shape of an encoder (`EncoderConfig`) and its weights in the form that the operations take
(`EncoderWeights`). Every token sees all of its sequence; norms stand behind what is added. A token
of a second text has its id plus vocab_size: so one array says words and types.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .activation import gelu, silu_mul
from .attention import paged_attention
from .decoder import block_size_of, whole
from .embedding import embed
from .kv import new_kv_cache
from .linear import linear
from .norm import add_layer_norm, layer_norm
from .ops import PackedLinear
from .rope import qkv_post
from .sums import Sums

Bend = Literal["gelu", "gelu_tanh", "relu", "silu"]
"""What stands between a layer's two last matrices."""
TANH_SLOPE = 2 * math.sqrt(2 / math.pi)
TANH_CUBE = 0.044715
"""Of GELU by tanh (Hendrycks and Gimpel 2016): x * sigmoid(TANH_SLOPE * (x + TANH_CUBE * x^3))."""
STRAIGHT = 32.0
"""From here on that is x or nothing, to the last bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The shape of an encoder: all that its arithmetic depends on but the weights."""

    vocab_size: int
    """Words of one text."""
    num_types: int
    """Texts that a sequence may hold: 1 or 2; BERT's token types."""
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    eps: float
    max_positions: int
    """Tokens of the longest sequence."""
    position_offset: int
    """Rows of the table of positions before the first that is used."""
    dtype: torch.dtype
    """float32 or bfloat16."""
    linear_segments: int = 1
    sums: Sums = "pairs"
    bend: Bend = "gelu"

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Each head has its own keys."""
        return self.num_heads

    @property
    def num_kv_layers(self) -> int:
        """Layers that keep keys and values: one memory serves all."""
        return 1

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def num_ids(self) -> int:
        """Ids that a sequence may hold."""
        return self.num_types * self.vocab_size


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A layer norm: [hidden] dtype each."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class EncoderLayer:
    """One layer, in the order of its operations."""

    qkv: PackedLinear
    """hidden -> q, k, v side by side."""
    o: PackedLinear
    attention_norm: Norm
    up: PackedLinear
    down: PackedLinear
    output_norm: Norm


@dataclass(frozen=True, slots=True, eq=False)
class EncoderWeights:
    """A whole encoder. words: [vocab, hidden], positions: [offset + positions, hidden], types:
    [types, hidden], all dtype."""

    words: Tensor
    positions: Tensor
    types: Tensor
    norm: Norm
    layers: tuple[EncoderLayer, ...]


def unturned(num_positions: int, head_dim: int) -> Tensor:
    """Return the table of angles of a model that does not rotate: cosines of one, sines of zero."""
    table = torch.zeros(num_positions, head_dim)
    table[:, : head_dim // 2] = 1.0
    return table


def embed_typed(
    config: EncoderConfig, weights: EncoderWeights, tokens: Tensor, positions: Tensor
) -> Tensor:
    """Return word + type + position of tokens, positions [tokens] int32: [tokens, hidden] dtype,
    added in float32, rounded once."""
    types = tokens // config.vocab_size
    words = embed(tokens - types * config.vocab_size, weights.words).float()
    total = words + embed(types, weights.types).float()
    places = positions + config.position_offset
    return (total + embed(places, weights.positions).float()).to(config.dtype)


def bent(
    x: Tensor,
    kind: Bend,
    gelu: Callable[[Tensor], Tensor],
    silu_mul: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return an activation of x [tokens, width] dtype, made of two operations of a backend.

    What torch does beside them is elementwise, each step rounded once: the same bits everywhere.
    """
    match kind:
        case "gelu":
            return gelu(x)
        case "relu":
            return x.clamp(min=0.0)
        case "silu":
            return silu_mul(torch.cat((x, torch.ones_like(x)), 1))
        case "gelu_tanh":
            wide = x.float()
            # silu(slope * x) / slope is x * sigmoid(slope * x).
            slope = (wide * wide * TANH_CUBE + 1.0) * TANH_SLOPE
            made = silu_mul(torch.cat((slope * wide, 1.0 / slope), 1))
            return torch.where(wide.abs() < STRAIGHT, made, wide.clamp(min=0.0)).to(x.dtype)


def hidden(config: EncoderConfig, weights: EncoderWeights, tokens: Tensor) -> Tensor:
    """Return what the last layer gives of a sequence: tokens [n] int32 -> [n, hidden] dtype."""
    num_tokens = len(tokens)
    assert 0 < num_tokens <= config.max_positions, (num_tokens, config.max_positions)
    positions = torch.arange(num_tokens, dtype=torch.int32)
    batch, cos_sin = whole(num_tokens), unturned(num_tokens, config.head_dim)
    cache = new_kv_cache(
        1,
        block_size_of(num_tokens),
        config.num_heads,
        config.head_dim,
        config.dtype,
        sums=config.sums,
    )
    x = embed_typed(config, weights, tokens, positions)
    x = layer_norm(x, weights.norm.weight, weights.norm.bias, config.eps)
    for layer in weights.layers:
        q = qkv_post(linear(x, layer.qkv), batch, cos_sin, None, config.eps, cache)
        seen = paged_attention(q, cache, batch, scale=config.scale, causal=False)
        out = linear(seen.reshape(num_tokens, config.hidden_size), layer.o)
        norm = layer.attention_norm
        x = add_layer_norm(out, x, norm.weight, norm.bias, config.eps)
        out = linear(bent(linear(x, layer.up), config.bend, gelu, silu_mul), layer.down)
        norm = layer.output_norm
        x = add_layer_norm(out, x, norm.weight, norm.bias, config.eps)
    return x
