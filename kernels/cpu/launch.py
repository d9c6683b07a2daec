"""How compiled kernels are made and run: `compiled`, `inlined`, `outlined`, `run_ranges`.

Kernels take addresses and sizes as plain integers (unboxing an array costs microseconds, an integer
nothing), release the interpreter lock and never start threads. Work is split here, over Python
threads: numba's own workqueue layer aborts the process when two threads call it at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import torch
from numba.core import caching

logger = logging.getLogger("quire")

MIN_WORK = 1 << 17
"""Work for one thread that outweighs handing it over (tens of microseconds)."""

# numba's own types come and go with its versions; nothing of it is typed here.
njit: Any = numba.njit
_caching: Any = caching

F = TypeVar("F", bound=Callable[..., Any])


class _PackageCache(_caching.FunctionCache):  # type: ignore[misc]  # see above
    """numba's cache on disk, stale as soon as any source of kernels or reference changes.

    numba looks only at the file of the compiled function: after a change of a helper or constant in
    another file it would go on running the old arithmetic.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _caching.IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=_source_stamp(),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load compiled code, or return None, which is when compiling begins."""
        found = super().load_overload(sig, target_context)
        if found is None:
            _announce()
        return found


@cache
def _announce() -> None:
    logger.info("Compiling kernels for this machine, once: this takes about half a minute")


def _source_stamp() -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every source that a kernel may be made of."""
    here = Path(__file__).parent
    folders = (here, here.parent.parent / "reference")
    sources = [source for folder in folders for source in sorted(folder.glob("*.py"))]
    return tuple((s.name, s.stat().st_mtime_ns, s.stat().st_size) for s in sources)


def compiled(signature: str) -> Callable[[F], F]:
    """Compile a kernel for one explicit signature, or load it from the cache on disk.

    IEEE arithmetic as written: no fast-math, no contraction; division by zero gives infinity or
    NaN.
    """

    def decorate(function: F) -> F:
        kernel: Any = njit(nogil=True, error_model="numpy")(function)
        kernel._cache = _PackageCache(function)
        kernel.compile(signature)
        kernel.disable_compile()
        return cast(F, kernel)

    return decorate


def inlined(function: F) -> F:
    """Mark a helper that kernels call: always inlined, so that loops around it vectorize."""
    helper: F = njit(nogil=True, error_model="numpy", forceinline=True)(function)
    return helper


def outlined(function: F) -> F:
    """Mark a helper that is compiled apart, once, and called: for whole passes over a row."""
    helper: F = njit(nogil=True, error_model="numpy")(function)
    return helper


@cache
def _pool(process_id: int, num_threads: int) -> ThreadPoolExecutor:
    """One pool a process (threads do not survive a fork) and size."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix=f"quire-kernel-{process_id}")


def run_ranges(call: Callable[[int, int], object], num_items: int, work: int) -> None:
    """Run call(start, end) over ranges that cover [0, num_items), and return when all are done.

    Ranges go to at most torch.get_num_threads() threads (the caller's is one of them), so that each
    has MIN_WORK or more of `work`, the cost of all items in units of about a nanosecond. How the
    items are split must not reach the result. Safe to call from several threads at once. An
    exception of a range is raised here, after the others have ended.
    """
    parts = min(torch.get_num_threads(), num_items, work // MIN_WORK) if work > MIN_WORK else 1
    if parts <= 1:
        if num_items:
            call(0, num_items)
        return
    pool = _pool(os.getpid(), torch.get_num_threads() - 1)
    bounds = [num_items * part // parts for part in range(parts + 1)]
    others = [pool.submit(call, bounds[i], bounds[i + 1]) for i in range(1, parts)]
    try:
        call(bounds[0], bounds[1])
    finally:
        errors = [future.exception() for future in others]
    for error in errors:
        if error is not None:
            raise error
