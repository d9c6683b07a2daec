"""From speculative_config to who guesses: a Drafter beside the scheduler, or a Head on the device.

Reads what is needed before memory is planned, and loads weights afterwards. Owns nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec.structs import replace as replace_struct

from ..reference.decoder import DecoderConfig
from ..reference.ops import Ops
from .config import DTypeName, LoadFormat, SpeculativeConfig
from .device.draft_model import ModelHead
from .device.guesser import HeadMaker
from .device.state_head import StateHead
from .errors import ConfigError
from .models.base import DecoderModel
from .models.head_loader import FoundHead, find_eagle3, find_mtp, load_head
from .models.loader import load_model
from .models.registry import ModelConfig, read_model_config
from .spec.drafter import Drafter
from .spec.ngram import NgramDrafter
from .spec.suffix import SuffixDrafter

ON_DEVICE = frozenset({"draft_model", "eagle3", "mtp"})
"""Methods that guess on the device."""


class Guesses(NamedTuple):
    """Who guesses on the device, before its weights are loaded."""

    shape: DecoderConfig
    """Whose layers have their KV memory beside the target's."""
    load: Callable[[DecoderModel, Ops], HeadMaker]
    """Of the target's model."""


def make_drafter(config: SpeculativeConfig) -> Drafter | None:
    """Return what guesses beside the scheduler; None where the device does."""
    match config.method:
        case "ngram":
            return NgramDrafter(config.prompt_lookup_min, config.prompt_lookup_max)
        case "suffix":
            return SuffixDrafter(
                max_tree_depth=config.suffix_decoding_max_tree_depth,
                max_cached_requests=config.suffix_decoding_max_cached_requests,
                max_spec_factor=config.suffix_decoding_max_spec_factor,
                min_token_prob=config.suffix_decoding_min_token_prob,
            )
    return None


def read_guesses(
    config: SpeculativeConfig | None,
    target: ModelConfig,
    resolve: Callable[[str], Path],
    load_format: LoadFormat = "auto",
) -> Guesses | None:
    """Read what guesses on the device; None where nothing does there.

    resolve: finds a checkpoint's folder. load_format: of a draft model; heads are always read.
    Raises ConfigError or CheckpointError.
    """
    if config is None or config.method not in ON_DEVICE:
        return None
    if config.method == "mtp":
        head = find_mtp(target)
        return Guesses(head.config.layer, partial(_load_head, head))
    assert config.model is not None, config
    if config.method == "eagle3":
        head = find_eagle3(resolve(config.model), target)
        return Guesses(head.config.layer, partial(_load_head, head))
    dtype: DTypeName = "float32" if target.dtype == torch.float32 else "bfloat16"
    decoder = target.decoder
    draft = read_model_config(resolve(config.model), dtype, sums=decoder.sums)
    if draft.vocab_size != target.vocab_size:
        raise ConfigError(
            f"speculative_config: {config.model} has {draft.vocab_size} tokens, the target "
            f"{target.vocab_size}: they must be the same."
        )
    # It is asked about every place that the target has.
    shape = replace(draft.decoder, max_positions=decoder.max_positions)
    return Guesses(shape, partial(_load_model, replace_struct(draft, shape=shape), load_format))


def _load_model(
    config: ModelConfig, load_format: LoadFormat, target: DecoderModel, ops: Ops
) -> HeadMaker:
    with torch.inference_mode():
        model = load_model(config, ops, load_format, device=target.device)
    return partial(ModelHead, model)


def _load_head(found: FoundHead, target: DecoderModel, ops: Ops) -> HeadMaker:
    with torch.inference_mode():
        model = load_head(found, target, ops)
    return partial(StateHead, model)
