"""The law on a GPU's kernels: whatever the way, a request's tokens and log probabilities are one.

On a GPU: every way of running, graphs included, against one request at a time without graphs. In
the interpreter: the whole engine over these kernels on the CPU, a few tokens long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quire.engine import build
from quire.engine.params import SamplingParams
from quire.fuzz.checkpoints import VOCAB_SIZE, make_checkpoint
from quire.fuzz.engine_runs import Answer, Asked, expect, run, ways_that_differ
from quire.kernels import gpu

ON_GPU = torch.cuda.is_available()


@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_way_on_a_gpu_gives_the_same_bits(dtype: Any) -> None:
    assert ways_that_differ(dtype) == []


def make_asked() -> list[Asked]:
    """Three requests that begin alike, greedy and sampled."""
    common = [(7 * i + 3) % VOCAB_SIZE for i in range(21)]
    hot: dict[str, Any] = {"temperature": 0.8, "seed": 3, "top_p": 0.9}
    return [
        Asked(
            (*common[:length], length),
            SamplingParams(**options, max_tokens=3, ignore_eos=True, logprobs=3, detokenize=False),
        )
        for length, options in ((20, {"temperature": 0.0}), (5, hot), (18, {"temperature": 0.0}))
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3."""
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.mark.skipif(ON_GPU, reason="the interpreter's")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_engine_over_these_kernels_keeps_the_law(
    dtype: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = make_asked()
    oracle = expect(checkpoint, asked, dtype)
    monkeypatch.setattr(build, "choose_ops", lambda device, backend: gpu)
    common = {"dtype": dtype, "num_kv_blocks": 24, "max_model_len": 64, "device": "cpu"}
    base = run(checkpoint, asked, alone=True, enable_prefix_caching=False, **common).answers
    if dtype == "float32":  # sums differ in their last bits, which no greedy token here hangs on
        assert [answer.token_ids for answer in base] == [answer.token_ids for answer in oracle]
        assert close(base, oracle)
    ways: list[dict[str, Any]] = [
        {"max_num_batched_tokens": 7, "block_size": 8},
        {"overlap": 2, "max_num_seqs": 2},
    ]
    for options in ways:
        assert run(checkpoint, asked, **(common | options)).answers == base


def close(answers: list[Answer], others: list[Answer]) -> bool:
    """Whether all log probabilities of tokens agree to five digits."""
    pairs = zip(answers, others, strict=True)
    return all(
        torch.allclose(torch.tensor(a.sampled), torch.tensor(b.sampled), atol=1e-5)
        for a, b in pairs
    )
