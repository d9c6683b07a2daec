"""Shapes of known models, checkpoints of them without weights, and the least time of a step.

Pure but for `write_checkpoint`. Rates are those of one H200.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

BYTES_PER_S = 4.3e12
"""A large copy, counting bytes read and written."""
FLOP_PER_S = 790e12
"""A large product of bfloat16."""


class ModelShape(NamedTuple):
    """A dense Llama-like model in bfloat16."""

    name: str
    family: str
    """qwen3 or llama."""
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    tied: bool
    qk_norm: bool


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("qwen3-0.6b", "qwen3", 151936, 1024, 3072, 28, 16, 8, 128, 1e6, True, True),
        ModelShape("qwen3-8b", "qwen3", 151936, 4096, 12288, 36, 32, 8, 128, 1e6, False, True),
        ModelShape("llama3-8b", "llama", 128256, 4096, 14336, 32, 32, 8, 128, 5e5, False, False),
    )
}


def write_checkpoint(shape: ModelShape, folder: Path) -> None:
    """Write config.json, for --load-format dummy."""
    architecture = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[shape.family]
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": shape.family,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": shape.vocab - 2,
        "eos_token_id": shape.vocab - 1,
    }
    (folder / "config.json").write_text(json.dumps(config))


def matrices(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Return (out, in) of a layer's matrices, fused as every engine has them, and the head's."""
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "qkv": (heads + 2 * kv, shape.hidden),
        "o": (shape.hidden, heads),
        "gate_up": (2 * shape.intermediate, shape.hidden),
        "down": (shape.hidden, shape.intermediate),
        "head": (shape.vocab, shape.hidden),
    }


def matrix_parameters(shape: ModelShape) -> int:
    """Return the weights that every token is multiplied by: all layers and the head."""
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = shape.hidden * (2 * heads + 2 * kv + 3 * shape.intermediate)
    return shape.layers * layer + shape.vocab * shape.hidden


def weight_bytes(shape: ModelShape) -> int:
    """Return the bytes of weights that a decode step reads; no rows of the embedding, no norms."""
    return 2 * matrix_parameters(shape)


def flops_per_token(shape: ModelShape) -> int:
    """Return the operations of a token's matrices, without attention."""
    return 2 * matrix_parameters(shape)


def prefill_flops(shape: ModelShape, num_tokens: int) -> float:
    """Return the operations of a prompt of which the last token alone has logits."""
    attention = 2 * num_tokens**2 * shape.heads * shape.head_dim * shape.layers
    layers = flops_per_token(shape) - 2 * shape.vocab * shape.hidden
    return num_tokens * layers + attention


def kv_bytes_per_token(shape: ModelShape) -> int:
    """Return the bytes of a token's keys and values in all layers."""
    return 4 * shape.layers * shape.kv_heads * shape.head_dim


def decode_floor_ms(
    shape: ModelShape,
    batch: int,
    context: int,
    bandwidth: float = BYTES_PER_S,
    flops: float = FLOP_PER_S,
) -> float:
    """Return the least time of a decode step: weights, or their arithmetic; keys and values."""
    weights_s = weight_bytes(shape) / bandwidth
    arithmetic_s = batch * flops_per_token(shape) / flops
    kv_s = batch * context * kv_bytes_per_token(shape) / bandwidth
    return (max(weights_s, arithmetic_s) + kv_s) * 1e3
