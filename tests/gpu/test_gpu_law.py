"""The law on a GPU's kernels: whatever the way, a request's tokens and log probabilities are one.

On a GPU: every way of running, graphs included, against one request at a time without graphs. In
the interpreter: the whole engine over these kernels on the CPU, a few tokens long.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from quire.engine import build
from quire.engine.device.inputs import PackedStep, StepInputs
from quire.engine.device.sampling_rows import SamplingTable
from quire.engine.llm import LLM
from quire.engine.params import SamplingParams
from quire.engine.plan import StepPlan
from quire.fuzz.checkpoints import VOCAB_SIZE, make_checkpoint
from quire.fuzz.engine_runs import Answer, Asked, answer_of, expect, run, ways_that_differ
from quire.kernels import gpu

ON_GPU = torch.cuda.is_available()


@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_way_on_a_gpu_gives_the_same_bits(dtype: Any) -> None:
    assert ways_that_differ(dtype) == []


GROUPS = 12
SHARED = 1024


@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
def test_rows_of_one_step_may_read_what_another_row_writes(tmp_path: Path) -> None:
    """Prompts that begin with one whose last token is computed in the step that reads it.

    All but that token was cached, so the step has one token a row: attention is split, and loads
    keys before its turn.
    """
    path = make_checkpoint("qwen3", tmp_path, max_position_embeddings=2048)
    greedy = SamplingParams(
        temperature=0.0, max_tokens=2, ignore_eos=True, logprobs=3, detokenize=False
    )
    rng = random.Random(7)
    begin = [rng.randrange(VOCAB_SIZE) for _ in range(SHARED - 1)]
    groups = []
    for last in range(GROUPS):
        prompts = [[*begin, last], *([*begin, last, token] for token in range(7))]
        groups.append([Asked(tuple(one), greedy) for one in prompts])
    common: dict[str, Any] = {
        "device": "cuda",
        "num_kv_blocks": 1200,
        "max_model_len": 2048,
        "dtype": "bfloat16",
    }
    asked = [one for group in groups for one in group]
    base = run(path, asked, alone=True, enable_prefix_caching=False, **common).answers
    wrong = []
    with LLM(str(path), skip_tokenizer_init=True, **common) as llm:
        llm.generate([[*begin, VOCAB_SIZE - 1]], greedy, use_tqdm=False)
        before = llm.scheduler.stats.num_scheduled_tokens
        for index, group in enumerate(groups):
            prompts = [list(one.prompt) for one in group]
            outputs = llm.generate(prompts, greedy, use_tqdm=False)
            first = index * len(group)
            if [answer_of(one) for one in outputs] != base[first : first + len(group)]:
                wrong.append(index)
        num_computed = llm.scheduler.stats.num_scheduled_tokens - before
    assert num_computed == 2 * len(asked), "no row read what another one wrote"
    assert not wrong, f"groups {wrong} of {GROUPS}"


@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
def test_choices_of_a_prompt_are_requests_of_their_own(checkpoint: Path) -> None:
    """n choices share blocks from their first token on; each equals a request with its seed."""
    options: dict[str, Any] = {"device": "cuda", "num_kv_blocks": 64, "max_model_len": 240}
    hot: dict[str, Any] = {"temperature": 1.0, "max_tokens": 30, "ignore_eos": True}
    prompts = [[(5 * i + j) % VOCAB_SIZE for i in range(37 + j)] for j in range(3)]
    with LLM(str(checkpoint), skip_tokenizer_init=True, **options) as llm:
        many = SamplingParams(n=4, seed=5, detokenize=False, **hot)
        got = llm.generate(prompts, many, use_tqdm=False)
        one = [SamplingParams(seed=5 + i, detokenize=False, **hot) for i in range(4)]
        want = [llm.generate([prompt] * 4, one, use_tqdm=False) for prompt in prompts]
    assert [[c.token_ids for c in output.outputs] for output in got] == [
        [output.outputs[0].token_ids for output in outputs] for outputs in want
    ]


def make_asked() -> list[Asked]:
    """Three requests that begin alike, greedy and sampled."""
    common = [(7 * i + 3) % VOCAB_SIZE for i in range(21)]
    hot: dict[str, Any] = {"temperature": 0.8, "seed": 3, "top_p": 0.9}
    cold: dict[str, Any] = {"temperature": 0.0}
    return [
        Asked(
            (*common[:length], length),
            SamplingParams(**options, max_tokens=3, ignore_eos=True, logprobs=3, detokenize=False),
        )
        for length, options in ((20, cold), (5, hot), (18, cold | {"prompt_logprobs": 2}))
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
    # As a GPU has it: short steps as rows of one token, chunks with their rows, and padding.
    make, are_flat = build._make_runner, set[bool]()
    monkeypatch.setattr(
        build, "_make_runner", lambda config, model, head, _: make(config, model, head, "padded")
    )
    pack = StepInputs.pack

    def packed(inputs: StepInputs, plan: StepPlan, table: SamplingTable) -> PackedStep:
        step = pack(inputs, plan, table)
        if step.is_padded:
            are_flat.add(len(step.tensors.rows.slots) == step.num_tokens)
        return step

    monkeypatch.setattr(StepInputs, "pack", packed)
    assert run(checkpoint, asked, **common).answers == base
    assert are_flat == {True, False}


def close(answers: list[Answer], others: list[Answer]) -> bool:
    """Whether all log probabilities of tokens agree to five digits."""
    pairs = zip(answers, others, strict=True)
    return all(
        torch.allclose(torch.tensor(a.sampled), torch.tensor(b.sampled), atol=1e-5)
        for a, b in pairs
    )
