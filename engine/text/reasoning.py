"""The markers between which a model thinks, in tokens: found once, when an engine starts."""

from __future__ import annotations

import logging
from functools import partial
from typing import NamedTuple

from ..config import EngineConfig, ReasoningConfig
from ..errors import ConfigError
from ..parsing.choose import Parsers, choose_parsers
from .tokenizer import Tokenizer

logger = logging.getLogger("quire")

MAX_MARKER = 128


class Markers(NamedTuple):
    """Token ids that begin and end a thought."""

    start: tuple[int, ...]
    end: tuple[int, ...]


def parsers_of(config: EngineConfig, tokenizer: Tokenizer | None) -> Parsers:
    """Find out how the model calls tools and how it thinks."""
    if tokenizer is None:
        return Parsers()
    return choose_parsers(
        config.tool_call_parser,
        config.reasoning_parser,
        templates=tokenizer.chat_templates.values(),
        special_tokens=[tokenizer.token_text(one) for one in sorted(tokenizer.special_ids)],
        tell=partial(logger.info, "The format of %s is %s"),
    )


def markers_of(
    config: EngineConfig, parsers: Parsers, tokenizer: Tokenizer | None, vocab_size: int
) -> Markers | None:
    """Return the markers that the options give, or else those of the reasoning parser."""
    if config.reasoning_config is not None:
        return find_markers(config.reasoning_config, tokenizer, vocab_size)
    form = parsers.reasoning
    if form is None or tokenizer is None:
        return None
    texts = ReasoningConfig(reasoning_start_str=form.start, reasoning_end_str=form.end)
    return find_markers(texts, tokenizer, vocab_size)


def find_markers(config: ReasoningConfig, tokenizer: Tokenizer | None, vocab_size: int) -> Markers:
    """Return the markers of an engine. ConfigError where they are no tokens of its model."""
    start, end = config.reasoning_start_token_ids, config.reasoning_end_token_ids
    if config.reasoning_start_str:
        if tokenizer is None:
            raise ConfigError(
                "reasoning_config gives texts, and there is no tokenizer: give "
                "reasoning_start_token_ids and reasoning_end_token_ids."
            )
        start, end = (
            tuple(tokenizer.encode(text, add_special_tokens=False))
            for text in (config.reasoning_start_str, config.reasoning_end_str)
        )
    for marker in (start, end):
        if not 0 < len(marker) <= MAX_MARKER or not all(0 <= one < vocab_size for one in marker):
            raise ConfigError(
                f"reasoning_config has the marker {list(marker)[:MAX_MARKER]}: it must be 1 to "
                f"{MAX_MARKER} tokens from 0 to {vocab_size - 1}."
            )
    if start == end:
        raise ConfigError("reasoning_config has one marker for both: they must differ.")
    return Markers(start, end)
