"""Guesses on a GPU: decode steps that verify, with a drafter that is told what will be drawn.

It is always right, so what comes out is the most that guesses can give: tokens a second with it
over tokens a second without, for a number of guesses, requests and tokens of context.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from ..engine.llm import LLM
from ..engine.params import SamplingParams
from ..engine.request import IntArray, Request
from .gpu_engine import Step, drive, make_requests, open_model
from .gpu_shapes import ModelShape

NUM_DRAFTS = 4
CASES = ((1, 1000), (8, 1000), (32, 1000), (1, 8000), (8, 8000))
"""Requests at once, and tokens of context."""
NUM_OUTPUT = 120


class ToldDrafter:
    """Guesses what it was told, by the prompt. See Drafter."""

    def __init__(self) -> None:
        self.answers: dict[bytes, list[int]] = {}
        self._prompts: dict[int, tuple[bytes, int]] = {}

    def enter(self, slot: int, request: Request, token_ids: IntArray) -> None:
        """See Drafter."""
        prompt = request.prompt_token_ids
        self._prompts[slot] = (prompt.tobytes(), len(prompt))

    def propose(self, slot: int, token_ids: IntArray, count: int) -> Sequence[int]:
        """See Drafter."""
        prompt, length = self._prompts[slot]
        begun = len(token_ids) - length
        return self.answers.get(prompt, [])[begun : begun + count]

    def leave(self, slot: int, token_ids: IntArray, *, ended: bool) -> None:
        """See Drafter."""
        del self._prompts[slot]

    def pass_step(self) -> None:
        """See Drafter."""


class Case(NamedTuple):
    """One way of asking, and what came of it."""

    batch: int
    context: int
    steps: list[Step]

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.wall_s for step in self.steps)


_numbers = itertools.count()


def _again(requests: Sequence[Request]) -> list[Request]:
    return [replace(one, request_id=f"again-{next(_numbers)}") for one in requests]


def _timed(llm: LLM, batch: int, context: int, requests: list[Request]) -> Case:
    """Time the second of two rounds: prompts are cached, graphs are there."""
    for _ in range(2):
        drive(llm.core, _again(requests))
    return Case(batch, context, drive(llm.core, _again(requests)))


def _answers(llm: LLM, requests: Sequence[Request]) -> list[list[int]]:
    params = SamplingParams(
        temperature=0.0, max_tokens=NUM_OUTPUT, ignore_eos=True, detokenize=False
    )
    prompts = [one.prompt_token_ids.tolist() for one in requests]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in outputs]


@contextmanager
def open_told(shape: ModelShape, drafter: ToldDrafter) -> Iterator[LLM]:
    """Open a model that drafter guesses for."""
    guesses: dict[str, Any] = {"num_speculative_tokens": NUM_DRAFTS, "costs": {}}
    with open_model(shape, speculative_config=guesses) as llm:
        drafting = llm.scheduler._state.drafting
        assert drafting is not None
        drafting._drafter = drafter
        yield llm


def measure_guesses(shape: ModelShape) -> dict[str, dict[str, float]]:
    """Time all CASES without and with guesses; raise where answers differ."""
    drafter, plain, wanted = ToldDrafter(), [], []
    asked = [make_requests(batch, context, NUM_OUTPUT, 77) for batch, context in CASES]
    with open_model(shape) as llm:
        for (batch, context), requests in zip(CASES, asked, strict=True):
            answers = _answers(llm, requests)
            plain.append(_timed(llm, batch, context, requests))
            wanted.append(answers)
            for request, answer in zip(requests, answers, strict=True):
                drafter.answers[request.prompt_token_ids.tobytes()] = answer
    figures = {}
    with open_told(shape, drafter) as llm:
        for without, requests, answers in zip(plain, asked, wanted, strict=True):
            assert _answers(llm, requests) == answers, "guesses changed a token"
            case = _timed(llm, without.batch, without.context, requests)
            num_tokens = without.batch * NUM_OUTPUT
            figures[f"{without.batch} x {without.context}"] = {
                "plain_tokens_per_s": num_tokens / without.seconds,
                "tokens_per_s": num_tokens / case.seconds,
                "ratio": without.seconds / case.seconds,
                "step_ms": float(np.median([step.wall_s for step in case.steps])) * 1e3,
                "plain_step_ms": float(np.median([step.wall_s for step in without.steps])) * 1e3,
            }
    return figures
