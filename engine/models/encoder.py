"""EncoderModel: the layers of BERT-like families over `Ops`, as a step computes them.

A sequence is computed whole, in one step: every token sees all others. So keys and values are of no
use once a layer is done, and all layers share one memory of them. `reference.encoder` is its
definition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference.decoder import Hidden
from ...reference.encoder import EncoderConfig, EncoderWeights, bent, embed_typed, unturned
from ...reference.ops import Batch, KVCache, Ops
from .base import DecoderModel, Tail
from .pooler import Pooler


class EncoderModel:
    """An encoder that computes steps of whole sequences."""

    sees_ahead = True

    def __init__(
        self, config: EncoderConfig, weights: EncoderWeights, ops: Ops, pooler: Pooler
    ) -> None:
        self.pooler = pooler
        self.config = config
        self.weights = weights
        self.ops = ops
        self._cos_sin = unturned(config.max_positions, config.head_dim).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so everything else."""
        return self.weights.words.device

    def new_caches(self, num_blocks: int, block_size: int) -> list[KVCache]:
        """Allocate the memory that all layers share."""
        config = self.config
        return [
            self.ops.new_kv_cache(
                num_blocks,
                block_size,
                config.num_kv_heads,
                config.head_dim,
                config.dtype,
                sums=config.sums,
                device=self.device,
            )
        ]

    def hidden(
        self,
        tokens: Tensor,
        batch: Batch,
        caches: Sequence[KVCache],
        tail: Tail | None,
        taps: tuple[int, ...] = (),
    ) -> Hidden:
        """Return the last layer's states of all tokens [tokens] int32; nobody asks for less."""
        assert tail is None and not taps, (tail, taps)
        ops, eps, scale, (cache,) = self.ops, self.config.eps, self.config.scale, caches
        norm = self.weights.norm
        x = embed_typed(self.config, self.weights, tokens, batch.positions)
        x = ops.layer_norm(x, norm.weight, norm.bias, eps)
        for layer in self.weights.layers:
            first, last = layer.attention_norm, layer.output_norm
            q = ops.qkv_post(ops.linear(x, layer.qkv), batch, self._cos_sin, None, eps, cache)
            seen = ops.paged_attention(q, cache, batch, scale=scale, causal=False)
            out = ops.linear(seen.view(len(x), -1), layer.o)
            x = ops.add_layer_norm(out, x, first.weight, first.bias, eps)
            wide = bent(ops.linear(x, layer.up), self.config.bend, ops.gelu, ops.silu_mul)
            out = ops.linear(wide, layer.down)
            x = ops.add_layer_norm(out, x, last.weight, last.bias, eps)
        return Hidden(x, ())

    def logits(self, hidden: Tensor) -> Tensor:
        """An encoder draws no tokens."""
        raise AssertionError("an encoder has no logits")


Model = DecoderModel | EncoderModel
"""What a runner takes."""
