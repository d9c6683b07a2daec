"""Which tensors a model consists of. Knows no file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.decoder import DecoderConfig, DecoderWeights, LayerWeights
from ...reference.ops import Ops
from .family import TensorNames
from .parts import Matrix, Part, Parts, Staging, complete, packed


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
        *,
        with_head: bool = True,
        parts: Parts | None = None,
    ) -> None:
        """device: where the weights are made and stay. with_head: it draws tokens. parts: takes
        the tensors, these among them."""
        self._config = config
        self._ops = ops
        self._parts = parts or Parts(ops, config.dtype, config.sums, device)
        hidden = config.hidden_size
        self._embedding = self._parts.tensor(names.embedding, (config.vocab_size, hidden))
        self._layers = tuple(
            expect_layer(self._parts, config, names, names.layer.format(index))
            for index in range(config.num_layers)
        )
        self._final_norm = self._parts.tensor(names.final_norm, (hidden,))
        self._with_head = with_head
        self._head: Matrix | None = None
        if with_head and not config.tie_word_embeddings:
            self._head = self._parts.matrix(
                (names.head,), (config.vocab_size,), hidden, biased=False
            )

    @property
    def parts(self) -> dict[str, Part]:
        """Every tensor that the checkpoint must have, by name."""
        return self._parts.parts

    def place(self, name: str, tensor: Tensor) -> None:
        """See Parts.place."""
        self._parts.place(name, tensor)

    def build(self) -> DecoderWeights:
        """Return the weights; every part must have been placed."""
        embedding, head = complete(self._embedding), None
        if self._head is not None:
            head = packed(self._head)
        elif self._with_head:
            head = self._ops.pack_linear(embedding, None, sums=self._config.sums)
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(layer_weights(layer) for layer in self._layers),
            final_norm=complete(self._final_norm),
            head=head,
        )


def expect_layer(
    parts: Parts,
    config: DecoderConfig,
    names: TensorNames,
    prefix: str,
    qkv_width: int | None = None,
) -> LayerParts:
    """Expect the tensors of a layer. qkv_width: what its qkv takes; None: hidden."""
    hidden, head_dim, segments = config.hidden_size, config.head_dim, config.linear_segments
    q, kv, mlp = config.q_size, config.kv_size, config.intermediate_size

    def full(modules: Iterable[str]) -> tuple[str, ...]:
        return tuple(prefix + module for module in modules)

    qk_norms = None
    if config.qk_norm:
        q_norm, k_norm = full(names.qk_norms)
        qk_norms = parts.tensor(q_norm, (head_dim,)), parts.tensor(k_norm, (head_dim,))
    return LayerParts(
        input_norm=parts.tensor(prefix + names.input_norm, (hidden,)),
        qkv=parts.matrix(full(names.qkv), (q, kv, kv), qkv_width or hidden, biased=config.qkv_bias),
        qk_norms=qk_norms,
        o=parts.matrix(full((names.o,)), (hidden,), q, biased=config.o_bias, segments=segments),
        post_norm=parts.tensor(prefix + names.post_norm, (hidden,)),
        gate_up=parts.matrix(
            full(names.gate_up), (mlp, mlp), hidden, biased=config.mlp_bias, is_gated=True
        ),
        down=parts.matrix(
            full((names.down,)), (hidden,), mlp, biased=config.mlp_bias, segments=segments
        ),
    )


def layer_weights(parts: LayerParts) -> LayerWeights:
    """Return a layer whose parts are complete."""
    norms = parts.qk_norms
    return LayerWeights(
        input_norm=complete(parts.input_norm),
        qkv=packed(parts.qkv),
        qk_norms=None if norms is None else (complete(norms[0]), complete(norms[1])),
        o=packed(parts.o),
        post_norm=complete(parts.post_norm),
        gate_up=packed(parts.gate_up),
        down=packed(parts.down),
    )
