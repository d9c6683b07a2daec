"""Beam search over the dense model: the answers that the engine's searches must give, bit for bit.

Recomputes every sequence for every step and runs to the last one; the engine may end as soon as the
answers are certain. Imports torch and `reference` only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .decoder import DecoderConfig, DecoderWeights, logits
from .sampling import log_probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is asked of a search; fields mean what they mean in BeamSearchParams."""

    beam_width: int
    max_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    """Make a sequence an answer; none where they are ignored."""
    length_penalty: float = 1.0
    stop_early: bool = False
    """End with the step that completes beam_width answers."""


class Found(NamedTuple):
    """One answer."""

    token_ids: tuple[int, ...]
    """The one that ended it included."""
    cumulative: float
    """Log probabilities, float32, added in float64 from the first on."""
    stopped: bool
    """Whether a token ended it; else its length did."""


def beam_search(
    config: DecoderConfig, weights: DecoderWeights, prompt: list[int], search: Search
) -> list[Found]:
    """Return the best answers to prompt, the best first.

    In each step every live sequence is continued by its 2 * beam_width likeliest tokens (ties to
    the lowest id). Continuations are ordered by log probability, then by the order of what they
    continue, then by token id: those by an end of sequence are answers, of the others the first
    beam_width live on. What is live at the end is an answer too, behind the others where scores are
    equal.
    """
    live, answers = [Found((), 0.0, False)], []
    last = min(search.max_tokens, config.max_positions - len(prompt))
    for _ in range(last):
        options = []
        for place, one in enumerate(live):
            tokens = torch.tensor([*prompt, *one.token_ids], dtype=torch.int32)
            row = log_probabilities(logits(config, weights, tokens)[-1].float())
            order = row.sort(descending=True, stable=True).indices[: 2 * search.beam_width]
            for token in order.tolist():
                cumulative = one.cumulative + float(row[token])
                if cumulative > -math.inf:
                    options.append((-cumulative, place, token))
        options.sort()
        before, live = live, []
        for minus, place, token in options:
            stopped = token in search.eos_token_ids
            found = Found((*before[place].token_ids, token), -minus, stopped)
            if stopped:
                answers.append(found)
            elif len(live) < search.beam_width:
                live.append(found)
        if search.stop_early and len(answers) >= search.beam_width:
            live = []
        if not live:
            break
    return _best([*answers, *live], len(prompt), search)


def _best(found: list[Found], num_prompt: int, search: Search) -> list[Found]:
    """Order answers by score: log probability by length (without the end) to the penalty."""

    def score(one: Found) -> float:
        length = num_prompt + len(one.token_ids) - one.stopped
        return float(one.cumulative / length**search.length_penalty)

    return sorted(found, key=score, reverse=True)[: search.beam_width]
