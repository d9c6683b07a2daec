"""Kernels of kernels/gpu run on a GPU where there is one, else in Triton's interpreter, repaired.

Nothing else in the suite imports `quire.kernels.gpu` in this process: triton reads TRITON_INTERPRET
when a kernel is defined, those of its own library included.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    assert "triton" not in sys.modules or "TRITON_INTERPRET" in os.environ, (
        "triton was imported before TRITON_INTERPRET was set"
    )
    os.environ["TRITON_INTERPRET"] = "1"
    from quire.fuzz import interpreter

    interpreter.install()


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run."""
    return "cuda" if torch.cuda.is_available() else "cpu"
