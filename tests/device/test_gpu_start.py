"""A start on a GPU, with the CPU's kernels and all of CUDA pretended: what is left for the KV."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from quire.engine import build
from quire.engine.config import EngineConfig
from quire.engine.device import runner as runner_module
from quire.engine.device import warm_up
from quire.engine.device.buckets import make_buckets
from quire.engine.device.cuda_link import CudaLink
from quire.engine.device.gpu_memory import GRAPH_BYTES, ROUNDING_BYTES, GpuBudget
from quire.engine.device.graphs import GraphKey, StepGraphs
from quire.engine.device.memory import bytes_per_block
from quire.engine.device.runner import ModelRunner
from quire.engine.errors import ConfigError, EngineError
from quire.engine.models.registry import read_model_config
from quire.engine.opset import choose_ops
from quire.fuzz.checkpoints import MAX_POSITIONS, VOCAB_SIZE, make_checkpoint, write_config
from quire.fuzz.engine_runs import expect, make_requests, run
from quire.fuzz.heads import HeadKind, make_guessing
from quire.kernels import cpu
from torch import Tensor

from .pretend import FakeCapture, pretend_cuda

CPU = torch.device("cpu")
GIB = 2**30


class FakeMemory:
    """What torch counts, in fixed numbers: 3 MiB held, 7 MiB at the peak."""

    free = 60 * GIB
    total = 80 * GIB

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**20)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7 * 2**20)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, self.total))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(runner_module, "CudaCapture", FakeCapture)
    monkeypatch.setattr(build, "choose_ops", lambda device, backend: choose_ops("cpu", backend))
    memory = FakeMemory()
    memory.install(monkeypatch)
    return memory


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., build.MadeRunner]:
    path = write_config("qwen3", tmp_path)

    def make(**options: Any) -> build.MadeRunner:
        config = EngineConfig(
            model=str(path),
            load_format="dummy",
            max_num_seqs=6,
            max_num_batched_tokens=64,
            **options,
        )
        model_config = read_model_config(path, "bfloat16", 1, "pairs")
        ops = choose_ops("cpu", config.backend)
        return build.make_gpu_runner(config, model_config, ops, CPU)

    return make


def test_a_start_logs_its_budget_and_takes_what_it_needs(
    memory: FakeMemory, start: Callable[..., build.MadeRunner], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quire")
    made = start()
    assert made.max_model_len == MAX_POSITIONS
    assert made.num_blocks == 6 * MAX_POSITIONS // 16, "no more than all sequences can use"
    for words in ("Some GPU", "activations, measured", "Start: check of the kernels"):
        assert words in caplog.text


def test_little_memory_shortens_the_model_length(
    memory: FakeMemory, start: Callable[..., build.MadeRunner], tmp_path: Path
) -> None:
    decoder = read_model_config(tmp_path, "bfloat16", 1, "pairs").decoder
    tables = 6 * (MAX_POSITIONS + MAX_POSITIONS // 16) * 4 + 2 * 2 * ROUNDING_BYTES
    weights, peak, num_graphs = 3 * 2**20, 4 * 2**20, make_buckets(6).num_graphs
    # The tokens of a step, its rows, and the graphs: each measured apart.
    taken = weights + tables + 3 * peak + num_graphs * GRAPH_BYTES
    # What is neither free nor torch's is others': here nothing.
    memory.total = taken + 5 * bytes_per_block(16, decoder) + 1
    memory.free = memory.total - weights
    made = start(gpu_memory_utilization=1.0)
    assert (made.num_blocks, made.max_model_len) == (5, 80)
    with pytest.raises(ConfigError, match="gpu_memory_utilization"):
        start(gpu_memory_utilization=0.5)


def test_blocks_that_do_not_fit_are_refused(
    memory: FakeMemory, start: Callable[..., build.MadeRunner]
) -> None:
    with pytest.raises(ConfigError, match=r"1000000000 KV blocks take .* lower num_kv_blocks"):
        start(num_kv_blocks=10**9)
    assert start(num_kv_blocks=33).num_blocks == 33


def test_too_little_memory_for_a_step_says_what_to_do(
    memory: FakeMemory,
    start: Callable[..., build.MadeRunner],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> GpuBudget:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(build, "measure", refuse)
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        start()


def test_a_shape_without_a_kernel_is_refused(
    memory: FakeMemory,
    start: Callable[..., build.MadeRunner],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "refuse_head_dim", lambda n: f"head_dim is {n}.", raising=False)
    with pytest.raises(ConfigError, match="head_dim is 32. Or give --device cpu"):
        start()


def test_kernels_that_are_wrong_are_not_started(
    memory: FakeMemory,
    start: Callable[..., build.MadeRunner],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "silu_mul", lambda x: x[:, : x.shape[1] // 2])
    with pytest.raises(EngineError, match="silu_mul"):
        start()


def test_an_engine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = str(write_config("qwen3", tmp_path))
    with pytest.raises(ConfigError, match="device is 'cuda', but .*--device cpu"):
        build.build_engine(EngineConfig(model=path, device="cuda"))


@pytest.fixture
def pretended(memory: FakeMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole engine with device "cuda", whose GPU is the CPU."""
    make = build.make_gpu_runner
    monkeypatch.setattr(build, "choose_device", lambda name, backend, sums: name)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        build,
        "make_gpu_runner",
        lambda config, model, ops, _, guesses: make(config, model, ops, CPU, guesses),
    )
    monkeypatch.setattr(runner_module, "make_link", CudaLink)


@pytest.mark.parametrize("options", [{}, {"overlap": 1}, {"enforce_eager": True, "block_size": 8}])
@pytest.mark.usefixtures("pretended")
def test_an_engine_on_a_pretended_gpu_keeps_the_law(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Two steps on their way, padding, graphs that are replayed: the oracle's bits."""
    path = make_checkpoint("qwen3", tmp_path)
    asked = make_requests(VOCAB_SIZE, seed=3, max_tokens=8, sampled=True)
    expected = expect(path, asked, "bfloat16", "pairs")
    common: dict[str, Any] = {
        "device": "cuda",
        "num_threads": 1,
        "max_num_batched_tokens": 40,
    }
    assert run(path, asked, dtype="bfloat16", **(common | options)).answers == expected


@pytest.mark.usefixtures("pretended")
def test_steps_with_chunks_are_replayed_on_a_pretended_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes come again with other prompts, places and parameters."""
    path = make_checkpoint("qwen3", tmp_path)
    asked = [
        one._replace(params=replace(one.params, prompt_logprobs=None))
        for one in make_requests(VOCAB_SIZE, seed=3, max_tokens=3, sampled=True)
    ]
    expected = expect(path, asked, "bfloat16", "pairs")
    replayed: list[GraphKey] = []
    compute = StepGraphs.run

    def noted(graphs: StepGraphs, key: GraphKey, step: Callable[[], Tensor]) -> Tensor:
        replayed.extend([key] if graphs.has(key) else [])
        return compute(graphs, key, step)

    monkeypatch.setattr(StepGraphs, "run", noted)
    options: dict[str, Any] = {"device": "cuda", "num_threads": 1, "enable_prefix_caching": False}
    outcome = run(path, asked * 4, dtype="bfloat16", alone=True, **options)
    assert outcome.answers == expected * 4
    chunked = [key for key in replayed if key.num_tokens > key.num_rows]
    assert {key.num_tokens for key in chunked} == {48, 256}, chunked


@pytest.mark.parametrize("kind", ["draft_model", "eagle3 few", "deepseek"])
@pytest.mark.usefixtures("pretended")
def test_guesses_on_a_pretended_gpu_keep_the_law(kind: HeadKind, tmp_path: Path) -> None:
    """What they begin with is left by steps of every kind: prompts, graphs, padding."""
    path = make_checkpoint("qwen3", tmp_path)
    config = make_guessing(kind, path)
    asked = make_requests(VOCAB_SIZE, seed=3, max_tokens=8, sampled=True)
    expected = expect(path, asked, "bfloat16", "pairs")
    options: dict[str, Any] = {"device": "cuda", "num_threads": 1, "max_num_batched_tokens": 40}
    outcome = run(path, asked, dtype="bfloat16", speculative_config=config, **options)
    assert outcome.answers == expected
    assert outcome.stats.num_accepted_tokens > 0


@pytest.mark.usefixtures("pretended")
def test_two_steps_are_in_flight_unless_told_otherwise(tmp_path: Path) -> None:
    path = str(write_config("qwen3", tmp_path))
    cases: list[tuple[Any, int | None, int]] = [("cuda", None, 2), ("cuda", 1, 1), ("cpu", None, 1)]
    for device, overlap, expected in cases:
        config = EngineConfig(
            model=path, load_format="dummy", device=device, overlap=overlap, max_num_seqs=2
        )
        parts = build.build_engine(config)
        assert parts.core._overlap == parts.core.scheduler._limits.overlap == expected
        parts.core.close()


def test_the_budget_is_what_is_left() -> None:
    budget = GpuBudget(total=80, limit=72, others=1, weights=16, tables=2, activations=3, graphs=4)
    assert (budget.taken, budget.kv, budget.most_kv) == (26, 46, 54)
    assert budget.table(46).count("\n") == 7


@pytest.mark.parametrize(
    ("seqs", "tokens", "length"), [(6, 64, 320), (1, 1, 1), (3, 2, 2), (8, 1000, 5), (5, 7, 320)]
)
def test_the_largest_steps_run_in_one_block(
    tiny_model: Any, seqs: int, tokens: int, length: int
) -> None:
    tiny = tiny_model("qwen3", "bfloat16", "kernels")
    runner = ModelRunner(
        tiny.model,
        num_blocks=1,
        block_size=4,
        max_num_seqs=seqs,
        max_model_len=length,
    )
    most, num_drafts = min(seqs, tokens), max(0, min(3, length - 2))
    plans = list(warm_up.largest_steps(seqs, tokens, length, tiny.config.vocab_size, 9, num_drafts))
    drawn = plans.pop() if num_drafts else plans[-1]
    assert len(drawn.slots) <= most
    assert length < 2 or len(drawn.sampled()[0]) == min(tokens, (1 + num_drafts) * most)
    size = max(1, min(tokens, length - 1))
    scored = [one for plan in plans for one in plan.scored]
    assert sum(one.end - one.start for one in scored[:1]) == min(9, size - 1)
    assert max(plan.num_scheduled_tokens for plan in plans) <= max(tokens, 1)
    assert len(plans[-1].slots) == most
    rows = list(warm_up.row_steps(seqs, tokens, length, most_split_rows=5))
    assert min(5, seqs, tokens) in {len(plan.slots) for plan in rows}
    assert len(rows[0].slots) == 1 and len(rows[-1].slots) == min(seqs, tokens)
    assert max(plan.num_scheduled_tokens for plan in rows) <= max(tokens, 1)
    counts = (most * (1 + num_drafts), seqs, 1)
    drawing = warm_up.drawing_steps(counts, length, num_drafts=num_drafts)
    chunks = list(warm_up.chunk_steps(seqs, tokens, length))
    assert max(plan.num_scheduled_tokens for plan in chunks) <= max(tokens, 1)
    for plan in (*plans, drawn, *rows, *drawing, *chunks):
        assert len(runner.execute(plan).token_ids) == len(plan.sampled()[0])
