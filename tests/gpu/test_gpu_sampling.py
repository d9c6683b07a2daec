"""Sampling and log probabilities on the GPU: equal to the reference bit for bit on every input."""

from __future__ import annotations

import sys

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.kernel_cases import (
    Flavour,
    LogitsCase,
    assert_same_bits,
    logits_cases,
    make_floats,
    make_sampling_rows,
    poisoned_memory,
)
from quire.kernels import gpu
from quire.kernels.gpu import sampling
from quire.kernels.gpu.philox import gumbel
from quire.reference.ops import Logprobs, SamplingRows
from torch import Tensor

# The package's `logprobs` is the function.
SCORING = sys.modules["quire.kernels.gpu.logprobs"]
INF = float("inf")
NAN = float("nan")


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Cut rows into chunks of this size."""
    size: int = getattr(request, "param", 64)
    monkeypatch.setattr(sampling, "chunk_size", lambda *_: size)
    monkeypatch.setattr(SCORING, "chunk_size", lambda *_: size)
    return size


def move(rows: SamplingRows, device: str) -> SamplingRows:
    return SamplingRows(*(field.to(device) for field in rows))


def sample_both(logits: Tensor, rows: SamplingRows, device: str) -> list[int]:
    """Sample by both twins, which must agree."""
    with poisoned_memory():
        ours = gpu.sample(logits.to(device), move(rows, device)).cpu()
    assert_same_bits(ours, reference.sample(logits, rows))
    return [int(token) for token in ours]


def logprobs_both(logits: Tensor, tokens: list[int], k: int, device: str) -> Logprobs:
    """Log probabilities by both twins, which must agree."""
    asked = torch.tensor(tokens, dtype=torch.int32)
    with poisoned_memory():
        ours = gpu.logprobs(logits.to(device), asked.to(device), k)
    ours = Logprobs(*(field.cpu() for field in ours))
    for a, b in zip(ours, reference.logprobs(logits, asked, k), strict=True):
        assert_same_bits(a, b)
    return ours


def join(*parts: SamplingRows) -> SamplingRows:
    return SamplingRows(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


@settings(max_examples=80)
@given(case=logits_cases)
def test_sample_equals_the_reference_on_every_input(device: str, case: LogitsCase) -> None:
    tokens = sample_both(case.make_logits(), case.make_rows(), device)
    assert all(-1 <= token < case.vocab for token in tokens)


@settings(max_examples=40)
@given(case=logits_cases, data=st.data())
def test_logprobs_equal_the_reference_on_every_input(
    device: str, case: LogitsCase, data: st.DataObject
) -> None:
    vocab = case.vocab
    tokens = data.draw(st.lists(st.integers(-1, vocab), min_size=case.rows, max_size=case.rows))
    k = data.draw(st.integers(0, min(vocab, 20)))
    logprobs_both(case.make_logits(), tokens, k, device)


MIXED = (
    *((0.0, (5, 0.5, 0.5)), (1.0, (0, 1.0, 0.0)), (0.7, (0, 1.0, 0.05)), (1.3, (20, 1.0, 0.0))),
    *((1.0, (0, 0.9, 0.0)), (0.8, (20, 0.95, 0.0)), (2.0, (300, 0.8, 0.001)), (1.0, (0, 0.999, 0))),
)
"""(temperature, filters) of the rows of one batch."""


def make_mixed_rows() -> SamplingRows:
    parts = [
        make_sampling_rows(1, temperature=temperature, filters=filters, seed=seed, index=seed)
        for seed, (temperature, filters) in enumerate(MIXED)
    ]
    return join(*parts)


@pytest.mark.parametrize("chunk", [64, 256, 1024], indirect=True)
@pytest.mark.parametrize("flavour", ["normal", "ties"])
def test_the_cut_into_chunks_changes_no_bit(device: str, chunk: int, flavour: Flavour) -> None:
    del chunk
    logits = make_floats(3, (len(MIXED), 500), flavour) * 2
    sample_both(logits, make_mixed_rows(), device)
    logprobs_both(logits, [-1, 0, 499, 500, 5, 64, 63, 300], 70, device)


@pytest.mark.parametrize("capacity", [1, 40])
def test_more_candidates_in_question_than_a_list_holds(
    device: str, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CAPACITY", capacity)
    logits = torch.cat([make_floats(1, (2, 500), "ties"), make_floats(2, (2, 500), "normal")])
    for filters in ((150, 0.7, 0.0), (0, 0.6, 0.0), (333, 1.0, 0.0)):
        sample_both(logits, make_sampling_rows(4, temperature=1e3, filters=filters), device)


def test_a_row_has_the_bits_it_has_alone(device: str) -> None:
    logits = make_floats(6, (len(MIXED), 1500), "normal") * 3
    rows = make_mixed_rows()
    together = gpu.sample(logits.to(device), move(rows, device)).tolist()
    for r, token in enumerate(together):
        alone = SamplingRows(*(field[r : r + 1] for field in rows))
        assert gpu.sample(logits[r : r + 1].to(device), move(alone, device)).tolist() == [token]


def test_strided_logits_and_parameters_are_read_in_place(device: str) -> None:
    wide = make_floats(7, (6, 400), "normal")
    rows = make_mixed_rows()
    spread = SamplingRows(*(torch.stack([field, field * 0], 1)[::2, 0] for field in rows))
    assert spread.seeds.stride() == (4,)
    for logits in (wide[1:5, 50:250], wide[:, ::100].repeat(1, 30)[:4], wide.t()[:4]):
        there = logits.to(device)
        tokens = gpu.sample(there, SamplingRows(*(field.to(device) for field in spread))).cpu()
        assert_same_bits(tokens, reference.sample(logits, spread))
        logprobs_both(logits, [0, 1, 2, 3], 4, device)


def test_ties_go_to_the_lowest_id_across_chunks(device: str, chunk: int) -> None:
    assert chunk == 64
    logits = torch.full((4, 200), -1.0)
    logits[0, [150, 20, 199]] = 1.0
    logits[1, [64, 63]] = 0.0
    logits[1, 63] = -0.0
    logits[2, [199, 128, 127]] = 1e30
    logits[3, [70, 130]] = 1e30
    greedy = make_sampling_rows(2, temperature=0.0)
    drawn = make_sampling_rows(2, filters=(3, 0.9, 0.0))
    assert sample_both(logits, join(greedy, drawn), device) == [20, 63, 127, 70]
    result = logprobs_both(logits, [20, 64, 127, 0], 4, device)
    assert result.top_ids[0].tolist() == [20, 150, 199, 0]
    assert result.top_ids[2].tolist() == [127, 128, 199, 0]


@pytest.mark.parametrize("filters", [(1, 1.0, 0.0), (100, 1.0, 0.0), (0, 0.5, 0.0)])
def test_equal_logits_are_cut_by_id(
    device: str, chunk: int, filters: tuple[int, float, float]
) -> None:
    del chunk
    rows = make_sampling_rows(6, filters=filters)
    kept = filters[0] or 100
    assert max(sample_both(torch.full((6, 200), -7.25), rows, device)) < kept


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("vocab", [1, 130])
def test_rows_without_an_answer_give_minus_one(
    device: str, chunk: int, vocab: int, temperature: float
) -> None:
    del chunk
    logits = torch.zeros(6, vocab)
    logits[0, vocab - 1] = NAN
    logits[1, 0] = -NAN
    logits[2] = -INF
    logits[3] = INF
    logits[4, vocab // 2] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    rows = make_sampling_rows(6, temperature=temperature, filters=(0, 0.5, 0.0))
    tokens = sample_both(logits, rows, device)
    assert tokens[:5] == [-1] * 5
    assert 0 <= tokens[5] < vocab
    logprobs_both(logits, [0] * 6, 1, device)
    logprobs_both(logits, [0] * 6, 0, device)


def test_infinities_and_overflow_are_decided_greedily(device: str, chunk: int) -> None:
    del chunk
    logits = make_floats(8, (5, 150), "normal")
    logits[0, [100, 120]] = INF
    logits[1] = -INF
    logits[1, 149] = 0.0
    logits[2, 3] = 80.0
    logits[3] = -logits[3].abs() - 1
    filters = (40, 0.9, 0.01)
    normal = make_sampling_rows(2, filters=filters)
    tiny = make_sampling_rows(3, temperature=1e-45, filters=filters)
    tokens = sample_both(logits, join(normal, tiny), device)
    assert tokens[:3] == [100, 149, 3]
    result = logprobs_both(logits, [1, 149, 3, 4, 5], 5, device)
    assert result.sampled[0].isnan()
    assert result.top_ids[0, :2].tolist() == [100, 120]


def test_top_p_counts_the_least_weight_and_rounds_its_limit_up(device: str) -> None:
    # Weights 2^40, 2^40 and 1: half the total is 2^40 + 1/2, above what stands before token 1.
    logits = torch.tensor([[0.0, 0.0, -27.5], [0.0, 0.0, -28.0]]).repeat(4, 1)
    sample_both(logits, make_sampling_rows(8, filters=(0, 0.5, 0.0)), device)
    for top_p in (1e-40, 2.0**-24, 1 - 2.0**-24):
        sample_both(logits, make_sampling_rows(8, filters=(0, top_p, 0.0)), device)
        sample_both(logits, make_sampling_rows(8, filters=(2, top_p, 0.0)), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_vocabularies(device: str, dtype: torch.dtype) -> None:
    logits = (make_floats(9, (4, 8_001), "normal") * 3).to(dtype)
    logits[1, 7_777] = 25.0
    logits[2] = logits[2, 0]
    parts = [
        make_sampling_rows(2, temperature=0.9, filters=filters)
        for filters in ((0, 0.9, 0.0), (20, 0.95, 0.0))
    ]
    sample_both(logits, join(*parts), device)
    logprobs_both(logits, [0, 8_000, 7, -1], 20, device)


def test_the_sums_of_a_large_flat_chunk_do_not_overflow(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "chunk_size", lambda *_: 4096)
    filters = ((0, 0.75, 0.0), (4500, 0.5, 0.0), (10, 1.0, 0.0))
    rows = [make_sampling_rows(1, filters=each) for each in filters]
    sample_both(torch.zeros(3, 5000), join(*rows), device)


@pytest.mark.parametrize("filters", [(150, 0.5, 0.0), (0, 0.5, 0.0), (9, 0.5, 0.0)])
def test_top_p_counts_only_what_top_k_kept(device: str, filters: tuple[int, float, float]) -> None:
    logits = torch.linspace(0.0, -6.0, 200).expand(8, -1)
    sample_both(logits, make_sampling_rows(8, temperature=3.0, filters=filters), device)


def test_the_least_candidate_counts_wherever_thresholds_round(device: str) -> None:
    pairs = make_floats(11, (400, 2), "normal")
    top, low = pairs.max(1).values, pairs.min(1).values
    logits = pairs[(top - (top - low)) > low][:10]
    assert len(logits) == 10
    sample_both(logits, make_sampling_rows(10, filters=(0, 1 - 2.0**-24, 0.0)), device)


def test_a_list_too_short_by_one(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CAPACITY", 1)
    tokens = sample_both(torch.zeros(8, 2), make_sampling_rows(8, filters=(0, 0.99, 0.0)), device)
    assert set(tokens) == {0, 1}


def test_every_k_up_to_the_vocabulary(device: str, chunk: int) -> None:
    del chunk
    logits = torch.cat([make_floats(10, (1, 150), "ties"), make_floats(10, (1, 150), "special")])
    for k in (0, 1, 64, 65, 150):
        logprobs_both(logits, [3, 149], k, device)


def test_no_rows(device: str) -> None:
    assert sample_both(torch.zeros(0, 70), make_sampling_rows(0), device) == []
    logprobs_both(torch.zeros(0, 70), [], 3, device)


@pytest.mark.parametrize("row", [[-0.0], [0.0], [-0.0, -INF], [0.0, -0.0]])
def test_a_zero_log_probability_is_positive(device: str, row: list[float]) -> None:
    result = logprobs_both(torch.tensor([row]), [0], 1, device)
    assert not result.sampled.signbit().any() or result.sampled.item() < 0


@triton.jit
def _make_noise(words_ptr, noise_ptr, size: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, size)
    tl.store(noise_ptr + i, gumbel(tl.load(words_ptr + i).to(tl.uint32)))


def test_noise_of_extreme_words(device: str) -> None:
    near = torch.cat([torch.arange(256), 2 ** torch.arange(8, 31), 3 ** torch.arange(6, 20)])
    words = torch.cat([near, 2**32 - 1 - near, 2**31 - 1 - near[:100], 2**31 + near[:100]])
    words = torch.cat([words, words.new_zeros(1024 - len(words))])
    noise = torch.empty(1024, device=device)
    _make_noise[(1,)](words.to(device), noise, 1024, enable_fp_fusion=False)
    assert_same_bits(noise.cpu(), reference.philox.gumbel(words))
