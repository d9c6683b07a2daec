"""Muon for the matrices of the demo network; what is not a layer's matrix is left to AdamW."""

from __future__ import annotations

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)


def _orthogonalized(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values pushed towards one."""
    wide = matrix.bfloat16() if matrix.shape[0] <= matrix.shape[1] else matrix.bfloat16().T
    wide = wide / (wide.norm() + 1e-7)
    first, second, third = _QUINTIC
    for _ in range(5):
        gram = wide @ wide.T
        wide = first * wide + (second * gram + third * gram @ gram) @ wide
    upright: Tensor = wide if matrix.shape[0] <= matrix.shape[1] else wide.T
    return upright.float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is orthogonalized."""

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": 0.95, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                momentum = state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                update = _orthogonalized(matrix.grad.lerp(momentum, group["momentum"]))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["decay"])
                matrix.add_(update, alpha=-group["lr"] * scale)
