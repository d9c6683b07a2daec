"""ModelRunner under random plans: always the bits of the dense oracle."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.engine.config import Backend, DTypeName
from quire.engine.device import runner as runner_module
from quire.engine.device.cuda_link import CudaLink
from quire.engine.device.link import Link
from quire.engine.device.runner import Decoding, ModelRunner
from quire.engine.params import SamplingParams
from quire.engine.plan import Admitted, StepPlan
from quire.fuzz.checkpoints import KINDS, MAX_POSITIONS, VOCAB_SIZE, Kind, Tiny
from quire.fuzz.step_plans import Answer, Asked, PlanMaker, answer_of
from quire.reference.generate import generate

from .pretend import FakeCapture, pretend_cuda

NUM_SLOTS = 4

TinyModel = Callable[[Kind, DTypeName, Backend], Tiny]


def make_runner(
    tiny: Tiny, block_size: int, decoding: Decoding = "exact", link: Link | None = None
) -> ModelRunner:
    return ModelRunner(
        tiny.model,
        num_blocks=-(-1024 // block_size),
        block_size=block_size,
        max_num_seqs=NUM_SLOTS,
        max_model_len=MAX_POSITIONS,
        decoding=decoding,
        link=link,
    )


def make_asked(rng: random.Random, max_prompt: int) -> Asked:
    """A request of any kind."""
    hot = rng.random() < 0.6
    params = SamplingParams(
        max_tokens=rng.randint(1, 7),
        min_tokens=rng.choice([0, 0, 1]),
        temperature=rng.choice([0.5, 1.0, 2.0]) if hot else 0.0,
        top_k=rng.choice([-1, 0, 1, 20]),
        top_p=rng.choice([1.0, 0.8]),
        min_p=rng.choice([0.0, 0.05]),
        logprobs=rng.choice([None, 0, 2]),
        stop_token_ids=rng.choice([(), tuple(range(0, VOCAB_SIZE, 8))]),
    )
    length = rng.choice([1, 2, 16, 17, rng.randint(1, max_prompt), max_prompt])
    prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(length))
    params = msgspec.structs.replace(params, prompt_logprobs=(None, 0, 3)[length % 3])
    return Asked(prompt, params, rng.choice([0, 2**64 - 1, rng.randrange(2**64)]))


def drive(runner: ModelRunner, maker: PlanMaker) -> list[Answer]:
    for _ in range(1000):
        if maker.finished:
            return maker.answers()
        maker.take(runner.execute(maker.plan()))
    raise AssertionError("no end in 1000 steps")


def oracle(tiny: Tiny, requests: list[Asked]) -> list[Answer]:
    with torch.inference_mode():
        return [
            answer_of(asked, generate(tiny.config, tiny.weights, list(asked.prompt), asked.wish))
            for asked in requests
        ]


@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    backend=st.sampled_from(["kernels", "reference"]),
    block_size=st.sampled_from([1, 8, 16]),
    decoding=st.sampled_from(["exact", "padded"]),
)
@settings(max_examples=25)
def test_any_plans_give_the_oracles_bits(
    tiny_model: TinyModel,
    seed: int,
    kind: Kind,
    dtype: DTypeName,
    backend: Backend,
    block_size: int,
    decoding: Decoding,
) -> None:
    """Chunks, neighbours, slots, blocks, copies, padding: nothing reaches tokens or logprobs."""
    tiny = tiny_model(kind, dtype, backend)
    rng = random.Random(seed)
    requests = [make_asked(rng, max_prompt=75) for _ in range(rng.randint(1, 6))]
    num_blocks = -(-1024 // block_size)
    maker = PlanMaker(
        requests, rng, block_size=block_size, num_blocks=num_blocks, num_slots=NUM_SLOTS
    )
    assert drive(make_runner(tiny, block_size, decoding), maker) == oracle(tiny, requests)


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_graphs_give_the_oracles_bits(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, seed: int, logprobs: int | None
) -> None:
    """Mirrors are apart from the host, pinned memory is used again, captured steps are replayed
    for other rows, and steps land behind: with all of CUDA pretended."""
    pretend_cuda(monkeypatch)
    captures: list[FakeCapture] = []

    def make_capture() -> FakeCapture:
        captures.append(FakeCapture())
        return captures[-1]

    monkeypatch.setattr(runner_module, "CudaCapture", make_capture)
    monkeypatch.setattr(runner_module, "most_split_rows", lambda *_: 2)
    tiny = tiny_model("qwen3", "bfloat16", "kernels")
    rng = random.Random(seed)
    requests = [
        asked._replace(params=msgspec.structs.replace(asked.params, logprobs=logprobs))
        for asked in (make_asked(rng, max_prompt=40) for _ in range(10))
    ]
    maker = PlanMaker(requests, rng, block_size=8, num_blocks=128, num_slots=NUM_SLOTS)
    runner = make_runner(tiny, 8, "graphs", CudaLink(torch.device("cpu")))
    assert runner.capture_largest()
    assert captures[0].num_captured == 3  # chunks, all rows, and those that are split
    assert drive(runner, maker) == oracle(tiny, requests)
    assert captures[0].num_captured > 3


def test_steps_may_be_launched_before_others_land(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that was drawn is known to the next step without the host."""
    pretend_cuda(monkeypatch)
    tiny = tiny_model("llama2", "float32", "kernels")
    link = CudaLink(torch.device("cpu"))
    plans = [first_step((3, 4), 1), *(next_step(i, 1 + i) for i in range(1, 6))]
    behind = make_runner(tiny, 16, link=link)
    landings = [behind.launch(plan) for plan in plans]
    each = make_runner(tiny, 16)
    expected = [each.execute(plan).token_ids.tolist() for plan in plans]
    assert [landing.result().token_ids.tolist() for landing in landings] == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_long_prompts_whole_and_in_chunks(
    tiny_model: TinyModel, kind: Kind, dtype: DTypeName
) -> None:
    rng = random.Random(7)
    params = SamplingParams(max_tokens=3, temperature=0.0, logprobs=3)
    prompts = [tuple(rng.randrange(VOCAB_SIZE) for _ in range(n)) for n in (200, 129, 64)]
    requests = [Asked(prompt, params, 5) for prompt in prompts]
    tiny = tiny_model(kind, dtype, "kernels")
    wanted = oracle(tiny, requests)
    for block_size, whole in ((16, True), (8, False), (1, False)):
        maker = PlanMaker(
            requests,
            rng,
            block_size=block_size,
            num_blocks=-(-1024 // block_size),
            num_slots=NUM_SLOTS,
            whole=whole,
        )
        assert drive(make_runner(tiny, block_size), maker) == wanted


def test_two_threads_give_the_same_bits(tiny_model: TinyModel) -> None:
    tiny = tiny_model("qwen3", "bfloat16", "kernels")
    rng = random.Random(1)
    requests = [make_asked(rng, max_prompt=200) for _ in range(4)]
    answers = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        maker = PlanMaker(
            requests, random.Random(2), block_size=16, num_blocks=64, num_slots=NUM_SLOTS
        )
        answers.append(drive(make_runner(tiny, 16), maker))
    assert answers[0] == answers[1]


def make_plan(**changes: object) -> StepPlan:
    """A plan that does nothing, with changes."""
    none = np.empty(0, dtype=np.int32)
    fields: dict[str, object] = {
        "step": 0,
        "admitted": (),
        "released": none,
        "block_slots": none,
        "block_indices": none,
        "block_ids": none,
        "copy_sources": none,
        "copy_targets": none,
        "slots": none,
        "starts": none,
        "num_tokens": none,
        "samples": np.empty(0, dtype=np.bool_),
    }
    return StepPlan(**(fields | changes))  # type: ignore[arg-type]  # by name


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def admit(slot: int, prompt: tuple[int, ...]) -> Admitted:
    params = SamplingParams(temperature=0.0, max_tokens=None)
    return Admitted(slot, ints(*prompt), len(prompt), params, 0, ())


def first_step(prompt: tuple[int, ...], block: int) -> StepPlan:
    """Prefill in slot 2, sampling."""
    return make_plan(
        admitted=(admit(2, prompt),),
        block_slots=ints(2),
        block_indices=ints(0),
        block_ids=ints(block),
        slots=ints(2),
        starts=ints(0),
        num_tokens=ints(len(prompt)),
        samples=np.array([True]),
    )


def next_step(step: int, start: int) -> StepPlan:
    """Decode in slot 2: a plan that knows no token."""
    return make_plan(
        step=step,
        slots=ints(2),
        starts=ints(start),
        num_tokens=ints(1),
        samples=np.array([True]),
    )


def test_steps_without_samples_and_without_rows_give_nothing(tiny_model: TinyModel) -> None:
    tiny = tiny_model("llama2", "float32", "kernels")
    runner = make_runner(tiny, 16)
    for plan in (make_plan(step=4), chunk_without_sample()):
        result = runner.execute(plan)
        assert (result.step, len(result.token_ids), result.logprobs) == (4, 0, None)


def chunk_without_sample() -> StepPlan:
    return make_plan(
        step=4,
        admitted=(admit(0, (1, 2, 3)),),
        block_slots=ints(0),
        block_indices=ints(0),
        block_ids=ints(5),
        slots=ints(0),
        starts=ints(0),
        num_tokens=ints(2),
        samples=np.array([False]),
    )


def test_unsound_logits_give_minus_one_and_the_next_step_survives(tiny_model: TinyModel) -> None:
    """A plan that was queued ahead computes on whatever token stands in the table."""
    tiny = tiny_model("llama2", "float32", "kernels")
    runner = make_runner(tiny, 16)
    norm = tiny.model.weights.final_norm
    before = norm.clone()
    norm.fill_(torch.nan)
    try:
        results = [runner.execute(first_step((3, 4), 1)), runner.execute(next_step(1, 2))]
    finally:
        norm.copy_(before)
    assert [result.token_ids.tolist() for result in results] == [[-1], [-1]]


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_warm_up_leaves_no_trace(tiny_model: TinyModel, backend: Backend) -> None:
    tiny = tiny_model("qwen3", "bfloat16", backend)
    asked = Asked((5, 6, 7), SamplingParams(max_tokens=4, temperature=0.0, logprobs=2), 0)
    answers = []
    for warm in (False, True):
        runner = make_runner(tiny, 16)
        if warm:
            runner.warm_up()
        maker = PlanMaker(
            [asked], random.Random(0), block_size=16, num_blocks=8, num_slots=1, whole=True
        )
        answers.append(drive(runner, maker))
    assert answers[0] == answers[1] == oracle(tiny, [asked])


def test_the_smallest_runner_warms_up(tiny_model: TinyModel) -> None:
    """Warming up needs none of the runner's own slots, blocks and lengths."""
    tiny = tiny_model("llama2", "float32", "kernels")
    ModelRunner(tiny.model, num_blocks=1, block_size=1, max_num_seqs=1, max_model_len=1).warm_up()


def test_a_sequence_ends_at_the_last_place(tiny_model: TinyModel) -> None:
    """The last token of the model length is drawn and written; one more is refused."""
    tiny = tiny_model("llama2", "float32", "kernels")
    runner = ModelRunner(tiny.model, num_blocks=4, block_size=4, max_num_seqs=3, max_model_len=4)
    assert runner.execute(first_step((3, 4, 5), 1)).token_ids.shape == (1,)
    with pytest.raises(AssertionError):
        runner.execute(next_step(1, 4))


def test_plans_may_be_read_only(tiny_model: TinyModel) -> None:
    """Warnings are errors here, and torch warns of arrays that it may not write."""
    tiny = tiny_model("llama2", "float32", "kernels")
    plan = first_step((3, 4, 5), 1)
    arrays = [getattr(plan, name) for name in plan.__struct_fields__]
    for array in [*arrays, plan.admitted[0].token_ids]:
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    make_runner(tiny, 16).execute(plan)
