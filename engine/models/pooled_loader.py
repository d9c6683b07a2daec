"""From a checkpoint's files to a model that gives vectors, with what makes them of its states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ...reference.decoder import DecoderWeights
from ...reference.encoder import EncoderConfig, EncoderWeights
from ...reference.ops import Ops, PackedLinear
from ...reference.sums import Sums
from ..config import LoadFormat
from ..vectors import Stage
from .base import DecoderModel
from .encoder import EncoderModel, Model
from .encoder_weights import EncoderBuilder
from .loader import Stored, check_tensors, fill, read_all, scan
from .parts import Matrix, Part, Parts, Staging, complete, packed
from .pooler import PackedStage, Pooler
from .registry import ENCODERS, ModelConfig
from .weights import WeightBuilder

DECODER_PREFIX = "model."
BUFFERS = (".position_ids", ".token_type_ids", "rotary_emb.inv_freq")
"""Ends of names: what old checkpoints carry, the config says the same."""
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
"""Of norms."""


def load_pooled(
    config: ModelConfig,
    ops: Ops,
    load_format: LoadFormat = "auto",
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Model:
    """Load a model without what draws tokens. Options and errors are those of load_weights."""
    shape, device = config.shape, torch.device(device)
    # A dense layer of sentence-transformers lies in a folder of its own.
    folders = {config.path: Parts(ops, config.dtype, shape.sums, device)}
    main = folders[config.path]
    builder: EncoderBuilder | WeightBuilder
    if isinstance(shape, EncoderConfig):
        encoder = ENCODERS[config.architecture]
        builder = EncoderBuilder(shape, encoder.prefix, main)
        prefix, ignored = encoder.prefix, encoder.ignored
    else:
        names = config.family.names
        builder = WeightBuilder(shape, names, ops, device, with_head=False, parts=main)
        prefix, ignored = DECODER_PREFIX, (names.head,)
    stages = _expect_stages(config, folders, ops, device)
    for folder, parts in folders.items():
        if load_format == "dummy":
            fill(parts, seed, device, config.dtype)
            continue
        stored = canonical(scan(folder), parts.parts, prefix)
        known = [name for name in stored if name.startswith(ignored) or name.endswith(BUFFERS)]
        check_tensors(parts.parts, stored, known if parts is main else (), folder)
        read_all(parts, stored)
    weights = builder.build()
    pooler = Pooler(
        config.pooling.kinds,
        tuple(PackedStage(_packed(*one, ops, shape.sums), one[0].activation) for one in stages),
    )
    if isinstance(shape, EncoderConfig):
        assert isinstance(weights, EncoderWeights), config.architecture
        return EncoderModel(shape, weights, ops, pooler)
    assert isinstance(weights, DecoderWeights), config.architecture
    return DecoderModel(shape, weights, ops, pooler)


def _expect_stages(
    config: ModelConfig, folders: dict[Path, Parts], ops: Ops, device: torch.device
) -> list[tuple[Stage, Matrix | Staging]]:
    """Expect the layers behind the pooling, each in its folder."""
    expected: list[tuple[Stage, Matrix | Staging]] = []
    for stage in config.pooling.stages:
        folder = stage.folder or config.path
        if folder not in folders:
            folders[folder] = Parts(ops, config.dtype, config.shape.sums, device)
        num_out, num_in = stage.shape
        if stage.rows is not None:
            # The model may have the tensor anyway, as its embedding.
            whole = folders[folder].shared(stage.module, (config.vocab_size, num_in))
            expected.append((stage, whole))
            continue
        matrix = folders[folder].matrix((stage.module,), (num_out,), num_in, biased=stage.biased)
        expected.append((stage, matrix))
    return expected


def _packed(stage: Stage, matrix: Matrix | Staging, ops: Ops, sums: Sums) -> PackedLinear:
    """Return a layer of which no part is missing."""
    if isinstance(matrix, Matrix):
        return packed(matrix)
    assert stage.rows is not None, stage
    return ops.pack_linear(complete(matrix)[list(stage.rows)], None, sums=sums)


def canonical(
    stored: Mapping[str, Stored], parts: Mapping[str, Part], prefix: str
) -> dict[str, Stored]:
    """Give what is stored the names that are expected: with the prefix, as of today."""
    named = {}
    for given, one in stored.items():
        name = given
        for old, new in OLD_NAMES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        known = next((known for known in (name, prefix + name) if known in parts), given)
        named[known] = one
    return named
