"""Choosing the operations."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from quire.engine.errors import ConfigError
from quire.engine.opset import choose_device, choose_ops, choose_sums, refuse_shape
from quire.reference.ops import Ops

NAMES = [name for name, value in vars(Ops).items() if inspect.isfunction(value) and name[0] != "_"]


@pytest.mark.parametrize("backend", ["auto", "kernels", "reference"])
def test_every_backend_has_every_operation_as_declared(backend: Any) -> None:
    ops = choose_ops("cpu", backend)
    assert len(NAMES) == 21
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


@pytest.mark.parametrize(("device", "backend"), [("cuda", "reference"), ("cpu", "triton")])
def test_an_unknown_choice_is_named(device: str, backend: Any) -> None:
    with pytest.raises(ConfigError, match=f"'{backend}' on device '{device}'"):
        choose_ops(device, backend)


def pretend(
    monkeypatch: pytest.MonkeyPatch, version: str | None, capability: tuple[int, int] | None
) -> None:
    """Have a torch built for a version of CUDA on a machine with a GPU, or None."""
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")


@pytest.mark.parametrize(
    ("version", "capability", "says"),
    [
        (None, None, "built without CUDA"),
        ("13.0", None, "nvidia-smi"),
        ("13.0", (7, 5), "Some GPU has compute capability 7.5"),
    ],
)
def test_a_gpu_that_cannot_be_had_is_explained(
    monkeypatch: pytest.MonkeyPatch, version: str | None, capability: Any, says: str
) -> None:
    pretend(monkeypatch, version, capability)
    with pytest.raises(ConfigError, match=f"device is 'cuda', but .*{says}.*--device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == choose_device("cpu") == "cpu"


def test_auto_is_the_gpu_unless_an_option_asks_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "13.0", (9, 0))
    assert choose_device("auto") == choose_device("cuda", "kernels") == "cuda"
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto", "reference") == choose_device("auto", "auto", "tiles") == "cpu"


def test_what_only_a_cpu_does_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "13.0", (9, 0))
    with pytest.raises(ConfigError, match="backend is 'reference' and device 'cuda'"):
        choose_device("cuda", "reference")
    with pytest.raises(ConfigError, match="bfloat16_sums is 'pairs' and device 'cuda'"):
        choose_device("cuda", "auto", "pairs")


def test_a_gpu_adds_in_an_order_of_its_own() -> None:
    assert choose_sums("auto", "cuda") == "pairs"
    assert choose_sums("tiles", "cpu") == "tiles"


def test_kernels_may_refuse_a_shape() -> None:
    class Picky:
        @staticmethod
        def refuse_head_dim(head_dim: int) -> str | None:
            return None if head_dim == 64 else f"head_dim is {head_dim}."

    picky: Any = Picky()
    assert refuse_shape(picky, 64) is None
    assert refuse_shape(picky, 8) == "head_dim is 8."
    assert refuse_shape(choose_ops("cpu", "auto"), 8) is None
