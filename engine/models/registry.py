"""Which architectures exist, and the one way from a checkpoint's folder to its ModelConfig."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
from msgspec import Struct

from ...reference.decoder import DecoderConfig
from ...reference.sums import Sums
from ..config import DTypeName
from ..errors import ConfigError
from . import llama, mimo, mistral, qwen2, qwen3
from .family import Family, decoder_config
from .values import ConfigValues, read_json

FAMILIES = {
    family.architecture: family
    for family in (llama.FAMILY, mimo.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)
}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelConfig(Struct, frozen=True, kw_only=True):
    """What a checkpoint's folder says of its model."""

    path: Path
    architecture: str
    decoder: DecoderConfig
    dtype: torch.dtype
    """The engine's: weights in another float type are cast to it."""
    vocab_size: int
    max_model_len: int
    """Tokens of the longest sequence that the model was made for."""
    eos_token_ids: tuple[int, ...]
    has_mtp: bool = False
    """Whether layers that guess may stand behind the model's own."""

    @property
    def family(self) -> Family:
        """The declaration of its architecture."""
        return FAMILIES[self.architecture]


def read_model_config(
    path: Path, dtype: DTypeName = "auto", linear_segments: int = 1, sums: Sums = "pairs"
) -> ModelConfig:
    """Read config.json and generation_config.json of a checkpoint's folder.

    Raises CheckpointError where a file is missing or broken, ConfigError where a value is not
    supported.
    """
    file = path / "config.json"
    values = ConfigValues(read_json(file), str(file))
    architecture = _architecture(values)
    family = FAMILIES[architecture]
    traits = family.traits(values)
    decoder = decoder_config(values, traits, _dtype(values, dtype), linear_segments, sums)
    for width in (decoder.q_size, decoder.intermediate_size):
        if width % (16 * linear_segments):
            raise ConfigError(
                f"linear_segments is {linear_segments}: it must cut the width {width} into "
                "multiples of 16."
            )
    return ModelConfig(
        path=path,
        architecture=architecture,
        decoder=decoder,
        dtype=decoder.dtype,
        vocab_size=decoder.vocab_size,
        max_model_len=decoder.max_positions,
        eos_token_ids=_eos_token_ids(path, values),
        has_mtp=bool(values.integer("num_nextn_predict_layers", 0, low=0)),
    )


def _architecture(values: ConfigValues) -> str:
    named = values.get("architectures")
    if isinstance(named, list):
        for name in named:
            if isinstance(name, str) and name in FAMILIES:
                return name
    raise values.wrong("architectures", f"one of {', '.join(sorted(FAMILIES))}")


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
