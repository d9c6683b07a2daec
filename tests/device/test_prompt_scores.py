"""Log probabilities of prompts are computed in pieces, which reach no bit of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from quire.engine.device import prompt_scores
from quire.engine.device.cuda_link import CudaLink
from quire.engine.device.link import HostLink, Link
from quire.engine.device.runner import ModelRunner
from quire.engine.params import SamplingParams
from quire.engine.plan import StepPlan
from quire.fuzz.checkpoints import VOCAB_SIZE
from quire.fuzz.step_plans import Asked, PlanMaker, answer_of
from quire.reference.generate import generate

from .pretend import pretend_cuda

PARAMS = SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=4)


@pytest.mark.parametrize("link", [HostLink, CudaLink])
@pytest.mark.parametrize("num_rows", [1, 7, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_give_the_oracles_bits(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, dtype: Any, num_rows: int, link: type
) -> None:
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(prompt_scores, "MOST_LOGITS", num_rows * VOCAB_SIZE + VOCAB_SIZE - 1)
    tiny = tiny_model("qwen3", dtype, "kernels")
    logits, most = tiny.model.logits, 0

    def seen(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, len(hidden))
        result: torch.Tensor = logits(hidden)
        return result

    monkeypatch.setattr(tiny.model, "logits", seen)
    rng = random.Random(num_rows)
    asked = [
        Asked(tuple(rng.randrange(VOCAB_SIZE) for _ in range(length)), params, 0)
        for length in (60, 1, 2, 33)
        for params in (PARAMS, SamplingParams(max_tokens=2, temperature=0.0))
    ]
    made: Link = HostLink() if link is HostLink else CudaLink(torch.device("cpu"))
    runner = ModelRunner(
        tiny.model,
        num_blocks=128,
        block_size=8,
        max_num_seqs=8,
        max_model_len=64,
        link=made,
    )
    maker = PlanMaker(asked, rng, block_size=8, num_blocks=128, num_slots=8)
    while not maker.finished:
        maker.take(runner.execute(maker.plan()))
    with torch.inference_mode():
        assert maker.answers() == [
            answer_of(one, generate(tiny.config, tiny.weights, list(one.prompt), one.wish))
            for one in asked
        ]
    assert most <= max(num_rows, len(asked))


def test_steps_that_tell_nothing_are_computed_as_ever(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no sequence of a step asks, no row of it pays for those that do."""
    tiny = tiny_model("qwen3", "bfloat16", "kernels")
    runner = ModelRunner(tiny.model, num_blocks=64, block_size=8, max_num_seqs=4, max_model_len=64)
    scored: list[StepPlan] = []
    compute = runner._compute_scored

    def seen(plan: StepPlan, step: Any) -> Any:
        scored.append(plan)
        return compute(plan, step)

    monkeypatch.setattr(runner, "_compute_scored", seen)
    asked = [Asked((1, 2, 3, 4), PARAMS, 0), Asked((5, 6), PARAMS, 0)]
    maker = PlanMaker(asked, random.Random(1), block_size=8, num_blocks=64, num_slots=4, whole=True)
    steps = 0
    while not maker.finished:
        maker.take(runner.execute(maker.plan()))
        steps += 1
    assert (steps, len(scored)) == (2, 1)
