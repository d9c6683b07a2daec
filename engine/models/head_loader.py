"""From a checkpoint to a head that guesses: EAGLE-3 in a folder of its own, MTP beside its target.

A layout is a row of names. `mtp` heads are looked for in the target's own checkpoint, in the
layouts of DeepSeek-V3, of Qwen3-Next and of MiMo; their layer must be one of the target's family.
Every refusal is a CheckpointError or ConfigError that names the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.heads import HeadConfig, HeadWeights
from ...reference.ops import Ops, PackedLinear
from ..errors import CheckpointError, ConfigError
from .base import DecoderModel
from .family import FamilyTraits, TensorNames, decoder_config
from .heads import HeadModel
from .loader import Stored, check_tensors, read_tensor, scan
from .parts import Matrix, Parts, Staging, complete, packed
from .registry import ModelConfig
from .values import ConfigValues, read_json
from .weights import expect_layer, layer_weights


class HeadLayout(NamedTuple):
    """Names of a head's modules; {} is the number of the target's layers."""

    layer: str
    join: str
    token_norm: str
    state_norm: str
    final_norm: str
    embedding: str
    """Where it has one of its own,"""
    head: str
    """and this: else they are the target's."""
    state_first: bool = False
    carries_normed: bool = False


EAGLE3 = (
    HeadLayout(
        layer="midlayer.",
        join="fc",
        token_norm="midlayer.input_layernorm",
        state_norm="midlayer.hidden_norm",
        final_norm="norm",
        embedding="embed_tokens",
        head="lm_head",
    ),
    HeadLayout(
        layer="layers.0.",
        join="fc",
        token_norm="layers.0.input_layernorm",
        state_norm="layers.0.hidden_norm",
        final_norm="norm",
        embedding="embed_tokens",
        head="lm_head",
    ),
)
"""As its authors write it, and as vLLM's `speculators` does."""
MTP = (
    HeadLayout(
        layer="model.layers.{}.",
        join="model.layers.{}.eh_proj",
        token_norm="model.layers.{}.enorm",
        state_norm="model.layers.{}.hnorm",
        final_norm="model.layers.{}.shared_head.norm",
        embedding="model.layers.{}.embed_tokens",
        head="model.layers.{}.shared_head.head",
    ),
    HeadLayout(
        layer="mtp.layers.0.",
        join="mtp.fc",
        token_norm="mtp.pre_fc_norm_embedding",
        state_norm="mtp.pre_fc_norm_hidden",
        final_norm="mtp.norm",
        embedding="mtp.embed_tokens",
        head="mtp.lm_head",
        carries_normed=True,
    ),
    HeadLayout(
        layer="model.mtp_layers.0.",
        join="model.mtp_layers.0.input_proj",
        token_norm="model.mtp_layers.0.token_layernorm",
        state_norm="model.mtp_layers.0.hidden_layernorm",
        final_norm="model.mtp_layers.0.final_layernorm",
        embedding="model.mtp_layers.0.embed_tokens",
        head="model.mtp_layers.0.lm_head",
        state_first=True,
        carries_normed=True,
    ),
)
"""DeepSeek-V3, Qwen3-Next, MiMo."""
D2T, T2D = "d2t", "t2d"
"""eagle3: what to add to the head's token ids, and which of the target's it knows."""


class FoundHead(NamedTuple):
    """A head whose weights are not loaded yet."""

    config: HeadConfig
    path: Path
    layouts: tuple[HeadLayout, ...]
    target: ModelConfig


def find_eagle3(path: Path, target: ModelConfig) -> FoundHead:
    """Read the config of an EAGLE-3 head for a target."""
    file, decoder = path / "config.json", target.decoder
    values = ConfigValues(read_json(file), str(file))
    nested = values.section("transformer_layer_config")
    shape = nested or values
    if shape.integer("num_hidden_layers") != 1:
        raise shape.wrong("num_hidden_layers", "1")
    biased = shape.flag("attention_bias")
    traits = FamilyTraits(windows=(0,), qkv_bias=biased, o_bias=False)
    layer = decoder_config(shape, traits, decoder.dtype, 1, decoder.sums)
    vocab_size = values.integer("draft_vocab_size", layer.vocab_size)
    width = values.integer("target_hidden_size", layer.hidden_size)
    if (width, layer.hidden_size) != (decoder.hidden_size,) * 2:
        raise ConfigError(
            f"{file} is for a target of width {width}: {target.path} has {decoder.hidden_size}."
        )
    config = HeadConfig(
        kind="eagle3",
        layer=replace(layer, vocab_size=vocab_size, max_positions=decoder.max_positions),
        taps=_taps(values, decoder.num_layers),
        # Of vLLM's `speculators` it is the default.
        adds_to_normed=values.flag("norm_before_residual", nested is not None),
    )
    return FoundHead(config, path, EAGLE3, target)


def find_mtp(target: ModelConfig) -> FoundHead:
    """Describe the first MTP layer of a target's own checkpoint."""
    layer = replace(target.decoder, num_layers=1, windows=(0,))
    return FoundHead(HeadConfig(kind="mtp", layer=layer), target.path, MTP, target)


def load_head(found: FoundHead, target: DecoderModel, ops: Ops) -> HeadModel:
    """Load a head's weights; what it has none of is shared with the target."""
    config, decoder = found.config, found.target.decoder
    stored = scan(found.path)
    layout = _layout(found, stored)
    builder = HeadBuilder(config, layout, stored, ops, target)
    targets = None
    if config.kind == "eagle3":
        known = (D2T, T2D, f"{layout.embedding}.weight")
        check_tensors(builder.parts.parts, stored, known, found.path)
        if D2T in stored:
            targets = _targets(stored[D2T], config.layer.vocab_size, decoder.vocab_size)
    else:
        own = {name: one for name, one in stored.items() if name in builder.parts.parts}
        check_tensors(builder.parts.parts, own, (), found.path)
    for name in builder.parts.parts:
        builder.parts.place(name, read_tensor(stored[name].file, name))
    weights = builder.build(None if targets is None else targets.to(target.device))
    config = replace(config, state_first=layout.state_first, carries_normed=layout.carries_normed)
    return HeadModel(config, weights, ops, decoder.vocab_size)


class HeadBuilder:
    """A head under construction."""

    def __init__(
        self,
        config: HeadConfig,
        layout: HeadLayout,
        stored: Mapping[str, Stored],
        ops: Ops,
        target: DecoderModel,
    ) -> None:
        layer, target_vocab = config.layer, target.config.vocab_size
        hidden, is_eagle = layer.hidden_size, config.kind == "eagle3"
        self.parts = parts = Parts(ops, layer.dtype, layer.sums, target.device)
        self._target = target
        count = len(config.taps) if is_eagle else 2
        self._join = parts.matrix((layout.join,), (hidden,), count * hidden, biased=False)
        self._layer = expect_layer(
            parts, layer, TensorNames(), layout.layer, 2 * hidden if is_eagle else None
        )
        self._token_norm = self._layer.input_norm
        if not is_eagle:
            self._token_norm = parts.tensor(layout.token_norm, (hidden,))
        self._state_norm = parts.tensor(layout.state_norm, (hidden,))
        self._final_norm = parts.tensor(layout.final_norm, (hidden,))
        self._embedding: Staging | None = None
        if f"{layout.embedding}.weight" in stored:
            self._embedding = parts.tensor(layout.embedding, (target_vocab, hidden))
        self._head: Matrix | None = None
        if is_eagle or f"{layout.head}.weight" in stored:
            self._head = parts.matrix((layout.head,), (layer.vocab_size,), hidden, biased=False)

    def build(self, targets: Tensor | None) -> HeadWeights:
        """Return the weights; every part must have been placed."""
        shared, embedding, head = self._target.weights, self._embedding, self._head
        return HeadWeights(
            embedding=shared.embedding if embedding is None else complete(embedding),
            join=packed(self._join),
            token_norm=complete(self._token_norm),
            state_norm=complete(self._state_norm),
            layer=layer_weights(self._layer),
            final_norm=complete(self._final_norm),
            head=_given(shared.head) if head is None else packed(head),
            targets=targets,
        )


def _given(head: PackedLinear | None) -> PackedLinear:
    assert head is not None, "a target without a head"
    return head


def _layout(found: FoundHead, stored: Mapping[str, Stored]) -> HeadLayout:
    """Choose by what is there, with the names filled in."""
    number = found.target.decoder.num_layers
    for layout in found.layouts:
        names = (part.format(number) if isinstance(part, str) else part for part in layout)
        filled = HeadLayout(*names)  # type: ignore[arg-type]  # flags stay flags
        if f"{filled.state_norm}.weight" in stored:
            return filled
    wanted = ", ".join(f"{layout.state_norm}.weight".format(number) for layout in found.layouts)
    raise CheckpointError(f"{found.path} holds no head that guesses: it has none of {wanted}.")


def _taps(values: ConfigValues, num_layers: int) -> tuple[int, ...]:
    """Read which layers' inputs are joined: the second, the middle and the third but last."""
    section = values.section("eagle_config") or values
    key = "eagle_aux_hidden_state_layer_ids"
    given = section.get(key)
    if given is None:
        given = [2, num_layers // 2, num_layers - 3]
    is_list = isinstance(given, list) and len(given) == 3
    if not is_list or not all(isinstance(one, int) and 0 <= one < num_layers for one in given):
        raise section.wrong(key, f"a list of 3 layers from 0 to {num_layers - 1}")
    return tuple(given)


def _targets(stored: Stored, size: int, vocab_size: int) -> Tensor:
    """Read the target's ids of a head's tokens."""
    if stored.shape != (size,) or stored.dtype not in ("I64", "I32"):
        raise CheckpointError(
            f"{stored.file}: tensor {D2T} is {stored.dtype} {list(stored.shape)}: it must be I64 "
            f"[{size}]."
        )
    targets = read_tensor(stored.file, D2T).long() + torch.arange(size)
    if not ((targets >= 0) & (targets < vocab_size)).all() or len(set(targets.tolist())) < size:
        raise CheckpointError(
            f"{stored.file}: tensor {D2T} does not name a token of the target's {vocab_size} for "
            "each of the head's."
        )
    return targets
