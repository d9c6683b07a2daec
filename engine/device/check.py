"""Whether a device's operations are sound: each against the reference, bit for bit.

For a machine that nobody has tested: a driver, a compiler or a chip that computes otherwise is
found before it answers. `quire check` runs all cases, an engine on a GPU the short ones at start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ... import reference
from ...reference.ops import Ops
from ..errors import EngineError
from .check_cases import FULL, SHORT, Case, Shape

SHAPES = (
    Shape(torch.bfloat16, 128, 4, 16),
    Shape(torch.float32, 64, 1, 16),
    Shape(torch.bfloat16, 80, 7, 8),
)
CPU = torch.device("cpu")


class Verdict(NamedTuple):
    """What a case gave."""

    case: Case
    shape: Shape
    fault: str | None
    """Where and how it differs first; None where it does not."""

    def __str__(self) -> str:
        state = "ok" if self.fault is None else "WRONG"
        line = f"{state:<6}{self.case.op:<16}{self.case.situation:<22}{self.shape}"
        return line if self.fault is None else f"{line}\n      {self.fault}"


def run_checks(
    ops: Ops,
    device: torch.device,
    shapes: Sequence[Shape] = SHAPES,
    cases: Sequence[Case] = FULL,
) -> Iterator[Verdict]:
    """Run cases on a device, one after another."""
    for shape in shapes:
        for case in cases:
            with torch.inference_mode():
                yield Verdict(case, shape, _fault(ops, device, shape, case))


def demand_sound(ops: Ops, device: torch.device, shape: Shape) -> None:
    """Raise EngineError that names the operation unless the short cases pass."""
    for verdict in run_checks(ops, device, (shape,), SHORT):
        if verdict.fault is not None:
            raise EngineError(
                f"{verdict.case.op} ({verdict.case.situation}; {shape}) is wrong on {device}: "
                f"{verdict.fault}. `quire check --device {device.type}` tells more; "
                "--device cpu computes without it."
            )


def _fault(ops: Ops, device: torch.device, shape: Shape, case: Case) -> str | None:
    wanted = case.run(cast("Ops", reference), CPU, shape)
    try:
        given = [part.to(CPU) for part in case.run(ops, device, shape)]
    except Exception as error:  # whatever a compiler or a driver raises is this case's verdict
        return f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    for index, (one, other) in enumerate(zip(given, wanted, strict=True)):
        fault = _first_difference(one, other)
        if fault is not None:
            return f"result {index}{fault}" if len(wanted) > 1 else f"result{fault}"
    return None


def _first_difference(given: Tensor, wanted: Tensor) -> str | None:
    """Name the first element of other bits; any NaN equals any other."""
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        return (
            f" is {tuple(given.shape)} {given.dtype}, expected {tuple(wanted.shape)} {wanted.dtype}"
        )
    differs = given != wanted
    if given.dtype.is_floating_point:
        differs |= given.signbit() != wanted.signbit()
        differs &= ~(given.isnan() & wanted.isnan())
    if not differs.any():
        return None
    at = differs.nonzero()[0].tolist()
    count = int(differs.sum())
    return (
        f"{at} is {given[tuple(at)].item()!r}, expected {wanted[tuple(at)].item()!r} "
        f"({count} of {differs.numel()} differ)"
    )
