"""The matrix unit of Intel processors (AMX): tiles of 16 rows of 64 bytes, and their product.

tdpbf16ps multiplies a tile of 16 rows of up to 32 bfloat16 by one of up to 16 pairs for each of 16
columns, and adds in the order "tiles" of `reference.sums` (Intel's manual says so; 0 of 768,000
sums with random, cancelling and denormal operands differ). Linux gives its registers to a process
that asks. Emitters only, and what they need; `emit` does the rest.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from .simd import cgutils

TILE_ROWS = 16
TILE_BYTES = 1024
ROW_BYTES = 64
_ARCH_PRCTL = 158
_REQUEST_PERMISSION, _TILE_DATA = 0x1023, 18
_REGISTERS = 8
_I8 = ir.IntType(8)


@cache
def is_available() -> bool:
    """Ask the system for the matrix unit; return whether bfloat16 may be multiplied there."""
    features = llvmlite.binding.get_host_cpu_features()
    needed = ("amx-tile", "amx-bf16", "avx512bf16")
    if platform.system() != "Linux" or not all(features.get(name) for name in needed):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def make_palette(shapes: dict[int, tuple[int, int]]) -> Tensor:
    """Return what `configure` loads: (rows, bytes of a row) by register, 16 x 64 where not given.

    Whoever has it may configure, where there is a matrix unit: the system has been asked.
    """
    is_available()
    palette = np.zeros(64, np.uint8)
    palette[0] = 1
    row_bytes, rows = palette[16:32].view(np.uint16), palette[48:56]
    for register in range(_REGISTERS):
        rows[register], row_bytes[register] = shapes.get(register, (TILE_ROWS, ROW_BYTES))
    return torch.from_numpy(palette)


def configure(e: Any, palette: Any) -> None:
    """Give the registers their shapes, all of them zeroed."""
    _call(e, "ldtilecfg", _pointer(e, palette))


def release(e: Any) -> None:
    """Give the registers back, so that the system need not save them."""
    _call(e, "tilerelease")


def zero(e: Any, register: int) -> None:
    """Fill a register with zeros."""
    _call(e, "tilezero", _number(register))


def load(e: Any, register: int, address: Any, stride: Any = ROW_BYTES) -> None:
    """Load a register from rows that lie stride bytes apart."""
    _call(e, "tileloadd64", _number(register), _pointer(e, address), _stride(stride))


def store(e: Any, register: int, address: Any, stride: Any = ROW_BYTES) -> None:
    """Store a register to rows that lie stride bytes apart."""
    _call(e, "tilestored64", _number(register), _pointer(e, address), _stride(stride))


def multiply(e: Any, total: int, left: int, right: int) -> None:
    """Add the product of two registers of bfloat16 to one of float32."""
    _call(e, "tdpbf16ps", _number(total), _number(left), _number(right))


def prefetch_lines(e: Any, address: Any, lines: Any) -> None:
    """Ask for a number of cache lines, one after the other."""
    with cgutils.for_range(e.b, lines) as loop:
        e.prefetch(e.address(address, e.times(loop.index, ROW_BYTES)))


def _call(e: Any, name: str, *args: Any) -> None:
    e.call(f"llvm.x86.{name}", ir.VoidType(), *args)


def _number(register: int) -> Any:
    return ir.Constant(_I8, register)


def _pointer(e: Any, address: Any) -> Any:
    return e.b.inttoptr(address, _I8.as_pointer())


def _stride(stride: Any) -> Any:
    return ir.Constant(ir.IntType(64), stride) if isinstance(stride, int) else stride
