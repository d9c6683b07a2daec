"""BERT and its kin: encoders, whose families differ in names, positions and heads.

RoBERTa and XLM-RoBERTa (Liu et al. 2019, arXiv:1907.11692; Conneau et al. 2020, arXiv:1911.02116)
count positions from behind the padding token's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ...reference.encoder import Bend, EncoderConfig
from ...reference.sums import Sums
from ..vectors import Stage
from .pooling import read_labels
from .values import ConfigValues

BENDS: dict[str, Bend] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""transformers' names."""

StagesOf = Callable[[ConfigValues, str], tuple[Stage, ...]]


class EncoderFamily(NamedTuple):
    """One architecture."""

    architecture: str
    """As in config.json's `architectures`."""
    prefix: str
    """Before the names of tensors, where the checkpoint has it."""
    pads_first: bool = False
    """Whether positions begin behind the padding token's."""
    stages: StagesOf | None = None
    """The head of a classifier, by its config and the prefix."""
    ignored: tuple[str, ...] = ()
    """Beginnings of names that the model needs not."""


def _bert_stages(values: ConfigValues, prefix: str) -> tuple[Stage, ...]:
    hidden, labels = values.width("hidden_size"), len(read_labels(values))
    return (
        Stage(f"{prefix}pooler.dense", (hidden, hidden), True, "tanh"),
        Stage("classifier", (labels, hidden), True, "identity"),
    )


def _roberta_stages(values: ConfigValues, prefix: str) -> tuple[Stage, ...]:
    hidden, labels = values.width("hidden_size"), len(read_labels(values))
    return (
        Stage("classifier.dense", (hidden, hidden), True, "tanh"),
        Stage("classifier.out_proj", (labels, hidden), True, "identity"),
    )


def _families(name: str, prefix: str, stages: StagesOf, *, pads_first: bool) -> list[EncoderFamily]:
    """The three architectures of a kind: plain, trained on masked words, classifying."""
    rest = (f"{prefix}pooler.", "pooler.")
    heads = ("cls.", "lm_head.")
    return [
        EncoderFamily(f"{name}Model", prefix, pads_first, None, rest + heads),
        EncoderFamily(f"{name}ForMaskedLM", prefix, pads_first, None, rest + heads),
        EncoderFamily(
            f"{name}ForSequenceClassification",
            prefix,
            pads_first,
            stages,
            () if stages is _bert_stages else rest,
        ),
    ]


FAMILIES = [
    *_families("Bert", "bert.", _bert_stages, pads_first=False),
    *_families("Roberta", "roberta.", _roberta_stages, pads_first=True),
    *_families("XLMRoberta", "roberta.", _roberta_stages, pads_first=True),
]


def encoder_config(
    values: ConfigValues,
    family: EncoderFamily,
    dtype: torch.dtype,
    linear_segments: int,
    sums: Sums,
) -> EncoderConfig:
    """Read the shape. Raises ConfigError for everything that is not supported."""
    act = values.get("hidden_act") or "gelu"
    if act not in BENDS:
        raise values.wrong("hidden_act", f"one of {', '.join(BENDS)}")
    values.demand("position_embedding_type", "absolute")
    values.demand("is_decoder", False)
    values.demand("add_cross_attention", False)
    values.demand("quantization_config")
    heads, hidden = values.integer("num_attention_heads"), values.width("hidden_size")
    if hidden % (16 * heads):
        allowed = f"a divisor of hidden_size ({hidden}) that leaves heads of a multiple of 16"
        raise values.wrong("num_attention_heads", allowed)
    offset = values.integer("pad_token_id", 1, low=0) + 1 if family.pads_first else 0
    return EncoderConfig(
        vocab_size=values.integer("vocab_size"),
        num_types=values.integer("type_vocab_size", 2),
        hidden_size=hidden,
        num_layers=values.integer("num_hidden_layers"),
        num_heads=heads,
        intermediate_size=values.width("intermediate_size"),
        eps=values.number("layer_norm_eps", 1e-12),
        max_positions=values.integer("max_position_embeddings", 512, low=offset + 1) - offset,
        position_offset=offset,
        dtype=dtype,
        linear_segments=linear_segments,
        sums=sums,
        bend=BENDS[act],
    )
