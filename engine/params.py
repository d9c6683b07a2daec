"""Sampling parameters: what a request may ask of its tokens. Names and meanings are vLLM's.

Pure: validation happens once, on construction; nothing here changes afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from msgspec import Struct
from msgspec.structs import force_setattr

from .errors import ParamsError

MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_N = 128
MAX_BIASES = 1024
MAX_ALLOWED = 2**20
MAX_BAD_WORDS = 1024
MOST_BIAS = 100.0
MOST_LENGTH_PENALTY = 16.0
MAX_SHOWN = 200
"""Characters of a wrong value."""


class SamplingParams(Struct, frozen=True, kw_only=True):
    """How the tokens of one request are drawn and when it ends.

    Raises ParamsError that names the field, on construction.
    """

    n: int = 1
    """Answers; the i-th is what `seed` + i gives alone."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1: no limit."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Divides (multiplies, below 0) the logits of tokens in prompt or output; 1: none."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit, times how often it was drawn."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that were drawn."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of token ids; brought into -100 to 100."""
    allowed_token_ids: Sequence[int] | None = None
    """None: all."""
    bad_words: Sequence[str] | None = ()
    """Texts that must not be generated."""
    seed: int | None = None
    """Any 64-bit integer; None draws one, and the output tells which."""
    truncate_prompt_tokens: int | None = None
    """Only so many of the prompt's last tokens are used; -1: as many as fit."""
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
        _integer(self, "n", 1, MAX_N)
        _real(self, "temperature", 0.0, 1e4)
        _real(self, "top_p", 0.0, 1.0, above=True)
        _real(self, "min_p", 0.0, 1.0)
        _integer(self, "top_k", -1, 2**31 - 1)
        _real(self, "repetition_penalty", 0.0, 1e4, above=True)
        _real(self, "frequency_penalty", -2.0, 2.0)
        _real(self, "presence_penalty", -2.0, 2.0)
        _bias(self)
        _ids(self, "allowed_token_ids", MAX_ALLOWED)
        _texts(self, "bad_words", MAX_BAD_WORDS)
        _integer(self, "min_tokens", 0, 2**31 - 1)
        if self.max_tokens is not None:
            _integer(self, "max_tokens", 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise ParamsError(
                    f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}: "
                    "min_tokens must not be above max_tokens.",
                    "min_tokens",
                )
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens != -1:
            _integer(self, "truncate_prompt_tokens", 1, 2**31 - 1, "or -1")
        if self.seed is not None:
            _integer(self, "seed", -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            _integer(self, "logprobs", 0, MAX_LOGPROBS)
        flags = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "detokenize")
        for name in flags:
            if not isinstance(getattr(self, name), bool):
                raise _wrong(self, name, "true or false")
        _stops(self)


class BeamSearchParams(Struct, frozen=True, kw_only=True):
    """A search for the likeliest answers, and when it ends. Nothing is drawn.

    Raises ParamsError that names the field, on construction.
    """

    beam_width: int
    """Answers, and sequences that go on in each step."""
    max_tokens: int | None
    """None: up to the model length."""
    ignore_eos: bool = False
    temperature: float = 0.0
    """Without effect: log probabilities are those of the raw logits."""
    length_penalty: float = 1.0
    """Scores are log probabilities divided by length (the prompt's too) to the power of this."""
    include_stop_str_in_output: bool = False
    """Whether the text shows the end-of-sequence token."""
    early_stopping: bool | str = False
    """True: end with beam_width answers; False and "never": when no other can be better."""
    logprobs: int | None = None
    """Number of likeliest tokens to report beside each; None: all candidates, 2 * beam_width."""
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    """Only so many of the prompt's last tokens are used; -1: as many as fit."""

    def __post_init__(self) -> None:
        _integer(self, "beam_width", 1, MAX_N)
        if self.max_tokens is not None:
            _integer(self, "max_tokens", 1, 2**31 - 1)
        _real(self, "temperature", 0.0, 1e4)
        _real(self, "length_penalty", -MOST_LENGTH_PENALTY, MOST_LENGTH_PENALTY)
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(self, name, "true or false")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise _wrong(self, "early_stopping", 'true, false or "never"')
        if self.logprobs is not None:
            _integer(self, "logprobs", 0, MAX_LOGPROBS)
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens != -1:
            _integer(self, "truncate_prompt_tokens", 1, 2**31 - 1, "or -1")

    @property
    def n(self) -> int:
        """Answers, as SamplingParams calls them."""
        return self.beam_width

    @property
    def num_candidates(self) -> int:
        """How many of the likeliest tokens may continue each sequence."""
        return 2 * self.beam_width


def num_kept(params: SamplingParams | BeamSearchParams, max_model_len: int) -> int | None:
    """Tell how many of a prompt's last tokens are used at most; None: all."""
    if params.truncate_prompt_tokens != -1:
        return params.truncate_prompt_tokens
    return max(1, max_model_len - (params.max_tokens or 1))


def _wrong(params: Struct, name: str, allowed: str) -> ParamsError:
    shown = repr(getattr(params, name))
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + "..."
    return ParamsError(f"{name} is {shown}: it must be {allowed}.", name)


def _real(params: Struct, name: str, low: float, high: float, above: bool = False) -> None:
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


def _integer(params: Struct, name: str, low: int, high: int, other: str = "") -> None:
    value: Any = getattr(params, name)
    good = isinstance(value, Integral) and not isinstance(value, bool)
    if not good or not low <= int(value) <= high:
        raise _wrong(params, name, f"an integer from {low} to {high} {other}".rstrip())
    force_setattr(params, name, int(value))


def _texts(params: SamplingParams, name: str, most: int) -> None:
    """Bring a text, some texts or None into a tuple."""
    value: Any = getattr(params, name)
    texts = (value,) if isinstance(value, str) else tuple(value or ())
    if len(texts) > most or not all(isinstance(one, str) and one for one in texts):
        raise _wrong(params, name, f"a non-empty string or at most {most} of them")
    force_setattr(params, name, texts)


def _ids(params: SamplingParams, name: str, most: int) -> None:
    """Bring token ids into a tuple; None stays."""
    value: Any = getattr(params, name)
    if value is None:
        return
    try:
        ids = tuple(value)
    except TypeError:
        ids = ()
    if not 0 < len(ids) <= most or not all(map(_is_id, ids)):
        raise _wrong(params, name, f"1 to {most} token ids")
    force_setattr(params, name, tuple(map(int, ids)))


def _bias(params: SamplingParams) -> None:
    """Bring the biases into a dict of numbers from -MOST_BIAS to MOST_BIAS."""
    value: Any = params.logit_bias
    if value is None:
        return
    allowed = f"at most {MAX_BIASES} pairs of a token id and a number"
    if not isinstance(value, Mapping) or len(value) > MAX_BIASES:
        raise _wrong(params, "logit_bias", allowed)
    biases = {}
    for token, bias in value.items():
        number = isinstance(bias, Real) and not isinstance(bias, bool) and not math.isnan(bias)
        if not _is_id(token) or not number:
            raise _wrong(params, "logit_bias", allowed)
        biases[int(token)] = float(max(-MOST_BIAS, min(MOST_BIAS, bias)))
    force_setattr(params, "logit_bias", biases)


def _is_id(value: Any) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and 0 <= int(value) < 2**31


def _stops(params: SamplingParams) -> None:
    """Bring stop and stop_token_ids into tuples."""
    _texts(params, "stop", MAX_STOPS)
    ids: Any = params.stop_token_ids
    try:
        stop_ids = tuple(ids or ())
    except TypeError:
        stop_ids = (None,)
    if len(stop_ids) > MAX_STOPS or not all(map(_is_id, stop_ids)):
        raise _wrong(params, "stop_token_ids", f"at most {MAX_STOPS} token ids")
    if params.stop and not params.detokenize:
        raise ParamsError("stop strings need detokenize, which is false.", "stop")
    force_setattr(params, "stop_token_ids", tuple(int(i) for i in stop_ids))
