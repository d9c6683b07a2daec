"""From a checkpoint's files to a model: safetensors, single or sharded, or random weights.

Streams: all headers are checked before the first tensor is read, then one tensor at a time is
mapped, copied into place and unmapped, so that memory peaks at the weights and about one matrix
more. Every refusal is a CheckpointError that names the file and the tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...reference.decoder import DecoderWeights
from ...reference.ops import Ops
from ..config import LoadFormat
from ..errors import CheckpointError
from .base import DecoderModel
from .parts import Part
from .registry import ModelConfig
from .values import read_json
from .weights import WeightBuilder

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F16", "BF16", "F32", "F64")
GUESSING = ("mtp.", "model.mtp_layers.")
"""Tensors of layers that guess (MTP): beside the model, and not a part of it."""
TOLERATED_SUFFIX = "rotary_emb.inv_freq"
"""A buffer that old checkpoints carry; the config says the same."""


class Stored(NamedTuple):
    """One tensor as a file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    name: str
    """In the file."""


class Taker(Protocol):
    """A model under construction."""

    @property
    def parts(self) -> dict[str, Part]:
        """Every tensor that it needs, by name."""

    def place(self, name: str, tensor: Tensor) -> None:
        """Take one of them."""


def load_model(
    config: ModelConfig,
    ops: Ops,
    load_format: LoadFormat = "auto",
    *,
    seed: int = 0,
    progress: bool | None = None,
    device: torch.device | str = "cpu",
) -> DecoderModel:
    """Load a model that computes steps; see load_weights."""
    weights = load_weights(config, ops, load_format, seed=seed, progress=progress, device=device)
    return DecoderModel(config.decoder, weights, ops)


def load_weights(
    config: ModelConfig,
    ops: Ops,
    load_format: LoadFormat = "auto",
    *,
    seed: int = 0,
    progress: bool | None = None,
    device: torch.device | str = "cpu",
) -> DecoderWeights:
    """Load the weights of a checkpoint, or fill random ones from seed where load_format is "dummy".

    progress: show a bar on stderr; None: where that is a terminal. device: where they stay; dummy
    weights of one seed differ between kinds of device. Raises CheckpointError.
    """
    names = config.family.names
    device = torch.device(device)
    builder = WeightBuilder(config.decoder, names, ops, device)
    if load_format == "dummy":
        fill(builder, seed, device, config.dtype)
        return builder.build()
    stored = scan(config.path)
    stored = {name: one for name, one in stored.items() if not _guesses(name, config)}
    known = (f"{names.head}.weight",) if config.decoder.tie_word_embeddings else ()
    check_tensors(builder.parts, stored, known, config.path)
    read_all(builder, stored, progress)
    return builder.build()


def fill(taker: Taker, seed: int, device: torch.device, dtype: torch.dtype) -> None:
    """Place norms of one, biases of zero, and normal matrices whose products keep their size.

    On the CPU in float32 before they are rounded, elsewhere in the model's dtype: that needs half
    the memory.
    """
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.float32 if device.type == "cpu" else dtype
    for name, part in taker.parts.items():
        tensor = torch.empty(part.shape, dtype=dtype, device=device)
        if len(part.shape) == 1:
            tensor.fill_(0.0 if name.endswith(".bias") else 1.0)
        else:
            tensor.normal_(0.0, part.shape[1] ** -0.5, generator=generator)
        taker.place(name, tensor)


def _guesses(name: str, config: ModelConfig) -> bool:
    """Whether a tensor belongs to a layer that guesses, behind the model's own."""
    if name.startswith(GUESSING):
        return True
    prefix, _, rest = config.family.names.layer.partition("{}")
    number = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) and rest else ""
    return number.isdecimal() and int(number) >= config.decoder.num_layers and config.has_mtp


def read_all(taker: Taker, stored: Mapping[str, Stored], progress: bool | None = None) -> None:
    """Place all tensors, file by file. progress: as load_weights has it."""
    from tqdm import tqdm

    hidden = not (sys.stderr.isatty() if progress is None else progress)
    total = len(taker.parts)
    with tqdm(total=total, desc="Loading weights", unit="tensor", disable=hidden) as bar:
        for name in sorted(taker.parts, key=lambda name: (str(stored[name].file), name)):
            taker.place(name, read_tensor(stored[name].file, stored[name].name))
            bar.update()


def read_tensor(file: Path, name: str) -> Tensor:
    """Map one tensor. The file is opened for each, so that its pages leave memory with it."""
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            tensor: Tensor = handle.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: tensor {name} cannot be read: {error}") from error


def check_tensors(
    parts: Mapping[str, Part], stored: Mapping[str, Stored], known: Container[str], path: Path
) -> None:
    """Compare what is stored with what the model needs. known: what else may be there."""
    for name in parts:
        if name not in stored:
            raise CheckpointError(f"{path}: tensor {name} is missing.")
    for name, (file, shape, dtype, _) in stored.items():
        if name not in parts:
            if name in known or name.endswith(TOLERATED_SUFFIX):
                continue
            raise CheckpointError(f"{file}: tensor {name} is unexpected: the model has none such.")
        if shape != parts[name].shape:
            raise CheckpointError(
                f"{file}: tensor {name} has the shape {list(shape)}: "
                f"it must be {list(parts[name].shape)}."
            )
        if dtype not in FLOATS:
            raise CheckpointError(
                f"{file}: tensor {name} has the dtype {dtype}: it must be one of {FLOATS}."
            )


def scan(path: Path) -> dict[str, Stored]:
    """Read the headers of all files."""
    if (path / SINGLE).exists():
        return _header(path / SINGLE)
    if not (path / INDEX).exists():
        raise CheckpointError(
            f"{path} holds neither {SINGLE} nor {INDEX}: only safetensors can be loaded."
        )
    index = path / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must be an object of tensor names and files.")
    stored: dict[str, Stored] = {}
    for shard in sorted({_shard(index, name, file) for name, file in weight_map.items()}):
        for name, tensor in _header(path / shard).items():
            if name in stored:
                raise CheckpointError(f"{tensor.file}: tensor {name} is in another shard too.")
            stored[name] = tensor
    for name, shard in weight_map.items():
        if name not in stored or stored[name].file.name != shard:
            raise CheckpointError(
                f"{path / shard}: tensor {name} is missing; {INDEX} has it there."
            )
    return stored


def _shard(index: Path, name: str, file: Any) -> str:
    """Return the shard's file name. An index may not lead out of its folder."""
    if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
        raise CheckpointError(
            f"{index}: tensor {name} is in {file!r}: it must be a .safetensors file beside it."
        )
    return file


def _header(file: Path) -> dict[str, Stored]:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist.")
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            return {
                name: Stored(file, tuple(part.get_shape()), part.get_dtype(), name)
                for name, part in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is truncated or broken: {error}") from error
