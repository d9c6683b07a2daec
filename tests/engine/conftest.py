"""One tiny checkpoint for the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from quire import LLM
from quire.fuzz.beam_runs import EOS, OPTIONS, Oracle, load_oracle
from quire.fuzz.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama without a tokenizer."""
    return make_checkpoint("llama2", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of which many tokens end an answer."""
    return make_checkpoint(
        "llama2", tmp_path_factory.mktemp("ending"), seed=3, eos_token_id=list(EOS)
    )


@pytest.fixture(scope="session")
def oracle(ending: Path) -> Oracle:
    """The reference."""
    return load_oracle(ending)


@pytest.fixture(scope="session")
def llm(ending: Path) -> Iterator[LLM]:
    """An engine of it that tests share, one after the other."""
    with LLM(str(ending), **OPTIONS, num_kv_blocks=256) as made:
        yield made
