"""Pooler: from a step's hidden states to the vectors of its sequences. Owns the stages' weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.ops import Ops, PackedLinear
from ...reference.pooling import Kind, pool, tanh
from ..vectors import Activation


class PackedStage(NamedTuple):
    """A linear layer behind the pooling."""

    weight: PackedLinear
    activation: Activation


class Pooler(NamedTuple):
    """How vectors are made. Each is computed alone, so that none depends on its neighbours."""

    kinds: tuple[Kind, ...] = ("last",)
    stages: tuple[PackedStage, ...] = ()

    @property
    def needs_all(self) -> bool:
        """Whether it takes the states of all tokens, and not just of those that sample."""
        return self.kinds != ("last",)

    def pool(
        self, hidden: Tensor, spans: Sequence[tuple[int, int]], starts: Sequence[int]
    ) -> Tensor:
        """Return the pooled states [samples, width] float32 of the tokens in spans.

        starts: how many at the beginning of each do not count.
        """
        return torch.stack(
            [
                torch.cat([pool(hidden[begin + skip : end], kind, skip) for kind in self.kinds])
                for (begin, end), skip in zip(spans, starts, strict=True)
            ]
        )

    def vectors(self, pooled: Tensor, ops: Ops, dtype: torch.dtype) -> Tensor:
        """Send pooled states [samples, width] through the stages: [samples, out] float32."""
        for weight, activation in self.stages:
            pooled = ops.linear(pooled.to(dtype), weight).float()
            match activation:
                case "tanh":
                    pooled = tanh(pooled)
                case "margin":
                    pooled = pooled[:, 1:] - pooled[:, :1]
        return pooled
