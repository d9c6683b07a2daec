"""The budget of a GPU's memory, measured before the KV memory is allocated.

The largest steps run once, in a KV memory of one block, and what they took at most stays reserved:
no later step takes more. Owns nothing.
"""

from __future__ import annotations

import gc
from typing import Any, NamedTuple

import torch

from ..models.encoder import Model
from ..opset import most_split_rows
from . import warm_up
from .buckets import make_buckets
from .guesser import HeadMaker
from .prompt_scores import scored_rows
from .runner import ModelRunner

GRAPH_BYTES = 2 * 2**20
"""Reserved for what CUDA keeps of one graph, beside the memory that all graphs share: an H200 took
1 MiB for one of 36 layers."""
ROUNDING_BYTES = 2 * 2**20
"""Torch takes memory of the GPU in multiples of this: so much is lost at most for each tensor."""


class StepSizes(NamedTuple):
    """What bounds a step."""

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_logprobs: int
    """-1: all of the vocabulary."""
    num_drafts: int
    """Guesses of a row."""


class GpuBudget(NamedTuple):
    """Bytes of a GPU's memory, and who takes them."""

    total: int
    limit: int
    """What may be in use: total times gpu_memory_utilization."""
    others: int
    """CUDA's context, code, and other processes."""
    weights: int
    tables: int
    """Tokens and block tables by slot, and what the KV memory's tensors are rounded up by."""
    activations: int
    """What the largest step takes beside all of these: the most of its tokens and of its rows."""
    graphs: int
    """Reserved; they are made when they are first used."""

    @property
    def kv(self) -> int:
        """What is left for the KV memory; may be negative."""
        return self.limit - self.taken

    @property
    def most_kv(self) -> int:
        """What is left of all the memory."""
        return self.total - self.taken

    @property
    def taken(self) -> int:
        """What is not the KV memory's."""
        return self.others + self.weights + self.tables + self.activations + self.graphs

    def table(self, kv_bytes: int) -> str:
        """The budget as lines, with a KV memory of kv_bytes."""
        items = (
            ("memory of the GPU", self.total),
            ("that may be in use", self.limit),
            ("CUDA and other processes", self.others),
            ("weights", self.weights),
            ("tables, rounding", self.tables),
            ("activations, measured", self.activations),
            ("CUDA graphs, reserved", self.graphs),
            ("KV memory", kv_bytes),
        )
        return "\n".join(f"  {name:<26}{size / 2**30:9.2f} GiB" for name, size in items)


def measure(
    model: Model,
    sizes: StepSizes,
    make_head: HeadMaker | None = None,
    *,
    utilization: float,
    with_graphs: bool,
) -> GpuBudget:
    """Run the largest steps on the model's GPU, which compiles their kernels, and add up.

    make_head: what guesses there. Raises torch.OutOfMemoryError where not even one of them fits.
    """
    device = model.device
    weights = _reserved(device)
    num_drafts = max(0, min(sizes.num_drafts, sizes.max_model_len - 2))
    guesses: dict[str, Any] = {"num_drafts": num_drafts, "guess": make_head is not None}
    runner = ModelRunner(
        model,
        num_blocks=1,
        block_size=sizes.block_size,
        max_num_seqs=sizes.max_num_seqs,
        max_model_len=sizes.max_model_len,
        num_drafts=num_drafts,
        decoding="padded" if with_graphs else "exact",
    )
    if make_head is not None:
        runner.guess_by(make_head)
    tables = runner.table_bytes + 2 * model.config.num_kv_layers * ROUNDING_BYTES
    bounds = (sizes.max_num_seqs, sizes.max_num_batched_tokens, sizes.max_model_len)
    split = most_split_rows(model.ops, model.config.num_kv_heads)
    vocab = model.config.vocab_size
    num_logprobs = vocab if sizes.max_logprobs < 0 else min(sizes.max_logprobs, vocab)
    largest = warm_up.largest_steps(*bounds, num_logprobs, scored_rows(vocab), **guesses)
    activations = _peak(runner, device, largest)
    activations += _peak(runner, device, warm_up.row_steps(*bounds, split))
    graphs = 0
    if with_graphs:
        buckets = make_buckets(sizes.max_num_seqs, num_drafts)
        # What guesses has as many of its own.
        num_graphs = buckets.num_graphs * (1 if make_head is None else 2)
        chunked, *flat = buckets.largest(split)
        counts = [size.num_rows for size in flat]
        plans = (
            *warm_up.chunk_steps(sizes.max_num_seqs, chunked.num_tokens, sizes.max_model_len),
            *warm_up.drawing_steps(counts, sizes.max_model_len, **guesses),
        )
        graphs = _peak(runner, device, plans) + num_graphs * GRAPH_BYTES
    del runner
    gc.collect()
    reserved = _reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    return GpuBudget(
        total=total,
        limit=int(total * utilization),
        others=total - free - reserved,
        weights=weights,
        tables=tables,
        activations=activations,
        graphs=graphs,
    )


def _reserved(device: torch.device) -> int:
    """Return what torch holds of a GPU, without what it holds for nothing."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _peak(runner: ModelRunner, device: torch.device, plans: warm_up.Plans) -> int:
    """Return what plans take at most beside what is held before.

    Of what torch reserves, not of what it hands out: the gaps between tensors cannot be used.
    """
    before = _reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    for plan in plans:
        runner.execute(plan)
    return torch.cuda.max_memory_reserved(device) - before
