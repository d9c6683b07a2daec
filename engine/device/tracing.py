"""Watch the operations of a step: what each gave, row by row, as digests that compare.

TracedOps stands where an `Ops` module stands and computes nothing itself. Two traces of one step
tell which operation of which layer first gave another row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from ...reference.decoder import DecoderWeights
from ...reference.ops import Ops

WATCHED = frozenset(
    {
        *("embed", "rms_norm", "add_rms_norm", "linear", "gated_linear", "qkv_post"),
        *("layer_norm", "add_layer_norm", "paged_attention", "silu_mul", "gelu", "sample"),
        *("logprobs",),
    }
)


class Call(NamedTuple):
    """One operation of a step."""

    name: str
    """As "layer 3, down (linear)"."""
    rows: tuple[int, ...]
    """Digests, one for each token of the step or each row that samples."""


class TracedOps:
    """`Ops` that notes what passes through it while `calls` is a list."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._names: dict[int, str] = {}
        self._attentions = 0
        self.calls: list[Call] | None = None

    def name_weights(self, weights: DecoderWeights) -> None:
        """Learn which layer each weight belongs to."""
        self._names[id(weights.embedding)] = "embedding"
        self._names[id(weights.final_norm)] = "final norm"
        self._names[id(weights.head)] = "head"
        for index, layer in enumerate(weights.layers):
            for field in fields(layer):
                value = getattr(layer, field.name)
                if value is not None:
                    self._names[id(value)] = f"layer {index}, {field.name}"

    def begin(self) -> None:
        """Forget the step before."""
        self.calls, self._attentions = [], 0

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._ops, name)
        if name not in WATCHED:
            return target
        return self._watch(name, target)

    def _watch(self, name: str, target: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            given = target(*arguments, **options)
            if self.calls is not None:
                where = self._where(name, arguments)
                self.calls.append(Call(where, _digests(given)))
                if name == "add_rms_norm":
                    self.calls.append(Call(where + ", residual", _digests(arguments[1])))
            return given

        return call

    def _where(self, name: str, arguments: Sequence[Any]) -> str:
        known = next((self._names[id(one)] for one in arguments if id(one) in self._names), None)
        if name in ("qkv_post", "paged_attention"):
            known = f"layer {self._attentions}"
            self._attentions += name == "paged_attention"
        return name if known is None else f"{known} ({name})"


def traced(ops: Ops) -> Ops:
    """Wrap a module of operations; the result is a TracedOps."""
    return cast(Ops, TracedOps(ops))


class Difference(NamedTuple):
    """Where two traces of one step part."""

    name: str
    row: int
    num_rows: int


def first_difference(left: Sequence[Call], right: Sequence[Call]) -> Difference | None:
    """Compare two traces of one step; None where no operation gave another row."""
    for one, other in zip(left, right, strict=False):
        if one.name != other.name or len(one.rows) != len(other.rows):
            return Difference(f"{one.name} against {other.name}", 0, 1)
        for row, (a, b) in enumerate(zip(one.rows, other.rows, strict=True)):
            if a != b:
                return Difference(one.name, row, len(one.rows))
    return None if len(left) == len(right) else Difference("the number of operations", 0, 1)


def _digests(given: Any) -> tuple[int, ...]:
    """Digest each row of a tensor, or of several side by side."""
    tensors: list[Tensor] = [given] if isinstance(given, Tensor) else list(given)
    parts = [_bytes_of(one) for one in tensors]
    return tuple(
        xxh3_64_intdigest(b"".join(part[row].tobytes() for part in parts))
        for row in range(len(parts[0]))
    )


def _bytes_of(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return [rows, bytes]."""
    rows = tensor.detach().cpu().contiguous()
    if rows.numel() == 0:
        return np.zeros((len(rows), 0), np.uint8)
    return rows.view(torch.uint8).reshape(len(rows), -1).numpy()
