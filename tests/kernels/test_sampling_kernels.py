"""Sampling and log probabilities: twins bit by bit, filters, ties, distribution, rows and
threads.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.kernel_cases import (
    LogitsCase,
    assert_same_bits,
    logits_cases,
    make_sampling_rows,
    poisoned_memory,
)
from quire.kernels import cpu
from quire.reference.ops import Logprobs, SamplingRows
from torch import Tensor

INF = float("inf")
NAN = float("nan")
BOTH = pytest.mark.parametrize("ops", [reference, cpu], ids=["reference", "cpu"])


def sample_both(logits: Tensor, rows: SamplingRows) -> list[int]:
    """Sample by both twins, which must agree."""
    with poisoned_memory():
        ours = cpu.sample(logits, rows)
        assert_same_bits(ours, reference.sample(logits, rows))
    return [int(token) for token in ours]


def logprobs_both(logits: Tensor, tokens: Tensor, k: int) -> Logprobs:
    """Log probabilities by both twins, which must agree."""
    with poisoned_memory():
        ours = cpu.logprobs(logits, tokens, k)
        for a, b in zip(ours, reference.logprobs(logits, tokens, k), strict=True):
            assert_same_bits(a, b)
    return ours


def draw_set(row: list[float], num_draws: int = 400, **kwargs: object) -> set[int]:
    """Tokens that appear among many draws of one row."""
    rows = make_sampling_rows(num_draws, **kwargs)  # type: ignore[arg-type]  # passed through
    return set(cpu.sample(torch.tensor(row).expand(num_draws, -1), rows).tolist())


@settings(max_examples=400)
@given(logits_cases)
def test_sample_twins_agree_on_every_input(case: LogitsCase) -> None:
    tokens = sample_both(case.make_logits(), case.make_rows())
    assert all(-1 <= token < case.vocab for token in tokens)


@settings(max_examples=250)
@given(logits_cases, st.data())
def test_logprobs_twins_agree_on_every_input(case: LogitsCase, data: st.DataObject) -> None:
    vocab = case.vocab
    tokens = data.draw(st.lists(st.integers(-1, vocab), min_size=case.rows, max_size=case.rows))
    k = data.draw(st.integers(0, min(vocab, 20)) | st.just(vocab))
    logprobs_both(case.make_logits(), torch.tensor(tokens, dtype=torch.int32), k)


FILTERS = [(0, 1.0, 0.0), (20, 0.95, 0.0), (0, 0.9, 0.0), (0, 0.999, 0.0), (5000, 1.0, 0.0)]


@pytest.mark.parametrize("filters", [*FILTERS, (0, 1.0, 0.05), (50, 0.5, 0.01)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sample_twins_agree_on_large_vocabularies(
    dtype: torch.dtype, filters: tuple[int, float, float]
) -> None:
    logits = (torch.randn(3, 150_001, generator=torch.Generator().manual_seed(3)) * 3).to(dtype)
    logits[1, 77_777] = 25.0
    logits[2] = logits[2, 0]
    sample_both(logits, make_sampling_rows(3, temperature=0.9, filters=filters, seed=2**64 - 5))


@pytest.mark.parametrize("vocab", [157, 1000, 5000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_many_draws_are_twins(vocab: int, scale: float) -> None:
    """Noise that is left out since it surely loses: wrong rarely, so rows and seeds are many."""
    logits = torch.randn(64, vocab, generator=torch.Generator().manual_seed(vocab)) * scale
    for filters in ((0, 1.0, 0.0), (0, 0.95, 0.0), (40, 1.0, 0.01)):
        sample_both(logits, make_sampling_rows(64, filters=filters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_of_large_vocabularies(dtype: torch.dtype) -> None:
    logits = (torch.randn(2, 150_001, generator=torch.Generator().manual_seed(4)) * 3).to(dtype)
    tokens = torch.tensor([0, 150_000], dtype=torch.int32)
    for k in (logits.shape[1], 3000, 65):
        logprobs_both(logits, tokens, k)
    result = logprobs_both(logits, tokens, 20)
    exact = logits.double().log_softmax(-1)
    assert (result.sampled - exact[[0, 1], [0, 150_000]]).abs().max() < 1e-5


@BOTH
@pytest.mark.parametrize("vocab", [3, 64, 65, 1000])
def test_logprobs_are_near_float64(ops: object, vocab: int) -> None:
    del ops
    generator = torch.Generator().manual_seed(vocab)
    for scale in (0.01, 1.0, 10.0):
        logits = torch.randn(8, vocab, generator=generator) * scale
        tokens = torch.randint(vocab, (8,), generator=generator).int()
        result = logprobs_both(logits, tokens, 3)
        exact = logits.double().log_softmax(-1)
        taken = exact.gather(1, tokens.long()[:, None])[:, 0]
        assert ((result.sampled - taken).abs() <= 1e-5 + 2e-7 * taken.abs()).all()
        best = exact.topk(3)
        assert torch.equal(result.top_ids.long(), best.indices)
        assert ((result.top - best.values).abs() <= 1e-5).all()
        ranks = 1 + (logits > logits.gather(1, tokens.long()[:, None])).sum(1)
        assert torch.equal(result.ranks.long(), ranks)


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(6, 200)
    logits[0, [150, 20, 199]] = 1.0
    logits[1, :] = -0.0
    logits[1, 70] = 0.0
    logits[2, 199] = INF
    logits[3, [66, 65]] = INF
    logits[4, :] = -INF
    logits[4, 130] = -3e38
    logits[5, 0] = -1e-45
    rows = make_sampling_rows(6, temperature=0.0)
    assert sample_both(logits, rows) == [20, 0, 199, 65, 130, 1]
    assert sample_both(logits.bfloat16(), rows)[:4] == [20, 0, 199, 65]


def test_equal_scores_go_to_the_lowest_id() -> None:
    # So great that noise is rounded away.
    row = [0.0] * 300
    row[70] = row[90] = row[200] = 1e30
    for filters in ((0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.9, 0.0)):
        assert draw_set(row, filters=filters) == {70}
    # Here one unit in the last place is 16, so that most noise is rounded away, and some is not.
    row[70] = row[90] = row[200] = 2e8
    tokens = sample_both(torch.tensor(row).expand(300, -1), make_sampling_rows(300))
    assert tokens.count(70) > 290


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 300])
def test_rows_without_an_answer_give_minus_one(vocab: int, temperature: float) -> None:
    logits = torch.zeros(6, vocab)
    logits[0, vocab - 1] = NAN
    logits[1, 0] = -NAN
    logits[2] = -INF
    logits[3] = INF
    logits[4, vocab // 2] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    tokens = sample_both(logits, make_sampling_rows(6, temperature=temperature))
    assert tokens[:5] == [-1] * 5
    assert 0 <= tokens[5] < vocab
    result = logprobs_both(logits, torch.zeros(6, dtype=torch.int32), 1)
    assert result.sampled[:5].isnan().all()
    assert result.ranks[:5].tolist() == [0, 0, 0, 0, 0]
    assert result.top_ids[:5].flatten().tolist() == [-1] * 5


def test_impossible_tokens_are_never_drawn() -> None:
    row = [-INF] * 100
    row[13] = row[77] = 0.5
    assert draw_set(row, temperature=100.0) == {13, 77}
    assert draw_set(row, temperature=100.0, filters=(50, 0.99999, 0.0)) == {13, 77}


def test_overflow_and_infinity_are_decided_greedily() -> None:
    row = [0.0] * 10
    row[4], row[7] = 2.0, 1.0
    assert draw_set(row, temperature=1e-45) == {4}
    assert draw_set([-value - 1 for value in row], temperature=1e-45) == {0}
    row[8] = row[9] = INF
    assert draw_set(row, temperature=1.0) == {8}


def test_top_k_keeps_exactly_k_with_ties_to_the_lowest_id() -> None:
    row = [0.0] * 200
    row[150] = 0.5
    assert draw_set(row, temperature=1e4, filters=(4, 1.0, 0.0)) == {150, 0, 1, 2}
    assert draw_set(row, temperature=1e4, filters=(1, 1.0, 0.0)) == {150}
    assert len(draw_set(row, 4000, temperature=1e4, filters=(200, 1.0, 0.0))) == 200
    assert len(draw_set(row, 4000, temperature=1e4, filters=(150, 1.0, 0.0))) == 150


def test_top_p_keeps_the_shortest_prefix_that_reaches_the_mass() -> None:
    assert draw_set([1.0] * 10, filters=(0, 0.5, 0.0)) == {0, 1, 2, 3, 4}
    assert draw_set([1.0] * 10, filters=(0, 0.51, 0.0)) == {0, 1, 2, 3, 4, 5}
    assert draw_set([1.0] * 10, filters=(0, 1e-40, 0.0)) == {0}
    row = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
    assert draw_set(row, filters=(0, 0.69, 0.0)) == {1, 3}
    assert draw_set(row, filters=(0, 0.71, 0.0)) == {1, 3, 2}
    assert draw_set(row, filters=(0, 0.95, 0.0)) == {0, 1, 2, 3}


def test_top_p_counts_the_least_weight_and_rounds_its_limit_up() -> None:
    # Weights 2^40, 2^40 and 1: half the total is 2^40 + 1/2, above what stands before token 1.
    assert draw_set([0.0, 0.0, -27.5], filters=(0, 0.5, 0.0)) == {0, 1}
    assert draw_set([0.0, 0.0, -28.0], filters=(0, 0.5, 0.0)) == {0}
    sample_both(
        torch.tensor([[0.0, 0.0, -27.5]] * 50), make_sampling_rows(50, filters=(0, 0.5, 0.0))
    )


def test_top_p_counts_only_what_top_k_kept() -> None:
    row = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert draw_set(row, filters=(2, 0.58, 0.0)) == {0, 1}
    assert draw_set(row, filters=(2, 0.56, 0.0)) == {0}
    assert draw_set(row, filters=(0, 0.56, 0.7)) == {0}
    assert draw_set(row, filters=(0, 0.58, 0.7)) == {0, 1}


def test_min_p_compares_with_the_greatest_probability() -> None:
    row = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
    assert draw_set(row, filters=(0, 1.0, 0.49)) == {1, 2, 3}
    assert draw_set(row, filters=(0, 1.0, 0.51)) == {1, 3}
    assert draw_set(row, filters=(0, 1.0, 1.0)) == {1}
    assert draw_set(row, temperature=2.0, filters=(0, 1.0, 0.71)) == {1, 3}


@pytest.mark.parametrize("filters", [(0, 1.0, 0.0), (5, 0.8, 0.0)])
def test_draws_follow_the_filtered_softmax(filters: tuple[int, float, float]) -> None:
    logits = torch.tensor([1.0, 0.2, -0.5, 2.0, 0.9, -3.0, 1.4, 0.0])
    num_draws, temperature = 20_000, 0.8
    rows = make_sampling_rows(num_draws, temperature=temperature, filters=filters, seed=77)
    counts = torch.bincount(cpu.sample(logits.expand(num_draws, -1), rows), minlength=8).double()
    probabilities = (logits.double() / temperature).softmax(0)
    if filters[0]:
        order = probabilities.argsort(descending=True)[: filters[0]]
        kept = probabilities[order] / probabilities[order].sum()
        num_kept = int((kept.cumsum(0) - kept < filters[1]).sum())
        masked = torch.zeros(8, dtype=torch.float64)
        masked[order[:num_kept]] = kept[:num_kept]
        probabilities = masked / masked.sum()
    assert (counts[probabilities == 0] == 0).all()
    expected = (probabilities * num_draws)[probabilities > 0]
    chi_square = ((counts[probabilities > 0] - expected) ** 2 / expected).sum().item()
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4


def test_a_row_ignores_its_neighbours_place_and_threads() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 70_000, generator=generator) * 3
    rows = make_sampling_rows(12, temperature=0.8, filters=(0, 0.9, 0.0), seed=5)
    whole = cpu.sample(logits, rows)
    scores = cpu.logprobs(logits, whole, 5)
    torch.set_num_threads(2)
    assert torch.equal(cpu.sample(logits, rows), whole)
    for a, b in zip(cpu.logprobs(logits, whole, 5), scores, strict=True):
        assert_same_bits(a, b)
    order = torch.randperm(12, generator=generator)
    shuffled = SamplingRows(*(field[order] for field in rows))
    assert torch.equal(cpu.sample(logits[order], shuffled), whole[order])
    alone = SamplingRows(*(field[7:8] for field in rows))
    assert cpu.sample(logits[7:8], alone).item() == whole[7]


def test_rows_of_one_batch_are_filtered_each_by_its_own_parameters() -> None:
    logits = (torch.randn(1, 999, generator=torch.Generator().manual_seed(6)) * 4).expand(6, -1)
    parts = [
        make_sampling_rows(1, temperature=t, filters=f, seed=s, index=i)
        for t, f, s, i in (
            *((0.0, (5, 0.5, 0.5), 1, 0), (1.0, (0, 1.0, 0.0), 1, 0), (3.0, (0, 1.0, 0.0), 1, 0)),
            *((3.0, (9, 1.0, 0.0), 2, 3), (3.0, (0, 0.3, 0.0), 2, 3), (3.0, (0, 1.0, 0.3), -9, 4)),
        )
    ]
    rows = SamplingRows(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    tokens = sample_both(logits, rows)
    assert tokens == [sample_both(logits[:1], part)[0] for part in parts]


def test_strided_logits_are_read_in_place() -> None:
    wide = torch.randn(9, 300)
    rows = make_sampling_rows(4, temperature=0.7)
    tokens = torch.arange(4, dtype=torch.int32)
    for logits in (wide[1:5, 50:250], wide[::2][:4], torch.randn(300, 4).t()):
        assert sample_both(logits, rows) == sample_both(logits.contiguous(), rows)
        ours = logprobs_both(logits, tokens, 4)
        for a, b in zip(ours, logprobs_both(logits.contiguous(), tokens, 4), strict=True):
            assert_same_bits(a, b)


def test_logprobs_of_an_infinite_logit_have_order_but_no_value() -> None:
    logits = torch.tensor([[1.0, INF, 0.0, -INF, INF]])
    result = logprobs_both(logits, torch.tensor([0], dtype=torch.int32), 4)
    assert result.top_ids.tolist() == [[1, 4, 0, 2]]
    assert result.ranks.tolist() == [3]
    assert result.sampled.isnan().all()


def test_top_logprobs_order_ties_by_id_and_end_in_the_impossible() -> None:
    logits = torch.full((1, 130), -INF)
    logits[0, [129, 64, 3]] = 1.0
    result = logprobs_both(logits, torch.tensor([64], dtype=torch.int32), 5)
    assert result.top_ids.tolist() == [[3, 64, 129, 0, 1]]
    assert result.ranks.tolist() == [1]
    assert result.top[0, 3:].tolist() == [-INF, -INF]
    torch.testing.assert_close(result.top[0, :3], torch.full((3,), -math.log(3)))


@settings(max_examples=40)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(2.0**-7, 1.0, width=32))
@example(vocab=400, top_k=400, top_p=0.5)
def test_equal_logits_keep_the_lowest_ids(vocab: int, top_k: int, top_p: float) -> None:
    kept = min(vocab, top_k)
    if top_p < 1.0:
        kept = math.ceil(kept * top_p)
    rows = make_sampling_rows(60, filters=(top_k, top_p, 0.0))
    tokens = cpu.sample(torch.full((60, vocab), -7.25), rows)
    assert tokens.max() < kept


@pytest.mark.parametrize("row", [[-0.0], [0.0], [-0.0, 0.0], [0.0, -0.0], [-0.0, -INF]])
def test_a_zero_log_probability_is_positive(row: list[float]) -> None:
    result = logprobs_both(torch.tensor([row]), torch.tensor([0], dtype=torch.int32), 1)
    assert not result.sampled.signbit().any() or result.sampled.item() < 0
    assert sample_both(torch.tensor([row]), make_sampling_rows(1, temperature=0.0)) == [0]
