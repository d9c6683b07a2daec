"""What is drawn has the distribution that the parameters say: chi-square, with fixed seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from quire.engine.device.link import HostLink
from quire.engine.device.logit_edits import EditTable, StepEdits
from quire.engine.opset import choose_ops
from quire.engine.params import SamplingParams
from quire.engine.plan import Admitted
from quire.reference.ops import SamplingRows

NUM_DRAWS = 40_000
VOCAB = 24
HISTORY = [1, 2, 3, 2, 5, 5, 5, 9]
NUM_PROMPT = 3

CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.8},
    {"repetition_penalty": 1.9},
    {"logit_bias": {4: 1.5, 7: -2.0, 11: 3.0}},
    {"allowed_token_ids": [1, 5, 8, 20]},
    {"frequency_penalty": -0.6, "presence_penalty": 0.4, "top_k": 9, "temperature": 0.8},
    {"repetition_penalty": 0.8, "logit_bias": {9: 1.0}, "top_p": 0.85, "min_p": 0.02},
]


def expected(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The probabilities of each token, in float64 and written down anew."""
    x = logits.astype(np.float64).copy()
    if params.allowed_token_ids is not None:
        x[[t for t in range(VOCAB) if t not in params.allowed_token_ids]] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        x[token] += bias
    outputs = HISTORY[NUM_PROMPT:]
    for token in set(HISTORY):
        penalty = params.repetition_penalty
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    for token in set(outputs):
        x[token] -= params.frequency_penalty * outputs.count(token) + params.presence_penalty
    x /= params.temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    p[p < params.min_p * p.max()] = 0.0
    order = np.argsort(-p, kind="stable")
    if params.top_k > 0:
        p[order[params.top_k :]] = 0.0
    if params.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= params.top_p * p.sum()]] = 0.0
    probabilities: np.ndarray = p / p.sum()
    return probabilities


@pytest.mark.parametrize("given", CASES, ids=str)
def test_frequencies_are_the_probabilities(given: dict[str, Any]) -> None:
    params = SamplingParams(**given)
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5)) * 1.5
    ops = choose_ops("cpu", "kernels")
    table = EditTable(ops, HostLink(), VOCAB)
    prompt = np.array(HISTORY[:NUM_PROMPT], np.int32)
    edits = None
    if table.admit(Admitted(0, prompt, NUM_PROMPT, params, 0, ())):
        known = torch.tensor([HISTORY], dtype=torch.int32)
        step = StepEdits(list(range(NUM_DRAWS)), [0] * NUM_DRAWS, [len(HISTORY)] * NUM_DRAWS)
        edits = table.rows_of(known, step, None)
    rows = SamplingRows(
        temperature=torch.full((NUM_DRAWS,), params.temperature),
        top_k=torch.full((NUM_DRAWS,), params.top_k, dtype=torch.int32),
        top_p=torch.full((NUM_DRAWS,), params.top_p),
        min_p=torch.full((NUM_DRAWS,), params.min_p),
        seeds=torch.arange(NUM_DRAWS, dtype=torch.int64) + 1234,
        indices=torch.full((NUM_DRAWS,), 5, dtype=torch.int32),
    )
    drawn = ops.sample(logits.expand(NUM_DRAWS, -1).contiguous(), rows, edits)
    counts = np.bincount(drawn.numpy(), minlength=VOCAB)
    probabilities = expected(logits[0].numpy(), params)
    assert counts[probabilities == 0].sum() == 0
    chances = probabilities[probabilities > 0] * NUM_DRAWS
    statistic = float(((counts[probabilities > 0] - chances) ** 2 / chances).sum())
    assert statistic < most_likely(len(chances) - 1), (statistic, counts, chances)


def most_likely(freedom: int) -> float:
    """The chi-square that one in ten thousand exceeds (Wilson and Hilferty)."""
    width = 2 / (9 * freedom)
    return freedom * (1 - width + 3.719 * math.sqrt(width)) ** 3
