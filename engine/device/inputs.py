"""From a plan to what the device must know of a step: one int32 array, and tensors that view it.

`StepInputs` owns the array and its twin on the device. Geometry (who computes what, where) is made
here in numpy, without a loop over rows; what lives in the device table (tokens, blocks) is gathered
on the device, by Ops.prepare. Sections begin at multiples of ALIGNMENT words, so that kernels see
the same alignment whatever the numbers of rows are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...reference.ops import SamplingRows, StepRows
from ..plan import MAX_DRAFTS, StepPlan
from ..request import IntArray
from .buckets import Buckets, Padded
from .link import Link
from .sampling_rows import NUM_PARAMETERS, PADDING, PLAIN, SamplingTable, StepExtras

ALIGNMENT = 16
"""Words: 64 bytes."""
MOST_LAYOUTS = 1024
"""Views that are kept; prefill steps make ever new ones."""


class Layout(NamedTuple):
    """What the array's sections depend on."""

    num_rows: int
    num_samples: int
    has_tail: bool
    """Whether some tokens of the step yield no sample, so that samples are rows of their own."""


class _Sections(NamedTuple):
    """Where in the array, in words. int64 sections come first."""

    seeds: slice
    tail_tokens: slice
    slots: slice
    starts: slice
    query_starts: slice
    sample_slots: slice
    sample_positions: slice
    parameters: slice
    """NUM_PARAMETERS lines, each of a multiple of ALIGNMENT."""
    tail_starts: slice
    tail_query_starts: slice


class _Arrays(NamedTuple):
    """The sections on the host, as numpy takes them."""

    seeds: NDArray[np.int64]
    tail_tokens: NDArray[np.int64]
    slots: IntArray
    starts: IntArray
    query_starts: IntArray
    sample_slots: IntArray
    sample_positions: IntArray
    parameters: IntArray
    """[NUM_PARAMETERS, samples]"""
    tail_starts: IntArray
    tail_query_starts: IntArray


class TailRows(NamedTuple):
    """The tokens that yield samples, where that is not all of a step."""

    tokens: Tensor
    """[samples] int64, their indices among the step's tokens."""
    rows: StepRows
    """One row of one token for each."""


class StepTensors(NamedTuple):
    """The sections on the device. They are written again for the next step."""

    rows: StepRows
    sample_slots: Tensor
    """[samples] int32, where the drawn tokens go; -1: nowhere,"""
    sample_positions: Tensor
    """[samples] int32, and at which position."""
    sampling: SamplingRows
    tail: TailRows | None
    """None where every token yields a sample."""


class PackedStep(NamedTuple):
    """One step, ready to be computed."""

    tensors: StepTensors
    num_tokens: int
    """Padding included,"""
    num_samples: int
    """not included: padding comes last."""
    is_padded: bool
    """Whether it has one of the sizes that steps are padded to."""
    extras: StepExtras


class StepInputs:
    """The array of one runner."""

    def __init__(self, link: Link, max_rows: int, max_len: int, buckets: Buckets) -> None:
        """buckets: what steps are padded to."""
        self._link = link
        self._max_len = max_len
        self._buckets = buckets
        most = max((max_rows, *buckets.flat, *buckets.rows))
        _, num_words = _cut(Layout(most, max(most, max_rows * (1 + MAX_DRAFTS)), has_tail=True))
        # torch allocates at cache lines, numpy does not.
        self._host: IntArray = torch.zeros(num_words, dtype=torch.int32).numpy()
        self._mirror = link.mirror(self._host)
        self._views: dict[Layout, tuple[_Arrays, StepTensors, int]] = {}

    def pack(self, plan: StepPlan, table: SamplingTable) -> PackedStep:
        """Lay the tokens of the rows one after another, and send what the device must know.

        Padded, a short step has a row for each: a token's bits are the same, and so a step with
        guesses, or with a few tokens of a prompt, is one more decode step.
        """
        row_slots, row_starts = plan.slots, plan.starts
        ends = np.cumsum(plan.num_tokens, dtype=np.int32)
        num_tokens = int(ends[-1])
        kv_lens = plan.starts + plan.num_tokens
        longest = int(kv_lens.max())
        assert plan.num_tokens.min() > 0, plan.num_tokens
        assert longest <= self._max_len, (longest, self._max_len)
        slots, positions = plan.sampled()
        num_samples = len(slots)
        has_tail = num_tokens > num_samples
        # A token that is drawn must have a place, too.
        assert not num_samples or positions.max() < self._max_len, (positions, self._max_len)
        drawing = _sampling_tokens(plan, ends) if has_tail else None
        padded = self._buckets.find(plan)
        if padded is not None and padded.is_flat:
            row_slots, row_starts = _tokens_of(plan, ends)
            ends = np.arange(1, num_tokens + 1, dtype=np.int32)
        num_rows = len(row_slots)
        layout = Layout(num_rows, num_samples, has_tail)
        if padded is not None:
            layout = Layout(padded.num_rows, padded.num_rows, has_tail)
        arrays, tensors, num_words = self._view(layout)
        arrays.slots[:num_rows] = row_slots
        arrays.starts[:num_rows] = row_starts
        arrays.query_starts[0] = 0
        arrays.query_starts[1 : num_rows + 1] = ends
        extras = PLAIN
        if num_samples:
            arrays.sample_slots[:num_samples] = slots
            arrays.sample_positions[:num_samples] = positions
            extras = table.fill(slots, positions, arrays.parameters, arrays.seeds, plan.guesses())
        if drawing is not None:
            arrays.tail_tokens[:num_samples] = drawing
            arrays.tail_starts[:num_samples] = positions - 1
            arrays.tail_query_starts[:] = np.arange(len(arrays.tail_query_starts))
        if padded is not None:
            _pad(arrays, padded, num_rows, num_samples)
            num_tokens = padded.num_tokens
        self._link.send(self._host, self._mirror, num_words)
        return PackedStep(tensors, num_tokens, num_samples, padded is not None, extras)

    def pack_padding(self, padded: Padded) -> PackedStep:
        """Return a step of padding alone."""
        size = padded.num_rows
        arrays, tensors, num_words = self._view(Layout(size, size, not padded.is_flat))
        arrays.query_starts[0] = 0
        if not padded.is_flat:
            arrays.tail_query_starts[:] = np.arange(size + 1)
        _pad(arrays, padded, 0, 0)
        self._link.send(self._host, self._mirror, num_words)
        return PackedStep(tensors, padded.num_tokens, 0, True, PLAIN)

    def _view(self, layout: Layout) -> tuple[_Arrays, StepTensors, int]:
        """Return the sections on the host and on the device, and how long they are in all."""
        found = self._views.get(layout)
        if found is None:
            if len(self._views) >= MOST_LAYOUTS:
                # Graphs have their own references to the tensors that they read.
                self._views.clear()
            sections, num_words = _cut(layout)
            found = (
                _host_views(self._host, sections, layout),
                _device_views(self._mirror, sections, layout),
                num_words,
            )
            self._views[layout] = found
        return found


def _tokens_of(plan: StepPlan, ends: IntArray) -> tuple[IntArray, IntArray]:
    """Give slot and position of each token of a plan: [tokens]; ends: of the rows."""
    counts = plan.num_tokens
    positions: IntArray = np.arange(int(ends[-1]), dtype=np.int32)
    positions += (plan.starts - ends + counts).repeat(counts)
    return plan.slots.repeat(counts), positions


def _sampling_tokens(plan: StepPlan, ends: IntArray) -> NDArray[np.int64]:
    """Index the tokens that yield samples among the step's: [samples]; ends: of the rows."""
    ends = ends[plan.samples]
    if plan.drafts is None:
        return ends.astype(np.int64) - 1
    counts = plan.drafts.counts[plan.samples] + 1
    behind = counts.cumsum().repeat(counts) - np.arange(int(counts.sum()))
    return ends.repeat(counts).astype(np.int64) - behind


def _cut(layout: Layout) -> tuple[_Sections, int]:
    """Lay the sections one after another; return them and their end."""
    num_rows, num_samples, has_tail = layout
    tail = num_samples if has_tail else 0
    sizes = (
        2 * num_samples,
        2 * tail,
        num_rows,
        num_rows,
        num_rows + 1,
        num_samples,
        num_samples,
        NUM_PARAMETERS * _aligned(num_samples),
        tail,
        tail + 1 if has_tail else 0,
    )
    slices, start = [], 0
    for size in sizes:
        slices.append(slice(start, start + size))
        start += _aligned(size)
    return _Sections(*slices), start


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _host_views(array: IntArray, sections: _Sections, layout: Layout) -> _Arrays:
    parts = [array[section] for section in sections]
    arrays = _Arrays(*parts)  # type: ignore[arg-type]  # two are int64 below
    lines = arrays.parameters.reshape(NUM_PARAMETERS, -1)[:, : layout.num_samples]
    return arrays._replace(
        seeds=arrays.seeds.view(np.int64),
        tail_tokens=arrays.tail_tokens.view(np.int64),
        parameters=lines,
    )


def _device_views(mirror: Tensor, sections: _Sections, layout: Layout) -> StepTensors:
    num_samples = layout.num_samples
    lines = mirror[sections.parameters].view(NUM_PARAMETERS, -1)[:, :num_samples]
    temperature, top_k, top_p, min_p, indices = lines.unbind()
    sample_slots = mirror[sections.sample_slots]
    tail = None
    if layout.has_tail:
        tail = TailRows(
            mirror[sections.tail_tokens].view(torch.int64),
            StepRows(
                sample_slots, mirror[sections.tail_starts], mirror[sections.tail_query_starts]
            ),
        )
    return StepTensors(
        rows=StepRows(
            mirror[sections.slots], mirror[sections.starts], mirror[sections.query_starts]
        ),
        sample_slots=sample_slots,
        sample_positions=mirror[sections.sample_positions],
        sampling=SamplingRows(
            temperature=temperature.view(torch.float32),
            top_k=top_k,
            top_p=top_p.view(torch.float32),
            min_p=min_p.view(torch.float32),
            seeds=mirror[sections.seeds].view(torch.int64),
            indices=indices,
        ),
        tail=tail,
    )


def _pad(arrays: _Arrays, padded: Padded, num_rows: int, num_samples: int) -> None:
    """Make all rows from num_rows on padding, and all samples from num_samples on: drawn greedily,
    written nowhere.

    Flat rows have one token each; of others the first has all tokens that are left.
    """
    arrays.slots[num_rows:] = -1
    arrays.starts[num_rows:] = 0
    ends = arrays.query_starts[num_rows + 1 :]
    ends[:] = num_rows + 1 + np.arange(len(ends)) if padded.is_flat else padded.num_tokens
    arrays.sample_slots[num_samples:] = -1
    arrays.sample_positions[num_samples:] = 0
    arrays.parameters[:, num_samples:] = PADDING
    arrays.seeds[num_samples:] = 0
    arrays.tail_tokens[num_samples:] = 0
    arrays.tail_starts[num_samples:] = 0
