"""One request at a time over the dense model: the tokens that the law promises.

Recomputes the whole sequence for every token, so nothing is remembered but the tokens themselves.
The engine must equal it bit for bit, log probabilities included. Imports torch and `reference`
only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .decoder import DecoderConfig, DecoderWeights, logits
from .edits import Edits, edit
from .ops import Logprobs, SamplingRows
from .sampling import logprobs, sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request asks of its tokens; fields mean what they mean in SamplingParams."""

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    """64 bits, unsigned."""
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    """End the sequence (the token is kept); not drawn before min_tokens outputs, unless a grammar
    allows nothing else."""
    num_logprobs: int = 0
    num_prompt_logprobs: int | None = None
    """None: nothing is told of the prompt."""
    edits: Edits | None = None


class Generated(NamedTuple):
    """One answer."""

    token_ids: list[int]
    """A -1 at the end stands for logits that were not finite."""
    logprobs: list[Logprobs]
    """One row for each token."""
    prompt: Logprobs | None = None
    """A row for each token of the prompt but the first."""


def generate(
    config: DecoderConfig, weights: DecoderWeights, prompt: list[int], wish: Wish
) -> Generated:
    """Continue prompt by up to wish.max_tokens tokens, up to config.max_positions tokens in all."""
    tokens = list(prompt)
    answer = Generated([], [], _of_prompt(config, weights, prompt, wish.num_prompt_logprobs))
    last = min(len(prompt) + wish.max_tokens, config.max_positions)
    while len(tokens) < last:
        row = logits(config, weights, torch.tensor(tokens, dtype=torch.int32))[-1:]
        index = len(tokens) - len(prompt)
        edited = row
        if wish.edits is not None:
            edited = edit(row[0], wish.edits, prompt, tokens[len(prompt) :])[None]
        drawn = sample(_masked(edited, wish, tokens[len(prompt) :]), _rows(wish, index))
        answer.logprobs.append(logprobs(row, drawn.clamp(min=0), wish.num_logprobs))
        token = int(drawn)
        answer.token_ids.append(token)
        if token < 0 or token in wish.stop_token_ids:
            break
        tokens.append(token)
    return answer


def _of_prompt(
    config: DecoderConfig, weights: DecoderWeights, prompt: list[int], k: int | None
) -> Logprobs | None:
    """Return the log probabilities of each token after those before it, and of the k greatest."""
    if k is None:
        return None
    tokens = torch.tensor(prompt, dtype=torch.int32)
    return logprobs(logits(config, weights, tokens)[:-1], tokens[1:], k)


def _masked(row: Tensor, wish: Wish, outputs: list[int]) -> Tensor:
    """Take the stop ids away before min_tokens outputs. row: [1, vocab]."""
    stops = [token for token in wish.stop_token_ids if token < row.shape[1]]
    if len(outputs) >= wish.min_tokens or not stops:
        return row
    allowed = wish.edits and wish.edits.next_token_ids
    if allowed and set(allowed(outputs)) <= set(stops):
        return row
    masked = row.clone()
    masked[0, stops] = -torch.inf
    return masked


def _rows(wish: Wish, index: int) -> SamplingRows:
    seed = wish.seed - 2**64 if wish.seed >= 2**63 else wish.seed
    return SamplingRows(
        temperature=torch.tensor([wish.temperature], dtype=torch.float32),
        top_k=torch.tensor([wish.top_k], dtype=torch.int32),
        top_p=torch.tensor([wish.top_p], dtype=torch.float32),
        min_p=torch.tensor([wish.min_p], dtype=torch.float32),
        seeds=torch.tensor([seed], dtype=torch.int64),
        indices=torch.tensor([index], dtype=torch.int32),
    )
