"""Embedding: a gather of rows."""

from __future__ import annotations

import torch
from torch import Tensor


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """See Ops.embed."""
    return torch.embedding(weight, tokens)
