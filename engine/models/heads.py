"""HeadModel: one layer that guesses from what the target has computed, over paged memory.

Computes; owns no state but its weights and angles. `reference.heads` is its definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.decoder import rotary_table
from ...reference.heads import Computed, Entered, HeadConfig, HeadWeights
from ...reference.ops import Batch, KVCache, Ops


class HeadModel:
    """A head. An entry is at the position of the token whose state it has."""

    def __init__(self, config: HeadConfig, weights: HeadWeights, ops: Ops, vocab_size: int) -> None:
        """vocab_size: the target's."""
        self.config = config
        self.weights = weights
        self.ops = ops
        layer = config.layer
        table = rotary_table(layer.inverse_frequencies, layer.max_positions)
        self._cos_sin = table.to(weights.embedding.device)
        self._columns: Tensor | None = None
        """[vocab of the target] int64: where its logits are among the head's, which have one more
        that is never drawn."""
        if weights.targets is not None:
            columns = torch.full((vocab_size,), layer.vocab_size, device=self._cos_sin.device)
            columns[weights.targets] = torch.arange(layer.vocab_size, device=columns.device)
            self._columns = columns

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        """Allocate the KV memory."""
        layer = self.config.layer
        return self.ops.new_kv_cache(
            num_blocks,
            block_size,
            layer.num_kv_heads,
            layer.head_dim,
            layer.dtype,
            sums=layer.sums,
            device=self._cos_sin.device,
        )

    def states(self, taps: tuple[Tensor, ...]) -> Tensor:
        """Return [tokens, hidden] of what the target has computed; see reference.heads.state."""
        if self.config.kind == "mtp":
            (last,) = taps
            return last
        return self.ops.linear(torch.cat(taps, dim=1), self.weights.join)

    def write(self, tokens: Tensor, states: Tensor, batch: Batch, cache: KVCache) -> None:
        """Write keys and values of entries: tokens [entries] int32, states [entries, hidden]."""
        self._attend(self._enter(tokens, states), batch, cache)

    def compute(self, tokens: Tensor, states: Tensor, batch: Batch, cache: KVCache) -> Computed:
        """Compute entries whole."""
        ops, weights, layer = self.ops, self.weights.layer, self.config.layer
        entered = self._enter(tokens, states)
        q, residual = self._attend(entered, batch, cache), entered.residual.clone()
        (window,) = layer.windows
        seen = ops.paged_attention(q, cache, batch, scale=layer.scale, window=window)
        hidden = ops.linear(seen.view(-1, layer.q_size), weights.o)
        hidden = ops.add_rms_norm(hidden, residual, weights.post_norm, layer.rms_eps)
        hidden = ops.linear(ops.gated_linear(hidden, weights.gate_up), weights.down)
        last = ops.add_rms_norm(hidden, residual, self.weights.final_norm, layer.rms_eps)
        return Computed(last, last if self.config.carries_normed else residual)

    def logits(self, last: Tensor) -> Tensor:
        """Return logits [entries, vocab of the target]; see reference.heads.logits."""
        found = self.ops.linear(last, self.weights.head)
        if self._columns is None:
            return found
        never = found.new_full((len(found), 1), -torch.inf)
        return torch.cat((found, never), dim=1).index_select(1, self._columns)

    def _enter(self, tokens: Tensor, states: Tensor) -> Entered:
        ops, weights, config = self.ops, self.weights, self.config
        eps = config.layer.rms_eps
        token = ops.rms_norm(ops.embed(tokens, weights.embedding), weights.token_norm, eps)
        normed = ops.rms_norm(states, weights.state_norm, eps)
        if config.kind == "eagle3":
            joined = torch.cat((token, normed), dim=1)
            return Entered(joined, normed if config.adds_to_normed else states)
        pair = (normed, token) if config.state_first else (token, normed)
        residual = ops.linear(torch.cat(pair, dim=1), weights.join)
        return Entered(ops.rms_norm(residual, weights.layer.input_norm, eps), residual)

    def _attend(self, entered: Entered, batch: Batch, cache: KVCache) -> Tensor:
        """Write keys and values; return the queries."""
        weights, eps = self.weights.layer, self.config.layer.rms_eps
        qkv = self.ops.linear(entered.hidden, weights.qkv)
        return self.ops.qkv_post(qkv, batch, self._cos_sin, weights.qk_norms, eps, cache)
