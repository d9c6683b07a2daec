"""Bodies that ask for a beam search. Pure.

A search draws nothing and edits no logits: what would change a draw is refused, not ignored.
"""

from __future__ import annotations

from typing import Any

from ..engine.errors import ParamsError
from ..engine.params import BeamSearchParams
from .decode import show
from .errors import ApiError
from .schema import GenerationBody

PASSED = (
    *("temperature", "ignore_eos", "length_penalty", "early_stopping", "truncate_prompt_tokens"),
    *("include_stop_str_in_output", "skip_special_tokens"),
)
"""Fields that BeamSearchParams takes as they are."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "allowed_token_ids": (),
    "bad_words": ("", []),
    "min_tokens": (0,),
    "stop": ("", []),
    "stop_token_ids": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "thinking_token_budget": (-1,),
    "spaces_between_special_tokens": (True,),
}
"""Fields that a search cannot follow, and the values that ask nothing of it."""

SEARCH_ONLY: dict[str, tuple[Any, ...]] = {"length_penalty": (1,), "early_stopping": (False,)}
"""Fields that only a search can follow, and the values that ask nothing."""


def beam_params(
    body: GenerationBody, *, best_of: int | None, max_tokens: int | None, logprobs: int | None
) -> BeamSearchParams:
    """Read a search of `best_of` beams, or else n. ParamsError where a value is out of range."""
    for name, allowed in NEUTRAL.items():
        value = getattr(body, name, None)
        if value is not None and value not in allowed:
            raise ApiError(
                f"{name} is {show(value)}: it is not supported with use_beam_search.",
                param=name,
                code="unsupported_value",
            )
    if getattr(body, "echo", False) and logprobs is not None:
        raise ApiError("echo with logprobs is not supported with use_beam_search.", param="echo")
    n = 1 if body.n is None else body.n
    if best_of is not None and best_of < n:
        raise ApiError(
            f"best_of is {best_of} and n {n}: best_of must not be less.", param="best_of"
        )
    given = {name: value for name in PASSED if (value := getattr(body, name)) is not None}
    width_name, width = ("n", n) if best_of is None else ("best_of", best_of)
    try:
        if n < 1:
            width_name, width = "n", n
        return BeamSearchParams(
            beam_width=width, max_tokens=max_tokens, logprobs=logprobs or 0, **given
        )
    except ParamsError as error:
        if error.param != "beam_width":
            raise
        message = str(error).replace("beam_width", width_name, 1)
        raise ParamsError(message, width_name) from None


def check_no_search(body: GenerationBody) -> None:
    """Refuse what only a search can follow."""
    for name, allowed in SEARCH_ONLY.items():
        value = getattr(body, name)
        if value is not None and value not in allowed:
            raise ApiError(f"{name} is {show(value)}: it needs use_beam_search: true.", param=name)
