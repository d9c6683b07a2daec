"""Sampling: which token a row of logits becomes, and the log probabilities of the row.

Definition, for one row of float32 values l (widened), temperature T, noise g of `reference.philox`:

* A NaN in the row, or no finite value: -1.
* T = 0, or max(l / T) infinite (an infinite logit, or T so small that l / T overflows): the first
  of the greatest l.
* Else x = l / T (one float32 division), in the order of candidates: x descending, ties by lowest
  id. Each filter keeps a prefix of what the one before it kept:
  min_p > 0: those with x >= max(x) + log(max(min_p, 2^-126)), in float32;
  top_k > 0: the first top_k;
  top_p < 1: those before which the kept mass is below ceil(float64(total) * float64(top_p)), where
  mass is the int64 sum of `weights` (so that no order of addition exists) and total that of all
  that were kept.
* The token is the kept one with the greatest x + g (one float32 addition), ties to the lowest id.

A whole row is sorted here; kernels find the last kept candidate without.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import LOG2_E, exp2, log
from .edits import edit_logits
from .ops import EditRows, Logprobs, SamplingRows
from .philox import gumbel, token_words

WEIGHT_BITS = 40
"""Weights are fixed-point numbers with this many fraction bits; 2^18 of them stay below 2^59."""
MIN_NORMAL = 2.0**-126


def weights(distance: Tensor) -> Tensor:
    """Return exp(distance) in int64 fixed point: trunc(exp2(distance * log2(e)) * 2^40).

    distance: x - max(x), float32, at most 0.
    """
    return (exp2(distance * LOG2_E) * 2.0**WEIGHT_BITS).long()


def sample(logits: Tensor, rows: SamplingRows, edits: EditRows | None = None) -> Tensor:
    """See Ops.sample."""
    if edits is not None:
        logits = edit_logits(logits, edits)
    tokens = [_sample_row(logits[r].float(), rows, r) for r in range(len(logits))]
    return torch.tensor(tokens, dtype=torch.int32)


def _sample_row(logits: Tensor, rows: SamplingRows, r: int) -> int:
    if bool(logits.isnan().any()) or not bool(logits.isfinite().any()):
        return -1
    x = logits / rows.temperature[r]
    top = x.max()
    if float(rows.temperature[r]) == 0.0 or not bool(top.isfinite()):
        return int(logits.argmax())
    kept = _kept(x, top, rows, r)
    words = token_words(int(rows.seeds[r]), int(rows.indices[r]), kept)
    score = x[kept] + gumbel(words)
    return int(kept[score == score.max()].min())


def _kept(x: Tensor, top: Tensor, rows: SamplingRows, r: int) -> Tensor:
    """Return the ids of the kept candidates, in their order."""
    candidates, order = x.sort(descending=True, stable=True)
    num_kept = len(x)
    if float(rows.min_p[r]) > 0.0:
        threshold = top + log(rows.min_p[r].clamp(min=MIN_NORMAL))
        num_kept = int((candidates >= threshold).sum())
    if int(rows.top_k[r]) > 0:
        num_kept = min(num_kept, int(rows.top_k[r]))
    if float(rows.top_p[r]) < 1.0:
        weight = weights(candidates[:num_kept] - top)
        before = weight.cumsum(0) - weight
        limit = (weight.sum().double() * rows.top_p[r].double()).ceil().long()
        num_kept = int((before < limit).sum())
    return order[:num_kept]


def logprobs(logits: Tensor, tokens: Tensor, k: int, asked: Tensor | None = None) -> Logprobs:
    """See Ops.logprobs: (l - max) - log(total), total = the sum of `weights` as one float32.

    Plus 0, so that a zero is positive: which sign max has, where both occur, nobody defines.

    A row whose greatest logit is infinite has ranks and ids but NaN for values. A row with a NaN or
    without a finite logit has rank 0, ids -1 and NaN. A token outside the vocabulary (-1, where
    sampling failed) has NaN and rank 0. k is at most the vocabulary.
    """
    assert 0 <= k <= logits.shape[1], (k, logits.shape)
    num_rows = len(logits)
    result = Logprobs(
        sampled=torch.zeros(num_rows),
        ranks=torch.zeros(num_rows, dtype=torch.int32),
        top_ids=torch.zeros((num_rows, k), dtype=torch.int32),
        top=torch.zeros((num_rows, k)),
    )
    for r in range(num_rows) if asked is None else asked.tolist():
        row = _logprobs_row(logits[r].float(), int(tokens[r]), k)
        result.sampled[r], result.ranks[r], result.top_ids[r], result.top[r] = row
    return result


def _logprobs_row(logits: Tensor, token: int, k: int) -> tuple[float, int, Tensor, Tensor]:
    nan = float("nan")
    if bool(logits.isnan().any()) or not bool(logits.isfinite().any()):
        return nan, 0, torch.full((k,), -1, dtype=torch.int32), torch.full((k,), nan)
    values = log_probabilities(logits)
    top_ids = logits.sort(descending=True, stable=True).indices[:k]
    known = 0 <= token < len(logits)
    rank = 1 + int((logits > logits[token]).sum()) if known else 0
    return float(values[token]) if known else nan, rank, top_ids.int(), values[top_ids]


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the log probabilities of one row, [vocab] float32 -> the same, or NaN if max is
    infinite.
    """
    top = logits.max()
    if not bool(top.isfinite()):
        return torch.full_like(logits, float("nan"))
    distance = logits - top
    total = weights(distance).sum().float() * 2.0**-WEIGHT_BITS
    return (distance - log(total)) + 0.0
