"""Embedding: a gather of rows. Twin of `reference.embedding`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import let_next_come, start, wait

WIDTH = 1024
"""Elements that a program copies."""


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """See Ops.embed."""
    hidden = weight.shape[1]
    out = torch.empty((len(tokens), hidden), dtype=weight.dtype, device=weight.device)
    start(
        _embed, (len(tokens), triton.cdiv(hidden, WIDTH)), tokens, weight, out, hidden, WIDTH=WIDTH
    )
    return out


@triton.jit
def _embed(tokens_ptr, weight_ptr, out_ptr, hidden, WIDTH: tl.constexpr, OVERLAPPED: tl.constexpr):
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < hidden
    token = tl.load(tokens_ptr + row).to(tl.int64)
    values = tl.load(weight_ptr + token * hidden + columns, inside)
    tl.store(out_ptr + row * hidden + columns, values, inside)
