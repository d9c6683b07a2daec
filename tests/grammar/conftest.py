"""One vocabulary of bytes for most tests of grammars, and its checkers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from quire.engine.grammar.grammars import Grammars
from quire.fuzz.schema_suite import byte_vocabulary


@pytest.fixture(scope="session")
def grammars() -> Iterator[Grammars]:
    """Every byte is a token, so that whatever a grammar allows can be spelled."""
    made = Grammars(lambda: byte_vocabulary(("<|tool|>", "<|call|>")))
    yield made
    made.close()
