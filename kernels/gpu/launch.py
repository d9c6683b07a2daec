"""How kernels are started: one function for all, on a GPU or in Triton's interpreter.

Owns the options that every kernel shares. Multiply-adds are never contracted, so that the steps of
the reference stay apart.

On Hopper a kernel comes to the device while the one before it ends (programmatic dependent launch).
The rules that make this safe: a kernel calls `wait` before it reads what other kernels write, and
`let_next_come` after that; where it does not call it, the next kernel comes when it has ended. So a
kernel finds everything but its direct predecessor's results complete from its first instruction on.
What comes before `wait` may therefore read weights and what `prepare` gave, which lets none come.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

OVERLAPPED_CAPABILITY = 9
"""Compute capability from which launches overlap."""


@triton.jit
def wait(OVERLAPPED: tl.constexpr):
    """Wait until the kernel before this one has ended and its results can be seen."""
    if OVERLAPPED:
        tl.extra.cuda.gdc_wait()


@triton.jit
def wait_at_0(index, FACTOR: tl.constexpr, OVERLAPPED: tl.constexpr):
    """Return index, int32 and a multiple of FACTOR; at 0, `wait` first.

    For a loop whose loads come ahead: a load at the result comes after the wait, and a load of
    weights in front of it in the loop's body comes before.
    """
    if OVERLAPPED:
        index = tl.inline_asm_elementwise(
            "{.reg .pred p; setp.eq.s32 p, $1, 0; @p griddepcontrol.wait; mov.b32 $0, $1;}",
            "=r,r",
            [index],
            dtype=tl.int32,
            is_pure=True,  # the loop cannot be cut into stages otherwise
            pack=1,
        )
    return tl.multiple_of(index, FACTOR)


@triton.jit
def let_next_come(OVERLAPPED: tl.constexpr):
    """Let the next kernel come to the device as soon as all programs have said so."""
    if OVERLAPPED:
        tl.extra.cuda.gdc_launch_dependents()


def start(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Tensor | float,
    warps: int = 4,
    stages: int = 3,
    registers: int | None = None,
    **constants: Any,
) -> None:
    """Queue a kernel on the current stream. Its constexpr OVERLAPPED is filled in here.

    grid: programs in each dimension; nothing runs where one is 0. registers: the most that a thread
    may have, so that more programs share a processor; NVIDIA's only.
    """
    if 0 in grid:
        return
    options: dict[str, Any] = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    overlapped = is_overlapped()
    if overlapped:
        options["launch_pdl"] = True
    if registers is not None:
        options["maxnreg"] = registers
    kernel[grid](*args, OVERLAPPED=overlapped, **constants, **options)


@cache
def is_overlapped() -> bool:
    """Return whether kernels overlap on this machine's GPU."""
    if is_interpreted() or not torch.cuda.is_available() or is_amd():
        return False
    return torch.cuda.get_device_capability()[0] >= OVERLAPPED_CAPABILITY


def is_interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, on the CPU."""
    return bool(knobs.runtime.interpret)


def is_amd() -> bool:
    """Return whether this PyTorch is for AMD's GPUs."""
    return torch.version.hip is not None


@cache
def num_processors() -> int:
    """Return the multiprocessors of this machine's GPU; a few in the interpreter."""
    if is_interpreted() or not torch.cuda.is_available():
        return 4
    return torch.cuda.get_device_properties().multi_processor_count


def next_power_of_2(n: int) -> int:
    """Return the least power of two that is at least n; n > 0."""
    return 1 << (n - 1).bit_length()
