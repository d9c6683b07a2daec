"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run beside each other: one compute thread each, and whatever a test sets is undone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def engines_compute_on_the_cpu() -> Iterator[None]:
    """Also where there is a GPU: what tests hold engines to are a CPU's bits. A test of a GPU says
    so by device="cuda"."""
    if not torch.cuda.is_available():
        yield
        return
    from quire.engine import build, opset

    choose = opset.choose_device

    def choose_cpu(name: Any, backend: Any, sums: Any) -> Any:
        return choose("cpu" if name == "auto" else name, backend, sums)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "choose_device", choose_cpu)
        yield
