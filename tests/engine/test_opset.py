"""Choosing the operations."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from quire.engine.errors import ConfigError
from quire.engine.opset import choose_ops
from quire.reference.ops import Ops

NAMES = [name for name, value in vars(Ops).items() if inspect.isfunction(value) and name[0] != "_"]


@pytest.mark.parametrize("backend", ["auto", "kernels", "reference"])
def test_every_backend_has_every_operation_as_declared(backend: Any) -> None:
    ops = choose_ops("cpu", backend)
    assert len(NAMES) == 14
    for name in NAMES:
        declared = list(inspect.signature(getattr(Ops, name)).parameters.values())[1:]
        given = list(inspect.signature(getattr(ops, name)).parameters.values())
        shapes = [(p.name, p.kind, p.default) for p in given]
        assert shapes[: len(declared)] == [(p.name, p.kind, p.default) for p in declared], name
        more = given[len(declared) :]
        assert all(p.default is not inspect.Parameter.empty for p in more), name


def test_backends_are_two_modules() -> None:
    assert choose_ops("cpu", "auto") is choose_ops("cpu", "kernels")
    assert choose_ops("cpu", "auto") is not choose_ops("cpu", "reference")


@pytest.mark.parametrize(("device", "backend"), [("cuda", "auto"), ("cpu", "triton")])
def test_an_unknown_choice_is_named(device: str, backend: Any) -> None:
    with pytest.raises(ConfigError, match=f"'{backend}' on device '{device}'"):
        choose_ops(device, backend)
