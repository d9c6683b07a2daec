"""Tiny random models of every family: checkpoints made by transformers itself, or weights alone.

Folders are what `save_pretrained` writes; transformers is imported inside, for it takes seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..engine.config import Backend, DTypeName
from ..engine.models.base import DecoderModel
from ..engine.models.registry import ModelConfig, read_model_config
from ..engine.models.weights import WeightBuilder
from ..engine.opset import choose_ops, choose_sums
from ..reference.decoder import DecoderConfig, DecoderWeights
from ..reference.ops import Ops

Kind = Literal["llama2", "llama3", "mistral", "qwen2", "qwen3"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Made(NamedTuple):
    """A checkpoint and transformers' own model of it, float32."""

    kind: Kind
    path: Path
    model: Any


class Tiny(NamedTuple):
    """A model with random weights on one backend, and what the oracle needs of it."""

    config: DecoderConfig
    weights: DecoderWeights
    """The same weights, packed for the reference."""
    model: DecoderModel
    ops: Ops


VOCAB_SIZE = 157
MAX_POSITIONS = 320
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
OWN: dict[Kind, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 24, "head_dim": 48}),
    "qwen2": (
        "Qwen2",
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 40,
            "max_window_layers": 2,
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}),
}


def make_checkpoint(
    kind: Kind,
    folder: Path,
    *,
    seed: int = 0,
    sharded: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Write a checkpoint into folder and return it. changes: fields of the config."""
    model = make_model(kind, seed=seed, **changes).to(dtype)
    model.save_pretrained(folder, max_shard_size="40KB" if sharded else "1GB")
    return folder


def make_model(kind: Kind, *, seed: int = 0, **changes: Any) -> Any:
    """Build transformers' own model in float32, with random norms and biases too."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs
    name, own = OWN[kind]
    config = getattr(transformers, f"{name}Config")(**(SHAPE | own | changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(noise(key, parameter.shape, generator))
    return model


def write_config(kind: Kind, folder: Path, **changes: Any) -> Path:
    """Write a config.json alone, in the spelling before transformers 5; without transformers."""
    name, own = OWN[kind]
    fields = SHAPE | own | {"hidden_act": "silu", "torch_dtype": "float32"} | changes
    rope = dict(fields.pop("rope_parameters", None) or {})
    fields["rope_theta"] = rope.pop("rope_theta", 10000.0)
    fields["rope_scaling"] = rope or None
    fields["architectures"] = [f"{name}ForCausalLM"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def random_weights(config: ModelConfig, ops: Ops, seed: int = 0) -> DecoderWeights:
    """Fill a model with random matrices, norms and biases, without any file."""
    builder = WeightBuilder(config.decoder, config.family.names, ops)
    generator = torch.Generator().manual_seed(seed)
    for key, part in builder.parts.items():
        builder.place(key, noise(key, part.shape, generator))
    return builder.build()


def make_tiny(kind: Kind, folder: Path, dtype: DTypeName, backend: Backend) -> Tiny:
    """Build a tiny model by way of a config in folder; Llama 3 with two linear segments."""
    write_config(kind, folder, attention_bias=kind == "llama2")
    segments, sums = 2 if kind == "llama3" else 1, choose_sums("auto")
    config = read_model_config(folder, dtype, segments, sums)
    ops = choose_ops("cpu", backend)
    model = DecoderModel(config.decoder, random_weights(config, ops), ops)
    return Tiny(config.decoder, random_weights(config, choose_ops("cpu", "reference")), model, ops)


def noise(key: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Matrices that keep a vector's size, norms around one, biases around zero."""
    noise = torch.randn(tuple(shape), generator=generator)
    if len(shape) == 2:
        return noise / math.sqrt(shape[1])
    return noise * 0.2 + (0.0 if key.endswith(".bias") else 1.0)
