"""Edits of logits: twins bit by bit, on vocabularies wider than a vector; rows and threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.kernel_cases import (
    Flavour,
    assert_same_bits,
    dtypes,
    flavours,
    make_floats,
    make_sampling_rows,
    poisoned_memory,
    seeds,
)
from quire.kernels import cpu
from quire.reference.ops import EditRows, SamplingRows
from torch import Tensor


def make_edits(seed: int, num_rows: int, vocab: int, *, width: int = 64) -> EditRows:
    """Make edits of about half the rows, whose histories say few tokens again and again."""
    generator = torch.Generator().manual_seed(seed)

    def below(most: int, *shape: int) -> Tensor:
        return torch.randint(0, max(1, most), shape, generator=generator)

    def some(count: int) -> Tensor:
        return below(len(rows), count if len(rows) else 0).sort().values

    rows = below(2, num_rows).nonzero()[:, 0]
    size = len(rows)
    known = below(min(vocab, 9), num_rows + 1, width).int()
    lengths = 1 + below(width, size)
    masked = torch.tensor(sorted(set(some(3).tolist())), dtype=torch.int64)
    penalties = torch.tensor([[1.0, 0.0, 0.0]]).repeat(size, 1)
    asks = below(2, size, 3).bool()
    penalties[asks] = (0.2 + torch.rand(size, 3, generator=generator))[asks]
    penalized = asks.any(1).nonzero()[:, 0]
    worded, biased, banned = some(6), some(6), some(3)
    words = below(min(vocab, 3), len(worded), 3).int()
    words[torch.arange(3) < below(3, len(worded), 1)] = -1
    return EditRows(
        known=known,
        rows=rows,
        slots=torch.randperm(num_rows + 1, generator=generator)[:size],
        lengths=lengths,
        prompts=1 + (lengths * torch.rand(size, generator=generator)).long().clamp(max=width - 2),
        masked=masked,
        denied=below(2, len(masked), vocab).bool(),
        penalties=penalties,
        penalized=penalized,
        biased=biased,
        # Each of an entry's biases is of another token.
        bias_tokens=torch.arange(len(biased)) + vocab - 6,
        biases=torch.randn(len(biased), generator=generator),
        worded=worded,
        words=words,
        banned=banned,
        banned_tokens=below(vocab, len(banned)),
        longest=int(lengths[penalized].max()) if len(penalized) else 0,
    )


def edit_both(logits: Tensor, edits: EditRows, rows: SamplingRows) -> Tensor:
    """Edit by both twins, which must agree, and be what is sampled from."""
    with poisoned_memory():
        ours = cpu.edit_logits(logits, edits)
        tokens = cpu.sample(logits, rows, edits)
    assert_same_bits(ours, reference.edit_logits(logits, edits))
    assert torch.equal(tokens, reference.sample(ours, rows))
    assert torch.equal(tokens, reference.sample(logits, rows, edits))
    return ours


@settings(max_examples=250, deadline=None)
@given(
    seed=seeds,
    flavour=flavours,
    dtype=dtypes,
    rows=st.integers(1, 6),
    vocab=st.integers(7, 70) | st.integers(120, 1500),
    filters=st.sampled_from([(0, 1.0, 0.0), (5, 0.9, 0.0), (0, 0.8, 0.1)]),
)
def test_edits_of_twins_agree_on_every_input(
    seed: int,
    flavour: Flavour,
    dtype: torch.dtype,
    rows: int,
    vocab: int,
    filters: tuple[int, float, float],
) -> None:
    logits = make_floats(seed, (rows, vocab), flavour, dtype)
    edits = make_edits(seed, rows, vocab)
    edit_both(logits, edits, make_sampling_rows(rows, filters=filters, seed=seed))


def test_a_rows_edits_ignore_its_neighbours_and_threads() -> None:
    logits = torch.randn(24, 30_001, generator=torch.Generator().manual_seed(2)).bfloat16()
    edits, rows = make_edits(4, 24, 30_001), make_sampling_rows(24, filters=(0, 0.9, 0.0))
    whole, tokens = edit_both(logits, edits, rows), cpu.sample(logits, rows, edits)
    torch.set_num_threads(2)
    assert_same_bits(cpu.edit_logits(logits, edits), whole)
    assert torch.equal(cpu.sample(logits, rows, edits), tokens)
    assert_same_bits(cpu.edit_logits(logits[:0], make_edits(4, 0, 30_001)), whole[:0])


@pytest.mark.parametrize("asked", [[], [2], [0, 3]])
@pytest.mark.parametrize("k", [0, 4])
def test_log_probabilities_are_told_of_the_rows_that_ask(asked: list[int], k: int) -> None:
    logits = torch.randn(4, 99, generator=torch.Generator().manual_seed(9))
    tokens, rows = torch.tensor([5, 98, -1, 0], dtype=torch.int32), torch.tensor(asked).long()
    with poisoned_memory():
        told = cpu.logprobs(logits, tokens, k, rows)
    for ours, theirs in zip(told, reference.logprobs(logits, tokens, k, rows), strict=True):
        assert_same_bits(ours, theirs)
    others = [row for row in range(4) if row not in asked]
    for ours, whole in zip(told, reference.logprobs(logits, tokens, k), strict=True):
        assert_same_bits(ours[rows], whole[rows])
        assert not ours[others].any()
