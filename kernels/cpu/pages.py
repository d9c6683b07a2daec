"""Memory in huge pages, where the system has them.

What streams through a step (weights, keys and values) is read at 33 GB/s from huge pages and at 24
to 27 from small ones (one thread, measured). A refusal costs speed only.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from threading import Lock

import torch
from torch import Tensor

_HUGE_PAGE = 1 << 21
_LINE = 64


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros of their own, not touched before their first use."""
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE_PAGE:
        return torch.zeros(shape, dtype=dtype)
    return _map(size)[:size].view(dtype).view(shape)


class Arena:
    """Hands out memory piece by piece from large mappings, so that small pieces share huge pages.

    A mapping lives as long as any of its pieces. Safe to call from several threads.
    """

    def __init__(self, mapping_bytes: int = 1 << 26) -> None:
        self._mapping_bytes = mapping_bytes
        self._rest = torch.empty(0, dtype=torch.uint8)
        self._lock = Lock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return uninitialized memory that starts at a cache line."""
        size = math.prod(shape) * dtype.itemsize
        taken = -(-size // _LINE) * _LINE
        with self._lock:
            if taken > len(self._rest):
                self._rest = _map(max(taken, self._mapping_bytes))
            piece, self._rest = self._rest[:size], self._rest[taken:]
        return piece.view(dtype).view(shape)


def _map(size: int) -> Tensor:
    """Map size bytes or more of zeros, the first at the start of a huge page: uint8."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return whole[-whole.data_ptr() % _HUGE_PAGE :]
