"""Tiny random checkpoints that give vectors, made by transformers itself, and their own vectors.

The folders are what `save_pretrained` writes, with sentence-transformers' files beside where a kind
has them. transformers is imported inside, for it takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from .checkpoints import SHAPE, VOCAB_SIZE, noise

MAX_POSITIONS = 96
ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
    "type_vocab_size": 2,
    "pad_token_id": 1,
}
"""Of both kinds of encoder; RoBERTa's positions begin behind the padding token's."""


class Layout(NamedTuple):
    """A kind of checkpoint."""

    model: str
    """transformers' class."""
    config: str
    changes: Mapping[str, Any] = MappingProxyType({})
    pooling: str | tuple[str, ...] | None = None
    """The modes of sentence-transformers' pooling; None: without its files."""
    dense: int = 0
    """Width of a dense layer behind it; 0: none."""
    normalize: bool = True
    encodes: bool = True

    @property
    def modes(self) -> tuple[str, ...]:
        """One or more, in their order."""
        given = self.pooling or "pooling_mode_cls_token"
        return (given,) if isinstance(given, str) else given


LAYOUTS: dict[str, Layout] = {
    "bert": Layout("BertModel", "BertConfig"),
    "roberta": Layout("RobertaModel", "RobertaConfig", {"type_vocab_size": 1}),
    "xlmr": Layout(
        "XLMRobertaModel", "XLMRobertaConfig", {"type_vocab_size": 1}, "pooling_mode_cls_token"
    ),
    "bert-mean-dense": Layout("BertModel", "BertConfig", {}, "pooling_mode_mean_tokens", 48, False),
    "bert-masked": Layout("BertForMaskedLM", "BertConfig", {}, "pooling_mode_max_tokens"),
    "bert-weighted": Layout(
        "BertModel", "BertConfig", {}, "pooling_mode_weightedmean_tokens", normalize=False
    ),
    "bert-classes": Layout("BertForSequenceClassification", "BertConfig", {"num_labels": 3}),
    "xlmr-cross": Layout(
        "XLMRobertaForSequenceClassification",
        "XLMRobertaConfig",
        {"type_vocab_size": 1, "num_labels": 1},
    ),
    "roberta-classes": Layout(
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {"type_vocab_size": 1, "num_labels": 2, "problem_type": "multi_label_classification"},
    ),
    "qwen3-last": Layout(
        "Qwen3Model", "Qwen3Config", {"head_dim": 32}, "pooling_mode_lasttoken", encodes=False
    ),
    "qwen3-classes": Layout(
        "Qwen3ForSequenceClassification",
        "Qwen3Config",
        {"head_dim": 32, "num_labels": 3, "pad_token_id": 2},
        encodes=False,
    ),
    "qwen3-many": Layout(
        "Qwen3Model",
        "Qwen3Config",
        {"head_dim": 32},
        (
            *("pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_tokens"),
            *("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"),
            "pooling_mode_lasttoken",
        ),
        24,
        encodes=False,
    ),
    "llama-mean": Layout(
        "LlamaModel", "LlamaConfig", {}, "pooling_mode_mean_tokens", encodes=False
    ),
}
POOLED_KINDS: tuple[str, ...] = tuple(LAYOUTS)


class PooledCheckpoint(NamedTuple):
    """A checkpoint, and transformers' own model of it in float32."""

    kind: str
    path: Path
    model: Any
    dense: tuple[Tensor, Tensor] | None
    """Weight and bias, with a tanh behind."""

    def vector(
        self, first: Sequence[int], second: Sequence[int] = (), *, skipped: int = 0
    ) -> Tensor:
        """What transformers gives for one text, or for two: [width] float32, as the model has it.

        Behind the pooling and the dense layer, before it is normalized or scored. skipped: tokens
        at the beginning that are not pooled.
        """
        layout, ids = LAYOUTS[self.kind], torch.tensor([[*first, *second]])
        options: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
        if layout.config == "BertConfig":
            types = [0] * len(first) + [1] * len(second)
            options["token_type_ids"] = torch.tensor([types])
        with torch.no_grad():
            if layout.model.endswith("Classification"):
                logits: Tensor = self.model(ids, **options).logits[0]
                return logits
            body = getattr(self.model, "bert", self.model)
            states = body(ids, **options).last_hidden_state[0]
            pooled = torch.cat([pool_as_theirs(states, mode, skipped) for mode in layout.modes])
            if self.dense is not None:
                pooled = torch.tanh(torch.nn.functional.linear(pooled, *self.dense))
            return pooled


def pool_as_theirs(states: Tensor, mode: str, skipped: int = 0) -> Tensor:
    """Pool states [tokens, width] as sentence-transformers defines it, by masks, in float64."""
    wide, places = states.double(), torch.arange(1.0, len(states) + 1)[:, None].double()
    mask = (places > skipped).double()
    match mode.removeprefix("pooling_mode_"):
        case "cls_token":
            pooled = wide[skipped]
        case "max_tokens":
            pooled = wide.masked_fill(mask == 0, -torch.inf).amax(0)
        case "mean_tokens":
            pooled = (wide * mask).sum(0) / mask.sum()
        case "mean_sqrt_len_tokens":
            pooled = (wide * mask).sum(0) / mask.sum().sqrt()
        case "weightedmean_tokens":
            pooled = (wide * mask * places).sum(0) / (mask * places).sum()
        case _:
            assert mode == "pooling_mode_lasttoken", mode
            pooled = wide[-1]
    return pooled.float()


def make_pooled(kind: str, folder: Path, *, seed: int = 0, **changes: Any) -> PooledCheckpoint:
    """Write a checkpoint into folder. changes: fields of the config."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs
    layout = LAYOUTS[kind]
    fields = (ENCODER if layout.encodes else SHAPE) | dict(layout.changes) | changes
    config = getattr(transformers, layout.config)(**fields)
    config._attn_implementation = "eager"
    model = getattr(transformers, layout.model)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(noise(key, parameter.shape, generator))
    model.save_pretrained(folder)
    dense = None
    if layout.pooling is not None:
        width = fields["hidden_size"]
        dense = write_modules(folder, layout, width, generator)
    return PooledCheckpoint(kind, folder, model, dense)


def write_modules(
    folder: Path, layout: Layout, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Write what sentence-transformers has beside a model."""
    before = "sentence_transformers.models."
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{before}Transformer"}]

    def add(name: str, config: dict[str, Any] | None) -> Path:
        index = len(modules)
        place = folder / f"{index}_{name}"
        modules.append(
            {"idx": index, "name": str(index), "path": place.name, "type": before + name}
        )
        place.mkdir(parents=True)
        if config is not None:
            (place / "config.json").write_text(json.dumps(config))
        return place

    modes = [
        *("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"),
        *("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"),
        "pooling_mode_lasttoken",
    ]
    hidden = width
    flags = {mode: mode in layout.modes for mode in modes}
    width *= len(layout.modes)
    add("Pooling", {"word_embedding_dimension": hidden, "include_prompt": True} | flags)
    dense = None
    if layout.dense:
        config: dict[str, Any] = {"in_features": width, "out_features": layout.dense, "bias": True}
        config["activation_function"] = "torch.nn.modules.activation.Tanh"
        place = add("Dense", config)
        dense = (
            noise("weight", (layout.dense, width), generator),
            noise("linear.bias", (layout.dense,), generator),
        )
        tensors = {"linear.weight": dense[0], "linear.bias": dense[1]}
        save_file(tensors, place / "model.safetensors")
    if layout.normalize:
        add("Normalize", None)
    (folder / "modules.json").write_text(json.dumps(modules))
    return dense
