"""Beam searches and their oracle, for tests: what the dense model finds, and what an engine did."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..engine.llm import LLM
from ..engine.models.loader import load_weights
from ..engine.models.registry import read_model_config
from ..engine.opset import choose_ops, choose_sums
from ..engine.params import BeamSearchParams
from ..engine.request import BeamSearchOutput
from ..reference.beam_search import Found, Search, beam_search
from .checkpoints import VOCAB_SIZE

OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "num_threads": 1,
    "block_size": 4,
    "dtype": "float32",
}
EOS = tuple(range(0, VOCAB_SIZE, 5))
"""A fifth of the vocabulary, so that sequences end."""
PROMPTS = ([*range(5, 44)], [7, 8, 9], [100], [3] * 16, [*range(60, 90, 2)])
"""39 tokens first: nine full blocks and a part of a tenth."""


class Oracle(NamedTuple):
    """The dense model of a checkpoint."""

    config: Any
    weights: Any
    known: dict[Any, list[Found]]
    """What was searched before."""

    def find(self, prompt: list[int], params: BeamSearchParams) -> list[Found]:
        """Search over it."""
        key = (tuple(prompt), params)
        if key not in self.known:
            self.known[key] = self._find(prompt, params)
        return self.known[key]

    def _find(self, prompt: list[int], params: BeamSearchParams) -> list[Found]:
        assert params.max_tokens is not None
        search = Search(
            beam_width=params.beam_width,
            max_tokens=params.max_tokens,
            eos_token_ids=() if params.ignore_eos else EOS,
            length_penalty=params.length_penalty,
            stop_early=params.early_stopping is True,
        )
        return beam_search(self.config, self.weights, prompt, search)


def load_oracle(path: Path, dtype: Any = "float32", sums: Any = "auto") -> Oracle:
    """Load a checkpoint's dense model, apart from any engine."""
    config = read_model_config(path, dtype, sums=choose_sums(sums))
    weights = load_weights(config, choose_ops("cpu", "reference"), progress=False)
    return Oracle(config.decoder, weights, {})


def found(output: BeamSearchOutput, prompt: list[int]) -> list[Found]:
    """Read answers as the reference gives them, and check what they say of themselves."""
    answers = []
    for one in output.sequences:
        assert list(one.tokens[: len(prompt)]) == prompt
        assert one.finish_reason in ("stop", "length")
        answer = one.tokens[len(prompt) :]
        assert len(one.logprobs) == len(answer)
        total = 0.0
        for token, row in zip(answer, one.logprobs, strict=True):
            assert next(iter(row)) == token, "its own is first"
            assert row[token].logprob <= 0.0
            total += row[token].logprob
        assert total == one.cum_logprob
        answers.append(Found(answer, one.cum_logprob, one.finish_reason == "stop"))
    return answers


def assert_empty(llm: LLM) -> None:
    """Assert that nothing is left of what an engine did."""
    llm.scheduler.check()
    assert llm.scheduler.num_free_blocks == llm.scheduler.num_blocks
    assert not llm._front._searches._steps and not llm._front._searches._current
    assert not llm._front.num_open and not llm._front.timelines.living
