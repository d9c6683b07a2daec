"""Heads that guess from what a target model has computed, over one dense sequence.

An entry of a head is a pair: the target's hidden state behind a token, and the token that came
next; what it gives is a guess of the one after that. Both kinds have one decoder layer over their
entries. `eagle3` (Li et al. 2025, arXiv:2503.01840): states of several layers are joined into one;
queries, keys and values are computed from token and state side by side, and the state is what the
layer adds to. `mtp` (DeepSeek-AI 2024, arXiv:2412.19437, 2.2): token and last state, each
normalized, are projected to the input of an ordinary layer. Imports torch and `reference` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .decoder import DecoderConfig, LayerWeights, layer_output
from .embedding import embed
from .linear import linear
from .norm import rms_norm
from .ops import PackedLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """The shape of a head."""

    kind: Literal["eagle3", "mtp"]
    layer: DecoderConfig
    """Of one layer; its vocab_size is how many tokens the head can guess."""
    taps: tuple[int, ...] = ()
    """eagle3: the target's layers whose inputs it joins."""
    state_first: bool = False
    """mtp: the state stands before the token in what is projected."""
    carries_normed: bool = False
    """Whether the next entry's state is behind the final norm, or before it."""
    adds_to_normed: bool = False
    """eagle3: whether the layer adds to the normalized state."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """A head. Norms are [hidden] dtype."""

    embedding: Tensor
    """[vocab of the target, hidden] dtype."""
    join: PackedLinear
    """eagle3: states of all taps side by side -> state; mtp: token and state -> input."""
    token_norm: Tensor
    state_norm: Tensor
    layer: LayerWeights
    """eagle3: its input_norm is the token_norm, and is not used for itself."""
    final_norm: Tensor
    head: PackedLinear
    targets: Tensor | None
    """[vocab of the head] int64, the target's ids of its tokens; None: they are the same."""


class Entered(NamedTuple):
    """What goes into the layer."""

    hidden: Tensor
    residual: Tensor


class Computed(NamedTuple):
    """What a head gives for its entries, [n, hidden] dtype each."""

    last: Tensor
    """What logits are computed from,"""
    carried: Tensor
    """and the state of an entry that follows."""


def state(config: HeadConfig, weights: HeadWeights, taps: tuple[Tensor, ...]) -> Tensor:
    """Return the states of tokens from what the target computed: its taps, or its last state."""
    if config.kind == "mtp":
        (last,) = taps
        return last
    return linear(torch.cat(taps, dim=1), weights.join)


def hidden(config: HeadConfig, weights: HeadWeights, tokens: Tensor, states: Tensor) -> Computed:
    """Compute all entries of a sequence: tokens [n] int32, states [n, hidden] dtype.

    Entry e is at position e: its state is that behind token e, its token is e + 1.
    """
    eps = config.layer.rms_eps
    token = rms_norm(embed(tokens, weights.embedding), weights.token_norm, eps)
    normed = rms_norm(states, weights.state_norm, eps)
    if config.kind == "eagle3":
        entered = Entered(torch.cat((token, normed), dim=1), states)
        if config.adds_to_normed:
            entered = entered._replace(residual=normed)
    else:
        pair = (normed, token) if config.state_first else (token, normed)
        residual = linear(torch.cat(pair, dim=1), weights.join)
        entered = Entered(rms_norm(residual, weights.layer.input_norm, eps), residual)
    (window,) = config.layer.windows
    out = layer_output(config.layer, weights.layer, *entered, window)
    last = rms_norm(out, weights.final_norm, eps)
    return Computed(last, last if config.carries_normed else out)


def logits(weights: HeadWeights, last: Tensor, vocab_size: int) -> Tensor:
    """Return logits [n, vocab of the target] dtype: -infinity for what the head cannot guess."""
    found = linear(last, weights.head)
    if weights.targets is None:
        return found
    spread = found.new_full((len(found), vocab_size), -torch.inf)
    spread[:, weights.targets] = found
    return spread
