"""Which instructions add products of bfloat16: the fastest that are proven to, on this machine.

What an instruction does in the last bit and with denormals is documented thinly, and a hypervisor
or a new processor may differ. So before its first use a tag multiplies two small matrices that tell
orders and roundings apart, and must have the bits of the definition.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ...reference import linear as defined_linear
from ...reference import pack_linear as defined_pack_linear
from ...reference.activation import LEAST_NORMAL
from ...reference.sums import TILE, Sums
from .emit import TAGS, promised_tag
from .matmul import block_weight, lies_apart, multiply
from .matmul_amx import multiply_amx

logger = logging.getLogger("quire")

_ROWS, _WIDTH, _COLUMNS = 18, 1088, 64


@cache
def best_tag(sums: Sums) -> str:
    """Return the fastest tag of bfloat16 with these sums that keeps its word here."""
    tags = TAGS[sums]
    for tag in tags[tags.index(promised_tag(sums)) :]:
        if all(agrees(sums, tag, *sample) for sample in (_cancelling(), _near_denormals())):
            return tag
        logger.warning("Sums of bfloat16 by %s differ from their definition: not used.", tag)
    raise AssertionError(f"no way to add bfloat16 in {sums} agrees with the definition")


def agrees(sums: Sums, tag: str, x: Tensor, weight: Tensor) -> bool:
    """Return whether x [rows, in] by weight [_COLUMNS, in] has the bits of the definition."""
    own = multiply_by(tag, x, form_weight(weight, sums), _COLUMNS, None)
    return torch.equal(own, defined_linear(x, defined_pack_linear(weight, None, sums=sums)))


def form_weight(weight: Tensor, sums: Sums, empty: Callable[..., Tensor] = torch.empty) -> Tensor:
    """Return weight [out, in] bfloat16 in the form that all tags of these sums multiply by.

    empty: as in matmul.block_weight.
    """
    unit = TILE if sums == "tiles" else 2
    return block_weight(weight, unit=unit, is_apart=lies_apart(TAGS[sums][0]), empty=empty)


def multiply_by(tag: str, x: Tensor, weight: Tensor, columns: int, bias: Tensor | None) -> Tensor:
    """Multiply x, filled up to whole units, by a formed weight in the way of a tag."""
    if tag == TAGS["tiles"][0]:
        return multiply_amx(x, weight, columns, bias)
    return multiply(x, weight, columns, bias, tag=tag)


def _cancelling() -> tuple[Tensor, Tensor]:
    """Make matrices whose exact product is zero: nothing but rounding errors is left."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(_WIDTH, generator=generator)

    def mirrored(count: int, sign: float) -> Tensor:
        half = torch.randn((count, _WIDTH // 2), generator=generator)
        return torch.cat((half, sign * half), dim=1)[:, order].bfloat16()

    return mirrored(_ROWS, 1), mirrored(_COLUMNS, -1)


def _near_denormals() -> tuple[Tensor, Tensor]:
    """Make matrices whose sums lie on the border of the denormals, where they are flushed."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((_ROWS, _WIDTH), generator=generator)
    weight = torch.randn((_COLUMNS, _WIDTH), generator=generator)
    return x.bfloat16(), (weight * LEAST_NORMAL).bfloat16()
