"""Sampling parameters: what a request may ask of its tokens. Names and meanings are vLLM's.

Pure: validation happens once, on construction; nothing here changes afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from msgspec import Struct
from msgspec.structs import force_setattr

from .errors import ParamsError

MAX_LOGPROBS = 20
MAX_STOPS = 64


class SamplingParams(Struct, frozen=True, kw_only=True):
    """How the tokens of one request are drawn and when it ends.

    Raises ParamsError that names the field, on construction.
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1: no limit."""
    min_p: float = 0.0
    seed: int | None = None
    """Any 64-bit integer; None draws one, and the output tells which."""
    max_tokens: int | None = 16
    """None: up to the model length."""
    min_tokens: int = 0
    stop: Sequence[str] | str | None = ()
    stop_token_ids: Sequence[int] | None = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """Number of most likely tokens to report beside the drawn one, 0 to MAX_LOGPROBS."""
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        _real(self, "temperature", 0.0, 1e4)
        _real(self, "top_p", 0.0, 1.0, above=True)
        _real(self, "min_p", 0.0, 1.0)
        _integer(self, "top_k", -1, 2**31 - 1)
        _integer(self, "min_tokens", 0, 2**31 - 1)
        if self.max_tokens is not None:
            _integer(self, "max_tokens", 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise ParamsError(
                    f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}: "
                    "min_tokens must not be above max_tokens.",
                    "min_tokens",
                )
        if self.seed is not None:
            _integer(self, "seed", -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            _integer(self, "logprobs", 0, MAX_LOGPROBS)
        flags = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "detokenize")
        for name in flags:
            if not isinstance(getattr(self, name), bool):
                raise _wrong(self, name, "true or false")
        _stops(self)


def _wrong(params: SamplingParams, name: str, allowed: str) -> ParamsError:
    return ParamsError(f"{name} is {getattr(params, name)!r}: it must be {allowed}.", name)


def _real(params: SamplingParams, name: str, low: float, high: float, above: bool = False) -> None:
    value: Any = getattr(params, name)
    allowed = f"a number {'above' if above else 'from'} {low:g} {'up ' if above else ''}to {high:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong(params, name, allowed)
    try:
        number = float(value)
    except OverflowError:
        raise _wrong(params, name, allowed) from None
    if not math.isfinite(number) or number > high or number < low or (above and number == low):
        raise _wrong(params, name, allowed)
    force_setattr(params, name, number)


def _integer(params: SamplingParams, name: str, low: int, high: int) -> None:
    value: Any = getattr(params, name)
    good = isinstance(value, Integral) and not isinstance(value, bool)
    if not good or not low <= int(value) <= high:
        raise _wrong(params, name, f"an integer from {low} to {high}")
    force_setattr(params, name, int(value))


def _stops(params: SamplingParams) -> None:
    """Bring stop and stop_token_ids into tuples."""
    stop: Any = params.stop
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise _wrong(params, "stop", f"a non-empty string or at most {MAX_STOPS} of them")
    ids: Any = params.stop_token_ids
    try:
        stop_ids = tuple(ids or ())
    except TypeError:
        stop_ids = (None,)
    good = all(
        isinstance(i, Integral) and not isinstance(i, bool) and 0 <= int(i) < 2**31
        for i in stop_ids
    )
    if len(stop_ids) > MAX_STOPS or not good:
        raise _wrong(params, "stop_token_ids", f"at most {MAX_STOPS} token ids")
    if stops and not params.detokenize:
        raise ParamsError("stop strings need detokenize, which is false.", "stop")
    force_setattr(params, "stop", stops)
    force_setattr(params, "stop_token_ids", tuple(int(i) for i in stop_ids))
