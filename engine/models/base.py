"""DecoderModel: the layers of every Llama-like family as one loop over `Ops`.

Computes; owns no state but its weights and angles. The loop is what a step costs in Python, so
everything is bound before it and nothing is sliced inside. `reference.decoder` is its definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.decoder import DecoderConfig, DecoderWeights, Hidden, rotary_table
from ...reference.ops import Batch, KVCache, Ops, PackedLinear
from .pooler import Pooler


class Tail(NamedTuple):
    """The tokens whose logits are wanted, where that is not all of a step."""

    tokens: Tensor
    """[samples] int64, their indices among the step's tokens."""
    batch: Batch
    """One row for each, of one query."""


class _Layer(NamedTuple):
    """A layer as the loop takes it; `next_norm` is the norm that follows it."""

    qkv: PackedLinear
    qk_norms: tuple[Tensor, Tensor] | None
    o: PackedLinear
    post_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear
    next_norm: Tensor
    window: int


class DecoderModel:
    """A model that computes steps over paged memory."""

    sees_ahead = False
    """Whether a token's states depend on later tokens."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        ops: Ops,
        pooler: Pooler | None = None,
    ) -> None:
        """pooler: what makes vectors of its states; None: it draws tokens."""
        self.pooler = pooler
        self.config = config
        self.weights = weights
        self.ops = ops
        table = rotary_table(config.inverse_frequencies, config.max_positions)
        self._cos_sin = table.to(self.device)
        norms = [layer.input_norm for layer in weights.layers[1:]] + [weights.final_norm]
        self._layers = tuple(
            _Layer(
                qkv=layer.qkv,
                qk_norms=layer.qk_norms,
                o=layer.o,
                post_norm=layer.post_norm,
                gate_up=layer.gate_up,
                down=layer.down,
                next_norm=norm,
                window=window,
            )
            for layer, norm, window in zip(weights.layers, norms, config.windows, strict=True)
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so everything else."""
        return self.weights.embedding.device

    def new_caches(self, num_blocks: int, block_size: int) -> list[KVCache]:
        """Allocate the KV memory of every layer."""
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
            for _ in self._layers
        ]

    def hidden(
        self,
        tokens: Tensor,
        batch: Batch,
        caches: Sequence[KVCache],
        tail: Tail | None,
        taps: tuple[int, ...] = (),
    ) -> Hidden:
        """Write keys and values of tokens [tokens] int32; return what `logits` takes.

        With a tail, everything after the last layer's KV write is computed for the tail's tokens
        only; without, for all. A tail without tokens writes and returns [0, hidden]. taps: layers
        whose inputs are wanted, ascending or not, of all tokens.
        """
        ops, eps, scale = self.ops, self.config.rms_eps, self.config.scale
        linear, gated_linear, add_rms_norm = ops.linear, ops.gated_linear, ops.add_rms_norm
        qkv_post, paged_attention = ops.qkv_post, ops.paged_attention
        cos_sin, q_size = self._cos_sin, self.config.q_size
        last_cache = caches[-1]
        residual = ops.embed(tokens, self.weights.embedding)
        inputs: dict[int, Tensor] = {}
        hidden = ops.rms_norm(residual, self.weights.layers[0].input_norm, eps)
        for index, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            qkv, qk_norms, o, post_norm, gate_up, down, next_norm, window = layer
            if index in taps:
                inputs[index] = residual.clone()
            q = qkv_post(linear(hidden, qkv), batch, cos_sin, qk_norms, eps, cache)
            if tail is not None and cache is last_cache:
                if not len(tail.tokens):
                    return Hidden(residual[:0], tuple(inputs[index] for index in taps))
                q, residual, batch = q[tail.tokens], residual[tail.tokens], tail.batch
            seen = paged_attention(q, cache, batch, scale=scale, window=window)
            hidden = linear(seen.view(-1, q_size), o)
            hidden = add_rms_norm(hidden, residual, post_norm, eps)
            hidden = linear(gated_linear(hidden, gate_up), down)
            hidden = add_rms_norm(hidden, residual, next_norm, eps)
        return Hidden(hidden, tuple(inputs[index] for index in taps))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [samples, vocab] dtype of what `hidden` returned."""
        head = self.weights.head
        assert head is not None, "a model without a head"
        return self.ops.linear(hidden, head)
