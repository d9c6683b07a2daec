"""Which architectures exist, and the one way from a checkpoint's folder to its ModelConfig.

A decoder's family stands for all architectures of its stem: Qwen3ForCausalLM draws tokens,
Qwen3Model and Qwen3ForSequenceClassification give vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from msgspec import Struct
from msgspec.structs import replace

from ...reference.decoder import DecoderConfig
from ...reference.encoder import EncoderConfig
from ...reference.sums import Sums
from ..config import DTypeName, PoolerConfig, RunnerKind
from ..errors import ConfigError
from ..vectors import Kind, PoolingConfig, Stage
from . import bert, llama, mimo, mistral, qwen2, qwen3
from .bert import encoder_config
from .family import Family, decoder_config
from .pooling import (
    MODULES,
    apply_wish,
    classifier_config,
    embedding_config,
    read_labels,
)
from .token_classes import TokenId, names_tokens, token_classifier
from .values import ConfigValues, read_json

FAMILIES = {
    family.architecture: family
    for family in (llama.FAMILY, mimo.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)
}
ENCODERS = {family.architecture: family for family in bert.FAMILIES}
DRAWS, CLASSIFIES, PLAIN = "ForCausalLM", "ForSequenceClassification", "Model"
"""Ends of architectures' names."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelConfig(Struct, frozen=True, kw_only=True):
    """What a checkpoint's folder says of its model."""

    path: Path
    architecture: str
    shape: DecoderConfig | EncoderConfig
    dtype: torch.dtype
    """The engine's: weights in another float type are cast to it."""
    vocab_size: int
    max_model_len: int
    """Tokens of the longest sequence that the model was made for."""
    eos_token_ids: tuple[int, ...]
    has_mtp: bool = False
    """Whether layers that guess may stand behind the model's own."""
    pooling: PoolingConfig

    @property
    def family(self) -> Family:
        """The declaration of a decoder's architecture."""
        return FAMILIES[_stem(self.architecture) + DRAWS]

    @property
    def decoder(self) -> DecoderConfig:
        """The shape of a decoder."""
        assert isinstance(self.shape, DecoderConfig), self.architecture
        return self.shape

    @property
    def generates(self) -> bool:
        """Whether it draws tokens."""
        return self.pooling.beside

    @property
    def takes_whole_prompts(self) -> bool:
        """Whether a prompt must be computed in one step: no part of it says enough alone."""
        return isinstance(self.shape, EncoderConfig) or self.pooling.kinds != ("last",)


def refuse_words(word: str) -> int:
    """Find no token: nobody has a tokenizer."""
    raise ConfigError(f"a class is the word {word!r}, and there is no tokenizer: give token ids.")


def read_model_config(
    path: Path,
    dtype: DTypeName = "auto",
    linear_segments: int = 1,
    sums: Sums = "pairs",
    *,
    runner: RunnerKind = "auto",
    pooler: PoolerConfig | None = None,
    overrides: Mapping[str, Any] | None = None,
    token_id: TokenId = refuse_words,
) -> ModelConfig:
    """Read config.json and generation_config.json of a checkpoint's folder.

    runner, pooler, overrides: see EngineConfig; token_id: of words that are classes. Raises
    CheckpointError where a file is missing or broken, ConfigError where a value is not supported.
    """
    file = path / "config.json"
    values = ConfigValues(read_json(file) | dict(overrides or {}), str(file))
    architecture = _architecture(values)
    found = _dtype(values, dtype)
    encoder = ENCODERS.get(architecture)
    shape: DecoderConfig | EncoderConfig
    if encoder is not None:
        shape = encoder_config(values, encoder, found, linear_segments, sums)
    else:
        family = FAMILIES[_stem(architecture) + DRAWS]
        shape = decoder_config(values, family.traits(values), found, linear_segments, sums)
    if _generates(path, values, architecture, runner):
        pooling = apply_wish(PoolingConfig(beside=True, width=shape.hidden_size), pooler)
        if pooling.kinds != ("last",):
            raise ConfigError("pooler_config: a model that generates pools LAST, and nothing else.")
    else:
        found_tokens = None
        if isinstance(shape, DecoderConfig):
            names = FAMILIES[_stem(architecture) + DRAWS].names
            found_tokens = token_classifier(path, values, shape, names, pooler, token_id)
        pooling = found_tokens or _pooling(path, values, architecture, shape, pooler)
    longest = shape.max_positions
    return ModelConfig(
        path=path,
        architecture=architecture,
        shape=shape,
        dtype=found,
        vocab_size=shape.vocab_size,
        max_model_len=min(longest, pooling.max_tokens or longest),
        eos_token_ids=_eos_token_ids(path, values),
        has_mtp=bool(values.integer("num_nextn_predict_layers", 0, low=0)),
        pooling=pooling,
    )


def _stem(architecture: str) -> str:
    """Return the name of a decoder's family; of all else the name as it is."""
    for end in (DRAWS, CLASSIFIES, PLAIN):
        if architecture.endswith(end):
            return architecture.removesuffix(end)
    return architecture


def _architecture(values: ConfigValues) -> str:
    named = values.get("architectures")
    if isinstance(named, list):
        for name in named:
            if isinstance(name, str) and (name in ENCODERS or _stem(name) + DRAWS in FAMILIES):
                return name
    known = ", ".join(sorted((*FAMILIES, *ENCODERS)))
    raise values.wrong(
        "architectures",
        f"one of {known}, or of a decoder's with {CLASSIFIES} or {PLAIN} at its end",
    )


def _generates(path: Path, values: ConfigValues, architecture: str, runner: RunnerKind) -> bool:
    """Find out what a checkpoint is for."""
    can = architecture.endswith(DRAWS)
    if runner == "generate" and not can:
        raise ConfigError(
            f"runner is 'generate' and {path} is a {architecture}, which draws no tokens: it must "
            "be 'auto' or 'pooling'."
        )
    if runner == "auto":
        return can and not (path / MODULES).exists() and not names_tokens(path, values)
    return runner == "generate"


def _pooling(
    path: Path,
    values: ConfigValues,
    architecture: str,
    shape: DecoderConfig | EncoderConfig,
    wish: PoolerConfig | None,
) -> PoolingConfig:
    """Read how a model that does not generate makes its vectors."""
    encoder, hidden = ENCODERS.get(architecture), shape.hidden_size
    if not architecture.endswith(CLASSIFIES):
        kind: Kind = "last" if encoder is None else "cls"
        config = embedding_config(path, values, hidden, wish, kind)
    elif encoder is None:
        stage = Stage("score", (len(read_labels(values)), hidden), False, "identity")
        config = classifier_config(values, "last", (stage,), wish)
    else:
        assert encoder.stages is not None, architecture
        config = classifier_config(values, "cls", encoder.stages(values, encoder.prefix), wish)
    if isinstance(shape, EncoderConfig):
        config = replace(config, num_types=shape.num_types)
    return config


def _dtype(values: ConfigValues, wish: DTypeName) -> torch.dtype:
    """Follow the wish, else the checkpoint (`dtype`, before transformers 5 `torch_dtype`)."""
    if wish != "auto":
        if wish not in DTYPES:
            raise ConfigError(f"dtype is {wish!r}: it must be one of {get_args(DTypeName)}.")
        return DTYPES[wish]
    key = "torch_dtype" if values.get("dtype") is None else "dtype"
    name: Any = values.get(key)
    if name is None:
        return torch.float32
    if not isinstance(name, str) or name.removeprefix("torch.") not in DTYPES:
        raise values.wrong(key, "'float32' or 'bfloat16' (the option dtype casts to either)")
    return DTYPES[name.removeprefix("torch.")]


def _eos_token_ids(path: Path, values: ConfigValues) -> tuple[int, ...]:
    """Read them where generation looks first, generation_config.json, else config.json."""
    generation = path / "generation_config.json"
    if generation.exists():
        found = _token_ids(ConfigValues(read_json(generation), str(generation)))
        if found:
            return found
    return _token_ids(values)


def _token_ids(values: ConfigValues) -> tuple[int, ...]:
    given = values.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise values.wrong("eos_token_id", "a token id or a list of them")
    return tuple(dict.fromkeys(ids))
