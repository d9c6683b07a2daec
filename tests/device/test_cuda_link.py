"""The way to a GPU and back, with everything of CUDA pretended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from quire.engine.device.cuda_link import LEAST_WORDS, CudaLanding, CudaLink, PinnedPool
from quire.reference.ops import Logprobs

from .pretend import FakeEvent, pretend_cuda

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch)


def make_logprobs() -> Logprobs:
    return Logprobs(
        sampled=torch.tensor([-0.5]),
        ranks=torch.tensor([2], dtype=torch.int32),
        top_ids=torch.tensor([[4, 9]], dtype=torch.int32),
        top=torch.tensor([[-0.25, -0.5]]),
    )


def test_a_mirror_gets_what_is_sent_and_no_more() -> None:
    link = CudaLink(CPU)
    array = np.arange(6, dtype=np.int32)
    mirror = link.mirror(array)
    link.send(array, mirror, 4)
    array[:] = -1
    assert mirror.tolist() == [0, 1, 2, 3, 0, 0]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_uploads_keep_their_type(dtype: type) -> None:
    array: Any = np.array([3, -(2**31), 7], dtype=dtype)
    sent = CudaLink(CPU).upload(array)
    assert sent.tolist() == [3, -(2**31), 7]
    assert sent.dtype == torch.from_numpy(array).dtype


def test_results_are_copies_and_their_memory_is_used_again() -> None:
    link = CudaLink(CPU)
    mirror = link.mirror(np.zeros(2, dtype=np.int32))
    taken = []
    for step in range(4):
        link.send(np.array([step, 1], dtype=np.int32), mirror, 2)
        landing = link.land(step, torch.tensor([step, -1], dtype=torch.int32), make_logprobs())
        assert isinstance(landing, CudaLanding)
        taken.append({id(pinned.tensor) for pinned in landing._memory[1]})
        assert landing.is_ready
        result = landing.result()
        assert (result.step, result.token_ids.tolist()) == (step, [step, -1])
        assert result.logprobs is not None
        assert result.logprobs.top_ids.tolist() == [[4, 9]]
        assert result.logprobs.sampled.tolist() == [-0.5]
    # What is sent, the tokens, and the four parts of log probabilities.
    assert all(len(memory) == 6 for memory in taken)
    assert taken[0] == taken[1] == taken[3]


def test_steps_on_their_way_share_no_memory() -> None:
    link = CudaLink(CPU)
    landings = [link.land(i, torch.tensor([i], dtype=torch.int32), None) for i in range(5)]
    assert [landing.result().token_ids.tolist() for landing in landings] == [[i] for i in range(5)]


def test_nothing_lands_too() -> None:
    landing = CudaLink(CPU).land(3, torch.empty(0, dtype=torch.int32), None)
    assert landing.result().token_ids.tolist() == []


def test_what_the_device_raises_comes_with_the_result() -> None:
    landing = CudaLink(CPU).land(0, torch.tensor([1], dtype=torch.int32), None)
    assert isinstance(landing, CudaLanding)
    assert isinstance(landing._event, FakeEvent)
    landing._event.error = RuntimeError("CUDA error")
    with pytest.raises(RuntimeError, match="CUDA error"):
        landing.result()


def test_pinned_memory_comes_in_powers_of_two() -> None:
    pool = PinnedPool()
    sizes = [
        len(pool.take(words).array) for words in (0, 1, LEAST_WORDS, LEAST_WORDS + 1, 3 * 2**20)
    ]
    assert sizes == [LEAST_WORDS, LEAST_WORDS, LEAST_WORDS, 2 * LEAST_WORDS, 4 * 2**20]
