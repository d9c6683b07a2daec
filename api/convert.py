"""From OpenAI's bodies to what the engine takes. Pure but for long texts, tokenized in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from ..engine.errors import ParamsError
from ..engine.params import BeamSearchParams, RequestOutputKind, SamplingParams
from .beams import beam_params, check_no_search
from .decode import show
from .errors import ApiError
from .schema import ChatBody, CompletionBody, GenerationBody
from .structured import named_by_client, output_form

if TYPE_CHECKING:
    from ..engine.text.prepare import Prepared, Prompt
    from .state import Engine

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for completions; a chat answer may fill the context."""
LONG_TEXT_CHARS = 4096
"""A longer text is tokenized in a thread (its work releases the GIL)."""

CHARS_PER_TOKEN = 64
"""A text that is longer than this for each token of the model length is tried by its beginning."""

PASSED = (
    *("n", "temperature", "top_p", "top_k", "min_p", "seed", "min_tokens", "stop"),
    *("stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
    *("allowed_token_ids", "bad_words", "truncate_prompt_tokens", "prompt_logprobs"),
    *("repetition_detection", "thinking_token_budget", "spaces_between_special_tokens"),
)
"""Fields that SamplingParams takes as they are."""


class TokenPrompt(NamedTuple):
    """A prompt in tokens; text is None where tokens were given."""

    text: str | None
    token_ids: list[int]


def check_model(given: str | None, served: str) -> None:
    """Refuse a model that is not served here."""
    if given is not None and given != served:
        raise ApiError(
            f"The model {show(given)} does not exist here: this server has {show(served)}.",
            status=404,
            param="model",
            code="model_not_found",
        )


def completion_params(body: CompletionBody) -> SamplingParams | BeamSearchParams:
    """ParamsError where a value is out of range."""
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if body.use_beam_search:
        return beam_params(
            body, best_of=body.best_of, max_tokens=max_tokens, logprobs=body.logprobs
        )
    if is_prompt_alone(body):
        # A step that computes a whole prompt draws a token: it is not told.
        max_tokens = 1
    params = _params(body, max_tokens, body.logprobs)
    if body.echo and body.prompt_logprobs is None:
        params = replace(params, prompt_logprobs=params.logprobs)
    if body.best_of is None or body.best_of == params.n:
        return params
    # The likeliest are told by their log probabilities.
    logprobs = 0 if params.logprobs is None else params.logprobs
    try:
        many = replace(params, n=body.best_of, logprobs=logprobs)
    except ParamsError as error:
        raise ParamsError(str(error).replace("n is", "best_of is", 1), "best_of") from None
    if body.best_of < params.n or body.stream:
        raise ApiError(
            f"best_of is {body.best_of} and n {params.n}: best_of must not be less, and in a "
            "stream not more.",
            param="best_of",
        )
    return many


def is_prompt_alone(body: CompletionBody) -> bool:
    """Whether a client wants its prompt back and no answer."""
    return bool(body.echo) and body.max_tokens == 0


def chat_params(body: ChatBody) -> SamplingParams | BeamSearchParams:
    """ParamsError where a value is out of range."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs: true.", param="top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    _, max_tokens = chat_limit(body)
    with chat_names(body):
        if body.use_beam_search:
            return beam_params(body, best_of=body.best_of, max_tokens=max_tokens, logprobs=logprobs)
        if body.best_of not in (None, 1):
            raise ApiError(
                f"best_of is {body.best_of}: in a chat it needs use_beam_search: true.",
                param="best_of",
            )
        return _params(body, max_tokens, logprobs)


@contextmanager
def chat_names(body: ChatBody) -> Iterator[None]:
    """Name fields in a ParamsError as chat completions do."""
    with renamed({"logprobs": "top_logprobs", "max_tokens": chat_limit(body)[0]}):
        yield


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Call fields in errors as the client does: names[ours] is the client's."""
    try:
        yield
    except (ParamsError, ApiError) as error:
        theirs = names.get(error.param or "")
        if theirs is None:
            raise
        text = str(error).replace(error.param or "", theirs, 1)
        if isinstance(error, ParamsError):
            raise ParamsError(text, theirs) from None
        raise ApiError(
            text,
            status=error.status,
            kind=error.kind,
            param=theirs,
            code=error.code,
            headers=error.headers,
        ) from None


def chat_limit(body: ChatBody) -> tuple[str, int | None]:
    """The most tokens to generate, by OpenAI's newer name before its older one."""
    if body.max_completion_tokens is not None:
        return "max_completion_tokens", body.max_completion_tokens
    return "max_tokens", body.max_tokens


def _params(body: GenerationBody, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    check_no_search(body)
    given = {name: value for name in PASSED if (value := getattr(body, name)) is not None}
    form = output_form(body)
    if form is not None:
        given["structured_outputs"] = form
    kind = RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY
    return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, output_kind=kind, **given)


def split_prompts(
    prompt: str | list[str | int | list[int]], n: int, max_answers: int
) -> list[str | list[int]]:
    """The prompts of a completion: a text, token ids, or a list of either; n: answers of each."""
    if isinstance(prompt, str):
        prompts: list[Any] = [prompt]
    elif all(isinstance(one, int) for one in prompt):
        prompts = [prompt]
    elif all(isinstance(one, str) for one in prompt) or all(
        isinstance(one, list) for one in prompt
    ):
        prompts = prompt
    else:
        raise ApiError(
            "prompt is a list of several kinds: it must be all strings, all token ids, "
            "or all lists of token ids.",
            param="prompt",
        )
    if len(prompts) > max_answers:
        raise ApiError(
            f"prompt has {len(prompts)} prompts: at most {max_answers} are allowed.", param="prompt"
        )
    if len(prompts) * n > max_answers:
        raise ApiError(
            f"prompt has {len(prompts)} prompts and n is {n}: at most {max_answers} answers "
            "together are allowed.",
            param="n",
        )
    if not all(prompts):
        raise ApiError("prompt is empty: it must have at least one token.", param="prompt")
    return prompts


async def encode(
    engine: Engine, text: str, *, add_special_tokens: bool, last: int | None = None
) -> TokenPrompt:
    """Tokenize a text without holding the loop; no more of it than can tell that it is too long.

    last: tokens to keep of all.
    """
    tokenizer = engine.tokenizer
    if len(text) < LONG_TEXT_CHARS or last is not None:
        work = partial(tokenizer.encode, text, add_special_tokens=add_special_tokens)
        ids = work() if len(text) < LONG_TEXT_CHARS else await asyncio.to_thread(work)
        return TokenPrompt(text, ids if last is None else ids[-last:])
    beginning = text[: engine.max_model_len * CHARS_PER_TOKEN]
    ids = await asyncio.to_thread(
        tokenizer.encode, beginning, add_special_tokens=add_special_tokens
    )
    # A cut may split what the whole text has as one token, but no more than a few.
    if len(beginning) < len(text) and len(ids) <= engine.max_model_len + CHARS_PER_TOKEN:
        ids = await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
    return TokenPrompt(text, ids)


def check_length(
    prompt: tuple[str, int], limit: tuple[str, int | None], max_model_len: int
) -> None:
    """Refuse what cannot be answered whole.

    prompt: its field and number of tokens; limit: the field of the most tokens to generate, and its
    value as the client gave it.
    """
    name, num_prompt = prompt
    limit_name, max_tokens = limit
    room = max_model_len - num_prompt
    if room < 1:
        raise ApiError(
            f"{name} has {num_prompt} tokens: this model takes at most {max_model_len}, "
            "prompt and answer together.",
            param=name,
            code="context_length_exceeded",
        )
    if max_tokens is not None and max_tokens > room:
        raise ApiError(
            f"{limit_name} is {max_tokens} after a prompt of {num_prompt} tokens: this model "
            f"takes at most {max_model_len} together, so at most {room} here.",
            param=limit_name,
            code="context_length_exceeded",
        )


async def prepare(
    engine: Engine,
    prompt: TokenPrompt,
    params: SamplingParams | BeamSearchParams,
    body: GenerationBody,
    *,
    request_id: str,
    priority: int,
    cache_salt: str | None,
    tenant: str,
) -> Prepared:
    """A request that the engine takes. ParamsError where the prompt is not valid."""
    given: Prompt = prompt.token_ids
    if prompt.text is not None:
        given = {"prompt": prompt.text, "prompt_token_ids": prompt.token_ids}
    try:
        return await engine.prepare(
            given,
            params,
            request_id,
            priority=priority,
            cache_salt=cache_salt,
            tenant=tenant,
        )
    except ParamsError as error:
        raise named_by_client(error, body) from None
