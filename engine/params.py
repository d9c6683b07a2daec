"""Sampling parameters: what a request may ask of its tokens. Names and meanings are vLLM's.

Pure: validation happens once, on construction; nothing here changes afterwards.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from numbers import Integral, Real
from types import UnionType
from typing import Any, get_args

from msgspec import Struct
from msgspec.structs import force_setattr

from .errors import ParamsError
from .structured import StructuredOutputsParams

MAX_STOPS = 64
MAX_N = 128
MAX_BIASES = 1024
MAX_ALLOWED = 2**20
MAX_BAD_WORDS = 1024
MOST_BIAS = 100.0
MAX_PATTERN = 1024
MAX_PROCESSORS = 64
FLAGS = (
    *("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
    *("spaces_between_special_tokens", "detokenize"),
)
MOST_LENGTH_PENALTY = 16.0
MAX_SHOWN = 200
"""Characters of a wrong value."""


LogitsProcessor = Callable[..., Any]
"""(output ids, logits) or (prompt ids, output ids, logits) -> logits: lists of the tokens so far,
and a tensor [vocab] float32 on the model's device, which it may change. It must be a function of
these alone, or the answer is not one of the request alone. It is called in the engine's thread."""


class RequestOutputKind(Enum):
    """What each output of a stream tells."""

    CUMULATIVE = 0
    """All so far."""
    DELTA = 1
    """What is new since the last one."""
    FINAL_ONLY = 2
    """All, once, at the end."""


class RepetitionDetectionParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which repetitions end an answer: min_count copies of a pattern of tokens, at its end.

    Raises ParamsError that names the field, on construction.
    """

    max_pattern_size: int = 0
    """Tokens of the longest pattern; 0: nothing is looked for."""
    min_pattern_size: int = 0
    """Tokens of the shortest; 0 is 1."""
    min_count: int = 0
    """Copies, at least 2 where something is looked for."""

    def __post_init__(self) -> None:
        _integer(self, "max_pattern_size", 0, MAX_PATTERN)
        _integer(self, "min_pattern_size", 0, self.max_pattern_size, "(max_pattern_size)")
        _integer(self, "min_count", 2 if self.max_pattern_size else 0, 2**31 - 1)


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
    logits_processors: Sequence[Any] | None = None
    """Callables (see LogitsProcessor) that have the last word on the logits but for min_tokens."""
    thinking_token_budget: int | None = None
    """Most tokens between the engine's markers of a thought, whose end is then written for the
    model; -1 is None: any number."""
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
    repetition_detection: RepetitionDetectionParams | None = None
    """Ends an answer that repeats itself."""
    logprobs: int | None = None
    """Number of most likely tokens to report beside the drawn one, up to the engine's
    max_logprobs; -1: all of the vocabulary."""
    prompt_logprobs: int | None = None
    """The same beside each token of the prompt."""
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    """False: no spaces beside added tokens but those that they have. Matters to tokenizers that
    write spaces of their own."""
    detokenize: bool = True
    structured_outputs: StructuredOutputsParams | None = None
    """The form that the output must have."""
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    """Of AsyncEngine's stream; LLM returns whole outputs whatever it says."""

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
        _processors(self)
        if self.thinking_token_budget is not None:
            _integer(self, "thinking_token_budget", -1, 2**31 - 1)
            if self.thinking_token_budget == -1:
                force_setattr(self, "thinking_token_budget", None)
        if self.seed is not None:
            _integer(self, "seed", -(2**63), 2**64 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(self, name, -1, 2**31 - 1)
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise _wrong(self, name, "true or false")
        form = self.structured_outputs
        if form is not None and not isinstance(form, StructuredOutputsParams):
            raise _wrong(self, "structured_outputs", "StructuredOutputsParams")
        _kind(self, "repetition_detection", RepetitionDetectionParams | None)
        _kind(self, "output_kind", RequestOutputKind)
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
    """Number of likeliest tokens to report beside each, up to the engine's
    max_logprobs; -1: all of the vocabulary; None: all candidates, 2 * beam_width."""
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
            _integer(self, "logprobs", -1, 2**31 - 1)
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


class PoolingParams(Struct, frozen=True, kw_only=True):
    """What a request may ask of its vector. Names are vLLM's.

    Raises ParamsError that names the field, on construction.
    """

    dimensions: int | None = None
    """Of an embedding: the first so many numbers. None: all."""
    normalize: bool | None = None
    """Whether an embedding has the length of one; None: as the model says."""
    use_activation: bool | None = None
    """Whether a classifier's numbers become scores; None: as the model says, which mostly does."""
    truncate_prompt_tokens: int | None = None
    """A longer text loses its end; -1: beyond what the model takes. None: it is refused."""
    prompt_name: str | None = None
    """Which of the model's prompts is written before the text; empty: none. None: the usual one."""

    def __post_init__(self) -> None:
        _kind(self, "prompt_name", str | None)
        if self.dimensions is not None:
            _integer(self, "dimensions", 1, 2**31 - 1)
        for name in ("normalize", "use_activation"):
            _kind(self, name, bool | None)
        if self.truncate_prompt_tokens is not None:
            _integer(self, "truncate_prompt_tokens", -1, 2**31 - 1)
            if not self.truncate_prompt_tokens:
                raise _wrong(self, "truncate_prompt_tokens", "-1 or a number from 1")


Params = SamplingParams | BeamSearchParams | PoolingParams
"""What a request is for."""


def takes_prompt(processor: LogitsProcessor) -> bool:
    """Tell whether a logits processor has the prompt's tokens as its first argument."""
    return len(inspect.signature(processor).parameters) == 3


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


def _kind(params: Struct, name: str, kind: type | UnionType) -> None:
    if not isinstance(getattr(params, name), kind):
        types = get_args(kind) or (kind,)
        named = ["None" if one is type(None) else one.__name__ for one in types]
        raise _wrong(params, name, f"a {' or '.join(named)}")


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


def _processors(params: SamplingParams) -> None:
    """Bring logits processors into a tuple; none are None."""
    value: Any = params.logits_processors
    if value is None:
        return
    try:
        given = tuple(value)
        counts = [len(inspect.signature(one).parameters) for one in given]
    except (TypeError, ValueError):  # no sequence, no callable, one without a signature
        counts = [0]
    if len(counts) > MAX_PROCESSORS or not set(counts) <= {2, 3}:
        allowed = f"at most {MAX_PROCESSORS} callables of (output ids, logits) or "
        raise _wrong(params, "logits_processors", allowed + "(prompt ids, output ids, logits)")
    force_setattr(params, "logits_processors", given or None)


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
