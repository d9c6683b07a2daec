"""RMS normalization (Zhang and Sennrich 2019, arXiv:1910.07467) and layer normalization (Ba et al.
2016, arXiv:1607.06450), with and without a residual."""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 16


def sum_squares(x: Tensor) -> Tensor:
    """Return the 16-lane sum of x*x over the last axis of float32 x: [..., width] -> [..., 1]."""
    return sum_lanes(x * x)


def sum_lanes(x: Tensor) -> Tensor:
    """Return the 16-lane sum over the last axis of float32 x: [..., width] -> [..., 1].

    Lane j adds elements j, j+16, j+32, .. in order, then lanes fold by halves. width % 16 == 0.
    """
    width = x.shape[-1]
    assert x.dtype == torch.float32 and width % LANES == 0, (x.dtype, width)
    parts = x.reshape(*x.shape[:-1], width // LANES, LANES)
    lanes = torch.zeros_like(parts[..., 0, :])
    for step in range(width // LANES):
        lanes = lanes + parts[..., step, :]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes


def scale_by_rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return (x * r) * weight in float32, not rounded; r = 1 / sqrt(s / width + eps).

    x: [..., width] float32; weight: [width] float32.
    """
    width = torch.tensor(float(x.shape[-1]))
    mean = sum_squares(x) / width
    r = torch.tensor(1.0) / _sqrt(mean + torch.tensor(eps, dtype=torch.float32))
    return (x * r) * weight


def _sqrt(x: Tensor) -> Tensor:
    """Return the correctly rounded float32 square root.

    torch.sqrt on float32 is not: it calls a vector library that is off by one bit in a tenth of all
    cases. No square root of a float32 lies so near to the middle of two that float64 could miss it.
    """
    return torch.sqrt(x.double()).float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See Ops.rms_norm."""
    return scale_by_rms(x.float(), weight.float(), eps).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See Ops.add_rms_norm."""
    residual.copy_((residual.float() + x.float()).to(residual.dtype))
    return rms_norm(residual, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See Ops.layer_norm."""
    wide = x.float()
    width = torch.tensor(float(x.shape[-1]))
    centred = wide - sum_lanes(wide) / width
    variance = sum_squares(centred) / width
    r = torch.tensor(1.0) / _sqrt(variance + torch.tensor(eps, dtype=torch.float32))
    return (((centred * r) * weight.float()) + bias.float()).to(x.dtype)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See Ops.add_layer_norm."""
    return layer_norm((residual.float() + x.float()).to(x.dtype), weight, bias, eps)
