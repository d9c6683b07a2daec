"""What becomes of a vector: lengths, cuts, scores, comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quire.engine.errors import ParamsError
from quire.engine.params import PoolingParams
from quire.engine.pooling import activate, compare, finish, normalized
from quire.engine.text.pooled import TextPair
from quire.engine.vectors import PoolingConfig
from quire.reference.pooling import sum_rows, tanh

EMBEDS = PoolingConfig(width=6)
floats = st.floats(-50, 50, width=32)
vectors = st.lists(floats, min_size=6, max_size=6).map(lambda v: np.array(v, np.float32))


@given(vectors)
def test_an_embedding_has_the_length_of_one_or_is_nothing(vector: Any) -> None:
    length = np.linalg.norm(finish(vector, PoolingParams(), EMBEDS).astype(np.float64))
    if np.linalg.norm(vector) > 1e-6:
        assert abs(length - 1) < 1e-6
    assert np.array_equal(finish(vector, PoolingParams(normalize=False), EMBEDS), vector)


@given(vectors, st.integers(1, 6))
def test_a_cut_embedding_has_the_length_of_one_again(vector: Any, size: int) -> None:
    cut = finish(vector, PoolingParams(dimensions=size), EMBEDS)
    assert np.array_equal(cut, normalized(vector[:size]))


@given(vectors)
def test_scores_are_torchs(vector: Any) -> None:
    for scores, wanted in (
        ("softmax", torch.softmax(torch.tensor(vector), 0)),
        ("sigmoid", torch.sigmoid(torch.tensor(vector))),
        ("identity", torch.tensor(vector)),
    ):
        config = PoolingConfig(width=6, labels=tuple("abcdef"), scores=scores)  # type: ignore[arg-type]  # of the type
        np.testing.assert_allclose(activate(vector, config), wanted.numpy(), atol=1e-6)
        plain = finish(vector, PoolingParams(use_activation=False), config)
        assert np.array_equal(plain, vector)


@given(st.integers(1, 40), st.integers(0, 99))
def test_sums_of_rows_are_near_and_do_not_depend_on_columns_beside(rows: int, seed: int) -> None:
    x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(seed))
    total = sum_rows(x)
    assert torch.allclose(total, x.double().sum(0).float(), atol=1e-4)
    assert torch.equal(sum_rows(x[:, 5:7]), total[5:7])


def test_tanh_is_near_torchs() -> None:
    x = torch.cat((torch.linspace(-20, 20, 10001), torch.tensor([1e9, -1e9, 0.0])))
    assert (tanh(x) - torch.tanh(x.double())).abs().max() < 3e-7


def test_comparisons_are_one_with_many_or_as_many() -> None:
    both = PoolingConfig(width=1, labels=("fits",))
    one = compare(["q"], ["a", "b"], both)
    assert one.prompts == [TextPair("q", "a"), TextPair("q", "b")]
    assert one.scores([np.array([0.5], np.float32), np.array([0.25], np.float32)]) == [0.5, 0.25]
    angles = compare(["q", "r"], ["a", "b"], EMBEDS)
    assert angles.prompts == ["q", "r", "a", "b"]
    x, y = np.array([1, 0], np.float32), np.array([0, 3], np.float32)
    assert angles.scores([x, y, x, -y]) == [1.0, -1.0]
    assert compare(["q"], ["a", "b"], EMBEDS).scores([x, y, x]) == [0.0, 1.0]


@pytest.mark.parametrize(("firsts", "seconds"), [([], ["a"]), (["a"], []), (["a", "b"], ["c"])])
def test_comparisons_that_do_not_fit_are_refused(firsts: list[str], seconds: list[str]) -> None:
    with pytest.raises(ParamsError, match="there must be one first text"):
        compare(firsts, seconds, EMBEDS)


def test_a_model_of_many_labels_does_not_score() -> None:
    with pytest.raises(ParamsError, match="The model has 2 labels"):
        compare(["a"], ["b"], PoolingConfig(width=2, labels=("x", "y")))
