"""Twin of reference.linear: the same functions, for both multiply by oneDNN's packed weights.

Only where the packed weights lie differs: in huge pages, where the system has them. A step of few
rows streams all weights from memory, and small pages cost it a sixth of its speed.
"""

import ctypes
import mmap

import torch
from torch import Tensor

from ...reference.linear import LEAST_ROWS, PADDED_FALLBACK, linear, self_test
from ...reference.linear import pack_linear as _pack_linear
from ...reference.ops import PackedLinear

__all__ = ["linear", "pack_linear", "self_test"]

_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)
_MADV_COLLAPSE = 25
"""Linux 6.1 and later: collapse now, not when a kernel thread comes by. Not in module mmap yet."""
_HUGE_PAGE = 1 << 21


def pack_linear(
    weight: Tensor, bias: Tensor | None, *, segments: int = 1, padded: int = LEAST_ROWS
) -> PackedLinear:
    """See Ops.pack_linear."""
    packed = _pack_linear(weight, bias, segments=segments, padded=padded)
    if packed.padded != PADDED_FALLBACK and _MADV_HUGEPAGE is not None:
        for segment in packed.segments:
            address = int(torch.ops.mkldnn.data_ptr(segment))
            _use_huge_pages(address, int(torch.ops.mkldnn._nbytes(segment)))
    return packed


def _use_huge_pages(address: int, size: int) -> None:
    """Ask for huge pages under [address, address + size); a refusal costs speed only."""
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length < _HUGE_PAGE:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    madvise(start, length, _MADV_HUGEPAGE)
    madvise(start, length, _MADV_COLLAPSE)
