"""Elementwise functions: exp2 and log, the two polynomials that all of Quire shares, and gated SiLU.

Every step is one IEEE float32 operation, so that any implementation which keeps the order of these
lines has the same bits: torch's own exp and log differ between vector body and tail, and between
machines. Coefficients are the float32 values nearest to the decimals written here.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
SQRT_HALF_BITS = 0x3F3504F3
"""Bits of the float32 nearest to sqrt(1/2): `log` reduces to [sqrt(1/2), sqrt(2))."""
EXP2_COEFFICIENTS = (
    1.5403530e-4,
    1.3333558e-3,
    9.6181291e-3,
    5.5504109e-2,
    2.4022651e-1,
    6.9314718e-1,
    1.0,
)
"""Of f^6 .. f^0, f in [-1/2, 1/2]."""


def exp2(x: Tensor) -> Tensor:
    """Return 2 ** x for float32 x <= 127 of any shape, relative error below 3e-7.

    x is clamped to -126 from below (the least normal result); n = floor(x + 0.5), f = x - n; Horner's
    rule with separate multiplies and adds; times 2^n through the exponent bits. NaN stays NaN.
    """
    x = torch.maximum(x, x.new_tensor(-126.0))
    n = torch.floor(x + 0.5)
    f = x - n
    p = torch.full_like(f, EXP2_COEFFICIENTS[0])
    for coefficient in EXP2_COEFFICIENTS[1:]:
        p = p * f + coefficient
    exponent = torch.nan_to_num(n).to(torch.int32) + 127
    return p * (exponent << 23).view(torch.float32)
