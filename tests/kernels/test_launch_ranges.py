"""How kernels are run and cached."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quire.kernels.cpu import launch
from quire.kernels.cpu.launch import MIN_WORK, run_ranges


@given(st.integers(0, 40), st.integers(0, 20), st.integers(1, 4))
def test_ranges_cover_every_item_once(num_items: int, units: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    ranges: list[tuple[int, int]] = []
    run_ranges(lambda start, end: ranges.append((start, end)), num_items, units * MIN_WORK)
    torch.set_num_threads(before)
    assert sorted(i for start, end in ranges for i in range(start, end)) == list(range(num_items))
    assert all(start < end for start, end in ranges)
    assert len(ranges) <= threads


def test_little_work_stays_on_the_callers_thread() -> None:
    torch.set_num_threads(2)
    names: list[int] = []
    run_ranges(lambda start, end: names.append(threading.get_ident()), 100, MIN_WORK)
    assert names == [threading.get_ident()]


def test_much_work_goes_to_two_threads_at_once() -> None:
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=10)
    run_ranges(lambda start, end: meeting.wait(), 2, 2 * MIN_WORK)


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_in_a_range_is_raised_after_the_others_ended(bad: int) -> None:
    torch.set_num_threads(2)
    ended: list[int] = []

    def call(start: int, end: int) -> None:
        if start == bad:
            raise ValueError(f"range {start}")
        ended.append(start)

    with pytest.raises(ValueError, match=f"range {bad}"):
        run_ranges(call, 2, 2 * MIN_WORK)
    assert ended == [1 - bad]


def test_several_callers_may_run_at_once() -> None:
    torch.set_num_threads(2)
    sums = [0] * 4

    def caller(place: int) -> None:
        parts: list[int] = []
        for _ in range(50):
            run_ranges(lambda s, e: parts.append(sum(range(s, e))), 1000, 4 * MIN_WORK)
        sums[place] = sum(parts)

    threads = [threading.Thread(target=caller, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [50 * sum(range(1000))] * 4


def test_a_second_process_loads_kernels_from_the_cache() -> None:
    program = (
        "from quire.kernels.cpu import norm, sampling\n"
        "from quire.kernels.cpu.logprobs import _logprobs\n"
        "for kernel in (norm._norm_bfloat16, sampling._sample, _logprobs):\n"
        "    print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, capture_output=True)
    second = subprocess.run(command, check=True, capture_output=True, text=True)
    assert second.stdout.split() == ["1", "0"] * 3


def test_the_cache_is_stale_after_any_source_changed() -> None:
    names = {name for name, _, _ in launch._source_stamp()}
    assert {"simd.py", "launch.py", "activation.py", "ops.py", "sampling.py"} <= names
