"""How the checkpoint's parts become tensors and packed matrices, whatever they belong to.

Owns what is under construction: a part is copied into its place, and a matrix is packed and its
staging memory released as soon as its parts are complete. Knows no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.ops import Ops, PackedLinear
from ...reference.sums import Sums


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


class Parts:
    """Takes the tensors of a checkpoint in any order."""

    def __init__(
        self, ops: Ops, dtype: torch.dtype, sums: Sums, device: torch.device | str = "cpu"
    ) -> None:
        """dtype: the model's; device: where the weights are made and stay."""
        self.parts: dict[str, Part] = {}
        """Every tensor that the checkpoint must have, by name."""
        self._ops, self._dtype, self._sums, self._device = ops, dtype, sums, device

    def place(self, name: str, tensor: Tensor) -> None:
        """Copy one tensor into its place, cast to the model's dtype."""
        part = self.parts[name]
        staging, matrix = part.staging, part.matrix
        assert tuple(tensor.shape) == part.shape, (name, tensor.shape, part.shape)
        if staging.tensor is None:
            staging.tensor = torch.empty(staging.shape, dtype=self._dtype, device=self._device)
        staging.tensor[part.start : part.start + part.shape[0]].copy_(tensor)
        staging.pending -= 1
        assert staging.pending >= 0, name
        if matrix is not None:
            self._pack_when_complete(matrix)

    def _pack_when_complete(self, matrix: Matrix) -> None:
        weight, bias = matrix.weight, matrix.bias
        if weight.pending or (bias is not None and bias.pending):
            return
        matrix.packed = self._ops.pack_linear(
            complete(weight),
            None if bias is None else bias.tensor,
            segments=matrix.segments,
            is_gated=matrix.is_gated,
            sums=self._sums,
        )
        weight.tensor = None

    def tensor(self, module: str, shape: tuple[int, ...], name: str = "weight") -> Staging:
        """Expect a module's weight, or what else it has, as it is."""
        staging = Staging(shape, pending=1)
        self._expect(Part(f"{module}.{name}", shape, staging, 0, None))
        return staging

    def shared(self, module: str, shape: tuple[int, ...]) -> Staging:
        """Expect a module's weight as it is, or find it where it is expected already."""
        known = self.parts.get(f"{module}.weight")
        if known is None:
            return self.tensor(module, shape)
        assert known.matrix is None and known.shape == shape, (module, known.shape, shape)
        return known.staging

    def matrix(
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


def complete(staging: Staging) -> Tensor:
    """Return a tensor of which no part is missing."""
    assert staging.pending == 0, staging.shape
    assert staging.tensor is not None, staging.shape
    return staging.tensor


def packed(matrix: Matrix) -> PackedLinear:
    """Return a matrix of which no part is missing."""
    assert matrix.packed is not None, matrix.weight.shape
    return matrix.packed
