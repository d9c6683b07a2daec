"""`quire check`'s machinery: sound operations pass, a planted fault is found and named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from quire import reference
from quire.engine.device.check import SHAPES, demand_sound, run_checks
from quire.engine.device.check_cases import ENCODER, FULL, SHORT, Case, Shape
from quire.engine.errors import EngineError
from quire.engine.opset import choose_ops, choose_sums
from quire.kernels import cpu

CPU = torch.device("cpu")
SHAPE = Shape(torch.float32, 32, 2, 8, vocab=60)


def faulty(name: str, fault: Any) -> Any:
    """The kernels with one operation whose result is changed."""
    ops = {key: getattr(cpu, key) for key in cpu.__all__}
    sound = ops[name]

    def broken(*args: Any, **options: Any) -> Any:
        return fault(sound(*args, **options))

    return SimpleNamespace(**(ops | {name: broken}))


def change_last(result: torch.Tensor) -> torch.Tensor:
    """Make the last element another."""
    result = result.clone()
    result.view(-1)[-1] += 1
    return result


def test_every_operation_is_checked() -> None:
    given = {"new_kv_cache", "read_kv", "pack_linear", "unpack_linear"}
    assert {case.op for case in FULL} == set(reference.__all__) - given


@pytest.mark.parametrize("shape", [SHAPE, SHAPES[0], SHAPES[2]])
def test_the_kernels_of_this_machine_pass(shape: Shape) -> None:
    shape = shape._replace(sums=choose_sums("auto"))
    faults = [v for v in run_checks(choose_ops("cpu", "auto"), CPU, (shape,)) if v.fault]
    assert not faults


@pytest.mark.parametrize("name", sorted({case.op for case in SHORT} - {"prepare", "store_tokens"}))
def test_a_wrong_element_is_named(name: str) -> None:
    with pytest.raises(EngineError, match=rf"^{name} \(.*is wrong on cpu.* is .*, expected "):
        demand_sound(faulty(name, change_last), CPU, SHAPE)


@pytest.mark.parametrize("name", sorted({case.op for case in ENCODER}))
def test_a_wrong_element_of_an_encoder_is_found(name: str) -> None:
    verdicts = list(run_checks(faulty(name, change_last), CPU, (SHAPE,), ENCODER))
    assert {v.case.op for v in verdicts if v.fault} == {name}


def test_attention_that_does_not_see_both_ways_is_found() -> None:
    def attention(*args: Any, causal: bool = True, **options: Any) -> torch.Tensor:
        return cpu.paged_attention(*args, **options)

    ops: Any = SimpleNamespace(**{key: getattr(cpu, key) for key in cpu.__all__})
    ops.paged_attention = attention
    verdicts = list(run_checks(ops, CPU, (SHAPE,), FULL))
    assert [v.case.situation for v in verdicts if v.fault] == ["both ways"]


def test_one_flipped_sign_of_a_zero_is_found() -> None:
    ops = faulty("silu_mul", lambda x: torch.where(x == 0.0, -0.0, x))

    def zeros(ops: Any, device: torch.device, shape: Shape) -> tuple[torch.Tensor, ...]:
        return (ops.silu_mul(torch.zeros((1, 32))),)

    case = Case("silu_mul", "zeros", zeros)
    (verdict,) = run_checks(ops, CPU, (SHAPE,), (case,))
    assert verdict.fault == "result[0, 0] is -0.0, expected 0.0 (16 of 16 differ)"


def test_nan_equals_nan() -> None:
    def nans(ops: Any, device: torch.device, shape: Shape) -> tuple[torch.Tensor, ...]:
        sign = 1.0 if ops is reference else -1.0
        return (torch.tensor([1.0, torch.nan]).copysign(torch.tensor([1.0, sign])),)

    (verdict,) = run_checks(cpu, CPU, (SHAPE,), (Case("x", "nan", nans),))  # type: ignore[arg-type]
    assert verdict.fault is None


def test_another_shape_or_type_is_a_fault() -> None:
    for fault in (lambda x: x[:-1], lambda x: x.double()):
        verdicts = list(run_checks(faulty("embed", fault), CPU, (SHAPE,), SHORT))
        assert [v.case.op for v in verdicts if v.fault] == ["embed"]


def test_what_is_raised_is_a_fault_of_that_operation_alone() -> None:
    def fault(_: Any) -> Any:
        raise RuntimeError("no such instruction")

    verdicts = list(run_checks(faulty("rms_norm", fault), CPU, (SHAPE,), SHORT))
    assert [(v.case.op, v.fault) for v in verdicts if v.fault] == [
        ("rms_norm", "RuntimeError: no such instruction")
    ]
