"""Whole-engine runs and their oracle, for the law's tests: what was asked, what each way answered.

`run` drives LLM over token ids; `expect` asks the dense oracle, one request at a time, with weights
loaded apart from the engine. Both return the same frozen Answers, so that == compares every bit.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor

from ..engine.config import DTypeName, SumsName
from ..engine.llm import LLM
from ..engine.models.loader import load_weights
from ..engine.models.registry import read_model_config
from ..engine.opset import choose_ops, choose_sums
from ..engine.params import SamplingParams
from ..engine.request import RequestOutput, ThinkingBudget
from ..engine.sched.scheduler import SchedulerStats
from ..engine.structured import Thought
from ..reference.generate import Wish, generate
from ..reference.ops import Logprobs
from .checkpoints import VOCAB_SIZE
from .drafters import KnowingDrafter
from .grammar_cases import FORMS, make_vocabulary, source_of
from .step_plans import count_of, edits_of

PROMPT_LENGTHS = (200, 7, 1, 16, 17, 33)
"""The longest first: with few blocks, the small ones beside it must grow and be preempted."""

NUM_LOGPROBS = 3
PROMPT_LOGPROBS = {0: 2, 2: 0, 3: -1, 4: 1}
"""What some of the requests want to know of their prompts."""
START, END = (7,), (11, 13)
"""What begins and ends a thought,"""
END_TEXT = b"".join(make_vocabulary().tokens[one] for one in END).decode()
"""and how its end is written."""
REASONING = {"reasoning_start_token_ids": START, "reasoning_end_token_ids": END}


def go_on(outputs: list[int], logits: Tensor) -> Tensor:
    """Make the token behind the newest likely, in place."""
    logits[(outputs[-1] + 1 if outputs else 5) % len(logits)] += 6.0
    return logits


def leave_prompt(prompt: list[int], outputs: list[int], logits: Tensor) -> Tensor:
    """Ban a token of the prompt after the other, in a tensor of its own."""
    banned = torch.tensor(prompt[len(outputs) % len(prompt)], device=logits.device)
    return logits.index_fill(0, banned, -torch.inf)


EDITS: dict[int, dict[str, Any]] = {
    0: {"structured_outputs": FORMS[1], "presence_penalty": 0.3},
    1: {
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "thinking_token_budget": 1,
        "logit_bias": {START[0]: 12.0},
    },
    2: {
        "structured_outputs": replace(FORMS[4], thought=Thought("", END_TEXT)),
        "thinking_token_budget": 2,
    },
    3: {
        "frequency_penalty": -0.7,
        "logit_bias": {2: 2.5, 9: -100.0},
        "logits_processors": (go_on, leave_prompt),
    },
    4: {"structured_outputs": FORMS[0], "min_tokens": 3, "logits_processors": (go_on,)},
    5: {
        "allowed_token_ids": tuple(range(1, 90, 2)),
        "frequency_penalty": 1.1,
        "thinking_token_budget": 0,
        "logit_bias": {START[0]: 12.0},
    },
}
"""What some of the sampled requests change in their logits."""


class Asked(NamedTuple):
    """One request."""

    prompt: tuple[int, ...]
    params: SamplingParams


Entries = tuple[tuple[int, float, int], ...]
"""What is told beside a token: token, log probability, rank; its own first, then the likeliest."""


class Answer(NamedTuple):
    """What came back; floats compare bit for bit (no NaN occurs)."""

    token_ids: tuple[int, ...]
    sampled: tuple[float, ...]
    """Log probability of each token."""
    top: tuple[tuple[tuple[int, float], ...], ...]
    """The NUM_LOGPROBS most likely of each, by rank."""
    prompt: tuple[Entries, ...] | None = None
    """Of each token of the prompt but the first, where the request asked."""


def make_requests(
    vocab_size: int, *, seed: int, max_tokens: int, sampled: bool, share: int = 12
) -> list[Asked]:
    """Prompts of PROMPT_LENGTHS; the longer ones begin alike, so that prefixes hit inside
    blocks."""
    rng = random.Random(seed)
    common = [rng.randrange(vocab_size) for _ in range(share)]
    requests = []
    for index, length in enumerate(PROMPT_LENGTHS):
        own = [rng.randrange(vocab_size) for _ in range(length)]
        prompt = tuple((common[: length - 1] + own)[:length]) if index % 2 else tuple(own)
        hot = sampled and index % 3 != 2
        params = SamplingParams(
            temperature=(0.7, 1.3)[index % 2] if hot else 0.0,
            top_k=(0, 20)[index % 2] if hot else 0,
            top_p=(0.9, 1.0)[index % 2] if hot else 1.0,
            min_p=(0.0, 0.02)[index % 2] if hot else 0.0,
            seed=rng.randrange(2**64),
            max_tokens=max_tokens,
            ignore_eos=True,
            logprobs=NUM_LOGPROBS,
            prompt_logprobs=PROMPT_LOGPROBS.get(index),
            detokenize=False,
            **(EDITS.get(index, {}) if sampled else {}),
        )
        requests.append(Asked(prompt, params))
    return requests


def answer_of(output: RequestOutput) -> Answer:
    """Read an Answer off a finished output."""
    assert output.finished and output.error is None, output
    completion = output.outputs[0]
    assert completion.logprobs is not None
    sampled, top = [], []
    for token_id, row in zip(completion.token_ids, completion.logprobs, strict=True):
        sampled.append(row[token_id].logprob)
        ranked = sorted((one.rank or 0, token, one.logprob) for token, one in row.items())
        best = [(token, logprob) for rank, token, logprob in ranked if rank <= NUM_LOGPROBS]
        top.append(tuple(best[:NUM_LOGPROBS]))
    return Answer(completion.token_ids, tuple(sampled), tuple(top), _prompt_of(output))


def _prompt_of(output: RequestOutput) -> tuple[Entries, ...] | None:
    rows = output.prompt_logprobs
    if rows is None:
        return None
    assert rows[0] is None and len(rows) == len(output.prompt_token_ids), output
    return tuple(
        tuple((token, one.logprob, one.rank or 0) for token, one in (row or {}).items())
        for row in rows[1:]
    )


def entries_of(found: Logprobs, prompt: Sequence[int]) -> tuple[Entries, ...]:
    """Say what the oracle gives for a prompt as a RequestOutput says it."""
    given = []
    for row, token in enumerate(prompt[1:]):
        entries = {token: (float(found.sampled[row]), int(found.ranks[row]))}
        likeliest = zip(found.top_ids[row].tolist(), found.top[row].tolist(), strict=True)
        for rank, (top_id, top) in enumerate(likeliest, 1):
            entries.setdefault(top_id, (top, rank))
        given.append(tuple((token, *entry) for token, entry in entries.items()))
    return tuple(given)


class Outcome(NamedTuple):
    """What a run gave, and what it took: so that a test can tell that it tested something."""

    answers: list[Answer]
    stats: SchedulerStats


def run(
    path: Path,
    requests: Sequence[Asked],
    *,
    alone: bool = False,
    told: Sequence[Answer] = (),
    **options: Any,
) -> Outcome:
    """Answer all requests at once, or one after the other in the same engine.

    told: what they answer, for a drafter that knows it, where options have a speculative_config.
    Asserts that the engine is empty and whole afterwards.
    """
    texts = [[*one.prompt, *answer.token_ids] for one, answer in zip(requests, told, strict=False)]
    fixed: dict[str, Any] = {"skip_tokenizer_init": True, "reasoning_config": REASONING}
    with LLM(str(path), max_logprobs=-1, **fixed, **options) as llm:
        llm.grammars.provide(make_vocabulary)
        if texts:
            drafting = llm.scheduler._state.drafting
            assert drafting is not None, options
            drafting._drafter = KnowingDrafter(lambda: texts, VOCAB_SIZE)
        for one in requests:
            if one.params.structured_outputs is not None:
                llm.grammars.resume(source_of(one.params.structured_outputs))
        groups = [[one] for one in requests] if alone else [list(requests)]
        outputs = [
            output
            for group in groups
            for output in llm.generate(
                [list(one.prompt) for one in group], [one.params for one in group], use_tqdm=False
            )
        ]
        scheduler = llm.scheduler
        scheduler.check()
        assert scheduler.num_free_blocks == scheduler.num_blocks
        return Outcome([answer_of(output) for output in outputs], scheduler.stats)


def expect(
    path: Path, requests: Sequence[Asked], dtype: DTypeName, sums: SumsName = "auto"
) -> list[Answer]:
    """Ask the oracle: the dense model in pure PyTorch, one request at a time, no cache at all."""
    config = read_model_config(path, dtype, sums=choose_sums(sums))
    weights = load_weights(config, choose_ops("cpu", "reference"), progress=False)
    answers = []
    for prompt, params in requests:
        assert params.max_tokens is not None, params
        budget = params.thinking_token_budget
        thinking = None if budget is None else ThinkingBudget(budget, START, END)
        wish = Wish(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_k=max(0, params.top_k),
            top_p=params.top_p,
            min_p=params.min_p,
            seed=(params.seed or 0) % 2**64,
            num_logprobs=NUM_LOGPROBS,
            num_prompt_logprobs=count_of(params.prompt_logprobs, config.vocab_size),
            edits=edits_of(params, thinking=thinking, prompt=prompt),
        )
        given = generate(config.decoder, weights, list(prompt), wish)
        top = tuple(
            tuple(zip(row.top_ids[0].tolist(), row.top[0].tolist(), strict=True))
            for row in given.logprobs
        )
        sampled = tuple(float(row.sampled[0]) for row in given.logprobs)
        told = None if given.prompt is None else entries_of(given.prompt, prompt)
        answers.append(Answer(tuple(given.token_ids), sampled, top, told))
    return answers


GPU_WAYS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "graphs, one by one": {"alone": True},
    "eager": {"enforce_eager": True},
    "one step in flight": {"overlap": 1},
    "chunks of 7": {"max_num_batched_tokens": 7},
    "blocks of 8": {"block_size": 8, "num_kv_blocks": 128},
    "few blocks": {"block_size": 4, "num_kv_blocks": 60},
}
"""Options of runs on a GPU, which must answer like one request at a time without graphs."""


def ways_that_differ(dtype: DTypeName) -> list[str]:
    """Return the GPU_WAYS in which a small model's answers are others: none, where the law holds.

    A GPU has bits of its own, so the engine itself is the oracle: eager, one step in flight.
    """
    from .checkpoints import make_checkpoint

    asked = make_requests(VOCAB_SIZE, seed=1, max_tokens=12, sampled=True)
    common: dict[str, Any] = {
        "dtype": dtype,
        "device": "cuda",
        "num_kv_blocks": 64,
        "max_model_len": 240,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = make_checkpoint("qwen3", Path(folder))
        base = run(path, asked, alone=True, enforce_eager=True, overlap=1, **common).answers
        return [
            name
            for name, options in GPU_WAYS.items()
            if run(path, asked, **(common | options)).answers != base
        ]
