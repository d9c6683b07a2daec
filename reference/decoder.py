"""A whole decoder-only model on one dense sequence: the oracle of every token of the engine.

Owns the shape of a model (`DecoderConfig`), its weights in the form that the operations take
(`DecoderWeights`) and its table of rotary angles. Computes all positions of a sequence at once, in
one KV block, with the operations of this folder: no paging, no chunks, no neighbours. Imports torch
and `reference` only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import paged_attention
from .embedding import embed
from .kv import new_kv_cache
from .linear import gated_linear, linear
from .norm import rms_norm
from .ops import KV_TILE, Batch, PackedLinear
from .rope import qkv_post
from .sums import Sums


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The shape of a Llama-like model: all that its arithmetic depends on but the weights."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_eps: float
    inverse_frequencies: tuple[float, ...]
    """[head_dim / 2] radians a position, in float64, scaling included."""
    windows: tuple[int, ...]
    """[num_layers] keys that a query sees, itself included; 0: all."""
    max_positions: int
    dtype: torch.dtype
    """float32 or bfloat16."""
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    linear_segments: int = 1
    """K segments of the row-parallel matmuls: attention output and MLP down."""
    sums: Sums = "pairs"
    """The order in which products of bfloat16 are added."""

    def __post_init__(self) -> None:
        assert self.num_heads % self.num_kv_heads == 0, (self.num_heads, self.num_kv_heads)
        assert len(self.inverse_frequencies) * 2 == self.head_dim, self.head_dim
        assert len(self.windows) == self.num_layers, (len(self.windows), self.num_layers)

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def num_kv_layers(self) -> int:
        """Layers that keep keys and values."""
        return self.num_layers

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One layer. Norms are [hidden] dtype."""

    input_norm: Tensor
    qkv: PackedLinear
    """hidden -> q, k, v side by side."""
    qk_norms: tuple[Tensor, Tensor] | None
    """[head_dim] dtype each, where the config has qk_norm."""
    o: PackedLinear
    post_norm: Tensor
    gate_up: PackedLinear
    """hidden -> gate, up side by side."""
    down: PackedLinear


@dataclass(frozen=True, slots=True, eq=False)
class DecoderWeights:
    """A whole model. embedding: [vocab, hidden] dtype; final_norm: [hidden] dtype."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: PackedLinear | None
    """None: it draws no tokens."""


TABLE_ROWS = 64


def rotary_table(inverse_frequencies: tuple[float, ...], num_positions: int) -> Tensor:
    """Return [num_positions, head_dim] float32: cosines of the frequencies, then sines.

    Angles, cosines and sines in float64, one rounding. Always computed TABLE_ROWS positions at a
    time, because a vector unit may give the end of an array other bits than its middle: so no entry
    depends on the table's length or on the number of threads.
    """
    frequencies = torch.tensor(inverse_frequencies, dtype=torch.float64)
    half = len(inverse_frequencies)
    table = torch.empty(-(-num_positions // TABLE_ROWS), TABLE_ROWS, 2 * half)
    for block_index, rows in enumerate(table):
        first = block_index * TABLE_ROWS
        positions = torch.arange(first, first + TABLE_ROWS, dtype=torch.float64)
        angles = positions[:, None] * frequencies
        rows[:, :half] = angles.cos()
        rows[:, half:] = angles.sin()
    return table.view(-1, 2 * half)[:num_positions]


class Hidden(NamedTuple):
    """What a model computes of a sequence, [n, hidden] dtype each."""

    last: Tensor
    """Behind the final norm: what logits are computed from."""
    taps: tuple[Tensor, ...]
    """What flows into some layers."""


def logits(config: DecoderConfig, weights: DecoderWeights, tokens: Tensor) -> Tensor:
    """Return the logits after every token of a sequence: tokens [n] int32 -> [n, vocab] dtype."""
    assert weights.head is not None, "a model without a head"
    return linear(hidden(config, weights, tokens).last, weights.head)


def hidden(
    config: DecoderConfig, weights: DecoderWeights, tokens: Tensor, taps: tuple[int, ...] = ()
) -> Hidden:
    """Compute a sequence, tokens [n] int32. taps: layers whose inputs are wanted."""
    num_tokens = len(tokens)
    assert 0 < num_tokens <= config.max_positions, (num_tokens, config.max_positions)
    residual = embed(tokens, weights.embedding)
    inputs = []
    for layer, window in zip(weights.layers, config.windows, strict=True):
        inputs.append(residual)
        hidden = rms_norm(residual, layer.input_norm, config.rms_eps)
        residual = layer_output(config, layer, hidden, residual, window)
    last = rms_norm(residual, weights.final_norm, config.rms_eps)
    return Hidden(last, tuple(inputs[index] for index in taps))


def layer_output(
    config: DecoderConfig, layer: LayerWeights, hidden: Tensor, residual: Tensor, window: int
) -> Tensor:
    """Compute a layer over a whole sequence: hidden [n, in of qkv] and residual [n, hidden], what
    the layer's output is added to."""
    num_tokens = len(hidden)
    batch = whole(num_tokens)
    cos_sin = rotary_table(config.inverse_frequencies, num_tokens)
    cache = new_kv_cache(
        1,
        block_size_of(num_tokens),
        config.num_kv_heads,
        config.head_dim,
        config.dtype,
        sums=config.sums,
    )
    qkv = linear(hidden, layer.qkv)
    q = qkv_post(qkv, batch, cos_sin, layer.qk_norms, config.rms_eps, cache)
    seen = paged_attention(q, cache, batch, scale=config.scale, window=window)
    residual = residual + linear(seen.reshape(num_tokens, config.q_size), layer.o)
    hidden = gated_linear(rms_norm(residual, layer.post_norm, config.rms_eps), layer.gate_up)
    return residual + linear(hidden, layer.down)


def block_size_of(num_tokens: int) -> int:
    """Return the size of the one block that holds so many tokens."""
    return -(-num_tokens // KV_TILE) * KV_TILE


def whole(num_tokens: int) -> Batch:
    """One row that starts at position 0, in one block."""
    return Batch(
        positions=torch.arange(num_tokens, dtype=torch.int32),
        places=torch.arange(num_tokens),
        query_starts=torch.tensor([0, num_tokens], dtype=torch.int32),
        kv_lens=torch.tensor([num_tokens], dtype=torch.int32),
        slots=torch.zeros(1, dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
    )
