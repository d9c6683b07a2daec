"""What a checkpoint says of its vectors: frozen structs, no behaviour, no tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct

Kind = Literal["last", "cls", "mean", "max", "mean_sqrt_len", "weighted_mean"]
"""Which states of a text make its vector: reference.pooling.Kind."""
Activation = Literal["identity", "tanh", "margin"]
"""margin: of two numbers, how much greater the second is."""
Scores = Literal["identity", "sigmoid", "softmax"]


class Stage(NamedTuple):
    """A linear layer behind the pooling."""

    module: str
    """As its tensors are named,"""
    shape: tuple[int, int]
    """(out, in)"""
    biased: bool
    activation: Activation
    folder: Path | None = None
    """and where they are; None: with the model's."""
    rows: tuple[int, ...] | None = None
    """Of its tensor, which has one for each token: those that it consists of. None: all."""


class PoolingConfig(Struct, frozen=True, kw_only=True):
    """From hidden states to what a request gets."""

    beside: bool = False
    """Whether the model generates, and vectors are made beside: of its last states."""
    kinds: tuple[Kind, ...] = ("last",)
    """One behind the other, where there are several."""
    prompts: dict[str, str] = {}
    """What a request may have written before its text, by name;"""
    default_prompt_name: str | None = None
    """and what is written where it does not say."""
    includes_prompt: bool = True
    """Whether the states of such a prompt's tokens count too."""
    stages: tuple[Stage, ...] = ()
    normalize: bool = True
    """Whether an embedding has the length of one, unless the request says."""
    width: int
    """Numbers of a vector."""
    labels: tuple[str, ...] | None = None
    """Of a classifier, in the order of its vector; None: the vector is an embedding."""
    scores: Scores = "identity"
    """What a classifier's numbers go through, unless the request says."""
    dimensions: tuple[int, ...] | None = None
    """To which an embedding may be cut; None: to any number."""
    num_types: int = 1
    """Texts of a prompt that the model tells apart."""
    max_tokens: int | None = None
    """Of a text, where that is less than the model's own."""
    pair_template: str | None = None
    """What writes two texts as one prompt, where the checkpoint's chat template does not: a chat
    template that knows the roles query and document."""
