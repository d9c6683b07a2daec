"""Which tensors an encoder consists of. Knows no file."""

from __future__ import annotations

from typing import NamedTuple

from ...reference.encoder import EncoderConfig, EncoderLayer, EncoderWeights, Norm
from .parts import Matrix, Parts, Staging, complete, packed


class _NormParts(NamedTuple):
    weight: Staging
    bias: Staging

    def norm(self) -> Norm:
        return Norm(complete(self.weight), complete(self.bias))


class _LayerParts(NamedTuple):
    """One layer under construction, in the fields of EncoderLayer."""

    qkv: Matrix
    o: Matrix
    attention_norm: _NormParts
    up: Matrix
    down: Matrix
    output_norm: _NormParts


class EncoderBuilder:
    """Takes the tensors of a checkpoint in any order and makes the weights."""

    def __init__(self, config: EncoderConfig, prefix: str, parts: Parts) -> None:
        """prefix: before all names; parts: takes the tensors, these among them."""
        self._parts = parts
        hidden = config.hidden_size
        before = f"{prefix}embeddings."
        num_positions = config.position_offset + config.max_positions
        self._words = parts.tensor(f"{before}word_embeddings", (config.vocab_size, hidden))
        self._positions = parts.tensor(f"{before}position_embeddings", (num_positions, hidden))
        self._types = parts.tensor(f"{before}token_type_embeddings", (config.num_types, hidden))
        self._norm = self._expect_norm(f"{before}LayerNorm", hidden)
        self._layers = tuple(
            self._expect_layer(config, f"{prefix}encoder.layer.{index}.")
            for index in range(config.num_layers)
        )

    def build(self) -> EncoderWeights:
        """Return the weights; every part must have been placed."""
        return EncoderWeights(
            words=complete(self._words),
            positions=complete(self._positions),
            types=complete(self._types),
            norm=self._norm.norm(),
            layers=tuple(
                EncoderLayer(
                    qkv=packed(layer.qkv),
                    o=packed(layer.o),
                    attention_norm=layer.attention_norm.norm(),
                    up=packed(layer.up),
                    down=packed(layer.down),
                    output_norm=layer.output_norm.norm(),
                )
                for layer in self._layers
            ),
        )

    def _expect_norm(self, module: str, hidden: int) -> _NormParts:
        return _NormParts(
            self._parts.tensor(module, (hidden,)),
            self._parts.tensor(module, (hidden,), "bias"),
        )

    def _expect_layer(self, config: EncoderConfig, prefix: str) -> _LayerParts:
        hidden, mlp, segments = config.hidden_size, config.intermediate_size, config.linear_segments
        own = f"{prefix}attention.self."
        matrix = self._parts.matrix
        return _LayerParts(
            qkv=matrix(
                (f"{own}query", f"{own}key", f"{own}value"), (hidden,) * 3, hidden, biased=True
            ),
            o=matrix(
                (f"{prefix}attention.output.dense",),
                (hidden,),
                hidden,
                biased=True,
                segments=segments,
            ),
            attention_norm=self._expect_norm(f"{prefix}attention.output.LayerNorm", hidden),
            up=matrix((f"{prefix}intermediate.dense",), (mlp,), hidden, biased=True),
            down=matrix((f"{prefix}output.dense",), (hidden,), mlp, biased=True, segments=segments),
            output_norm=self._expect_norm(f"{prefix}output.LayerNorm", hidden),
        )
