"""The network that the demo trains: Qwen3's mathematics in a small PyTorch module.

Parameters carry the names of transformers' Qwen3ForCausalLM, so the state dict is the checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON = 1e-6
ROPE_THETA = 10_000.0
MAX_POSITIONS = 2048

LayerCache = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of a network."""

    num_layers: int
    hidden_size: int = 256
    intermediate_size: int = 704
    num_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    vocab_size: int = 2048

    def config(self, end_ids: list[int]) -> dict[str, Any]:
        """Return the checkpoint's config.json."""
        sizes = asdict(self)
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": end_ids[-1],
            "dtype": "bfloat16",
            "eos_token_id": end_ids[0],
            "head_dim": sizes["head_dim"],
            "hidden_act": "silu",
            "hidden_size": sizes["hidden_size"],
            "initializer_range": 0.02,
            "intermediate_size": sizes["intermediate_size"],
            "max_position_embeddings": MAX_POSITIONS,
            "max_window_layers": sizes["num_layers"],
            "model_type": "qwen3",
            "num_attention_heads": sizes["num_heads"],
            "num_hidden_layers": sizes["num_layers"],
            "num_key_value_heads": sizes["num_key_value_heads"],
            "rms_norm_eps": NORM_EPSILON,
            "rope_scaling": None,
            "rope_theta": ROPE_THETA,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": sizes["vocab_size"],
        }


class RMSNorm(nn.Module):
    """Root mean square norm with a learned scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, hidden: Tensor) -> Tensor:
        weight = self.weight.float()
        normed = functional.rms_norm(hidden.float(), weight.shape, weight, NORM_EPSILON)
        return normed.to(hidden.dtype)


def rotary_table(start: int, stop: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine for a range of positions, each [positions, head_dim]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(start, stop, dtype=torch.float32), ROPE_THETA**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate [batch, heads, positions, head_dim] by position, halves split."""
    cosine, sine = table
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return heads * cosine.to(heads.dtype) + turned * sine.to(heads.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Mix values causally; all are [batch, heads, positions, head_dim].

    On a processor and at these lengths, this is faster to train than the fused attention.
    """
    num_rows, num_columns = query.shape[2], key.shape[2]
    blocked = torch.full((num_rows, num_columns), -1e9, dtype=query.dtype)
    mask = blocked.triu(num_columns - num_rows + 1)
    flat_query, flat_key, flat_value = (heads.flatten(0, 1) for heads in (query, key, value))
    scores = torch.baddbmm(mask, flat_query, flat_key.mT, alpha=query.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(dim=-1).to(value.dtype), flat_value).view_as(query)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        query_size = shape.num_heads * shape.head_dim
        key_size = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim)
        self.k_norm = RMSNorm(shape.head_dim)

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, self.head_dim)

    def forward(
        self, hidden: Tensor, table: tuple[Tensor, Tensor], cache: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        query = rotate(self.q_norm(self._heads(self.q_proj(hidden))).transpose(1, 2), table)
        key = rotate(self.k_norm(self._heads(self.k_proj(hidden))).transpose(1, 2), table)
        value = self._heads(self.v_proj(hidden)).transpose(1, 2)
        if cache is not None:
            key = torch.cat((cache[0], key), dim=2)
            value = torch.cat((cache[1], value), dim=2)
        mixed = attend(
            query,
            key.repeat_interleave(query.shape[1] // key.shape[1], dim=1),
            value.repeat_interleave(query.shape[1] // value.shape[1], dim=1),
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), (key, value)


class FeedForward(nn.Module):
    """Gated feed-forward block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gated = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        down: Tensor = self.down_proj(gated)
        return down


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size)

    def forward(
        self, hidden: Tensor, table: tuple[Tensor, Tensor], cache: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        mixed, cache = self.self_attn(self.input_layernorm(hidden), table, cache)
        hidden = hidden + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), cache


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size)


class Network(nn.Module):
    """A causal language model whose output weights are its embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self, token_ids: Tensor, caches: list[LayerCache] | None = None
    ) -> tuple[Tensor, list[LayerCache]]:
        """Return the final hidden states [batch, positions, hidden] and the layers' caches."""
        start = caches[0][0].shape[2] if caches else 0
        table = rotary_table(start, start + token_ids.shape[1], self.shape.head_dim)
        hidden = self.model.embed_tokens(token_ids)
        new_caches = []
        for index, layer in enumerate(self.model.layers):
            hidden, cache = layer(hidden, table, caches[index] if caches else None)
            new_caches.append(cache)
        return self.model.norm(hidden), new_caches

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the next token's logits for hidden states."""
        return functional.linear(hidden, self.model.embed_tokens.weight)

    @torch.no_grad()
    def greedy(self, prompt_ids: list[int], end_ids: list[int], max_tokens: int) -> list[int]:
        """Continue a prompt greedily; the end token, if it comes, is the last one returned."""
        hidden, caches = self(torch.tensor([prompt_ids]))
        generated: list[int] = []
        while len(generated) < max_tokens:
            generated.append(int(self.logits(hidden[:, -1]).argmax()))
            if generated[-1] in end_ids:
                break
            hidden, caches = self(torch.tensor([generated[-1:]]), caches)
        return generated

    @property
    def num_parameters(self) -> int:
        """The number of parameters, the tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
