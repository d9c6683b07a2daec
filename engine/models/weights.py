"""Which tensors a model consists of, and how the checkpoint's parts become packed matrices.

Owns the matrices under construction: a part is copied into its place, and a matrix is packed and
its staging memory released as soon as its parts are complete. Knows no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.decoder import DecoderConfig, DecoderWeights, LayerWeights
from ...reference.ops import Ops, PackedLinear
from .family import TensorNames


@dataclass(slots=True, eq=False)
class Staging:
    """One tensor under construction: [rows, ...] dtype, from `pending` parts still to come."""

    shape: tuple[int, ...]
    pending: int
    tensor: Tensor | None = None


class Part(NamedTuple):
    """One tensor of the checkpoint: rows of a staging tensor from `start` on."""

    name: str
    shape: tuple[int, ...]
    staging: Staging
    start: int
    matrix: Matrix | None
    """The linear that it belongs to; None for norms and the embedding."""


@dataclass(slots=True, eq=False)
class Matrix:
    """One linear under construction, packed when weight and bias are complete."""

    weight: Staging
    bias: Staging | None
    segments: int
    is_gated: bool
    packed: PackedLinear | None = None


class LayerParts(NamedTuple):
    """One layer under construction, in the fields of LayerWeights."""

    input_norm: Staging
    qkv: Matrix
    qk_norms: tuple[Staging, Staging] | None
    o: Matrix
    post_norm: Staging
    gate_up: Matrix
    down: Matrix


class WeightBuilder:
    """Takes the tensors of a checkpoint in any order and makes the weights."""

    def __init__(
        self,
        config: DecoderConfig,
        names: TensorNames,
        ops: Ops,
        device: torch.device | str = "cpu",
    ) -> None:
        """device: where the weights are made and stay."""
        self.parts: dict[str, Part] = {}
        """Every tensor that the checkpoint must have, by name."""
        self._config = config
        self._ops = ops
        self._device = device
        hidden = config.hidden_size
        self._embedding = self._tensor(names.embedding, (config.vocab_size, hidden))
        self._layers = tuple(
            self._layer(names, names.layer.format(index)) for index in range(config.num_layers)
        )
        self._final_norm = self._tensor(names.final_norm, (hidden,))
        self._head: Matrix | None = None
        if not config.tie_word_embeddings:
            self._head = self._matrix((names.head,), (config.vocab_size,), hidden, biased=False)

    def place(self, name: str, tensor: Tensor) -> None:
        """Copy one tensor into its place, cast to the model's dtype."""
        part = self.parts[name]
        staging, matrix = part.staging, part.matrix
        assert tuple(tensor.shape) == part.shape, (name, tensor.shape, part.shape)
        if staging.tensor is None:
            staging.tensor = torch.empty(
                staging.shape, dtype=self._config.dtype, device=self._device
            )
        staging.tensor[part.start : part.start + part.shape[0]].copy_(tensor)
        staging.pending -= 1
        assert staging.pending >= 0, name
        if matrix is not None:
            self._pack_when_complete(matrix)

    def build(self) -> DecoderWeights:
        """Return the weights; every part must have been placed."""
        embedding = _complete(self._embedding)
        if self._head is None:
            head = self._ops.pack_linear(embedding, None, sums=self._config.sums)
        else:
            head = _packed(self._head)
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(_layer_weights(layer) for layer in self._layers),
            final_norm=_complete(self._final_norm),
            head=head,
        )

    def _pack_when_complete(self, matrix: Matrix) -> None:
        weight, bias = matrix.weight, matrix.bias
        if weight.pending or (bias is not None and bias.pending):
            return
        matrix.packed = self._ops.pack_linear(
            _complete(weight),
            None if bias is None else bias.tensor,
            segments=matrix.segments,
            is_gated=matrix.is_gated,
            sums=self._config.sums,
        )
        weight.tensor = None

    def _layer(self, names: TensorNames, prefix: str) -> LayerParts:
        config = self._config
        hidden, head_dim, segments = config.hidden_size, config.head_dim, config.linear_segments
        q, kv, mlp = config.q_size, config.kv_size, config.intermediate_size

        def full(modules: Iterable[str]) -> tuple[str, ...]:
            return tuple(prefix + module for module in modules)

        qk_norms = None
        if config.qk_norm:
            q_norm, k_norm = full(names.qk_norms)
            qk_norms = self._tensor(q_norm, (head_dim,)), self._tensor(k_norm, (head_dim,))
        return LayerParts(
            input_norm=self._tensor(prefix + names.input_norm, (hidden,)),
            qkv=self._matrix(full(names.qkv), (q, kv, kv), hidden, biased=config.qkv_bias),
            qk_norms=qk_norms,
            o=self._matrix(full((names.o,)), (hidden,), q, biased=config.o_bias, segments=segments),
            post_norm=self._tensor(prefix + names.post_norm, (hidden,)),
            gate_up=self._matrix(
                full(names.gate_up), (mlp, mlp), hidden, biased=config.mlp_bias, is_gated=True
            ),
            down=self._matrix(
                full((names.down,)), (hidden,), mlp, biased=config.mlp_bias, segments=segments
            ),
        )

    def _tensor(self, module: str, shape: tuple[int, ...]) -> Staging:
        staging = Staging(shape, pending=1)
        self._expect(Part(f"{module}.weight", shape, staging, 0, None))
        return staging

    def _matrix(
        self,
        modules: tuple[str, ...],
        rows: tuple[int, ...],
        width: int,
        *,
        biased: bool,
        segments: int = 1,
        is_gated: bool = False,
    ) -> Matrix:
        """Expect a matrix [sum(rows), width] from modules that give rows each."""
        weight = Staging((sum(rows), width), pending=len(modules))
        bias = Staging((sum(rows),), pending=len(modules)) if biased else None
        matrix = Matrix(weight, bias, segments, is_gated)
        start = 0
        for module, count in zip(modules, rows, strict=True):
            self._expect(Part(f"{module}.weight", (count, width), weight, start, matrix))
            if bias is not None:
                self._expect(Part(f"{module}.bias", (count,), bias, start, matrix))
            start += count
        return matrix

    def _expect(self, part: Part) -> None:
        assert part.name not in self.parts, part.name
        self.parts[part.name] = part


def _complete(staging: Staging) -> Tensor:
    assert staging.pending == 0, staging.shape
    assert staging.tensor is not None, staging.shape
    return staging.tensor


def _packed(matrix: Matrix) -> PackedLinear:
    assert matrix.packed is not None, matrix.weight.shape
    return matrix.packed


def _layer_weights(parts: LayerParts) -> LayerWeights:
    norms = parts.qk_norms
    return LayerWeights(
        input_norm=_complete(parts.input_norm),
        qkv=_packed(parts.qkv),
        qk_norms=None if norms is None else (_complete(norms[0]), _complete(norms[1])),
        o=_packed(parts.o),
        post_norm=_complete(parts.post_norm),
        gate_up=_packed(parts.gate_up),
        down=_packed(parts.down),
    )
