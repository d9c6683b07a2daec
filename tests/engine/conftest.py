"""One tiny checkpoint for the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from quire.fuzz.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama without a tokenizer."""
    return make_checkpoint("llama2", tmp_path_factory.mktemp("tiny"))
