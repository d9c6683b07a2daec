"""Bodies of requests and responses, OpenAI's with vLLM's extra fields, and how a body is decoded.

Pure. Types are checked here, ranges by SamplingParams. A field that is unknown is an error, because a
misspelt parameter that is ignored is a wrong answer; so is a known one with a value that is not
supported. null always means "not given".
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..engine.errors import ParamsError

Body = TypeVar("Body", bound="GenerationBody")


class StreamOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class OnlyValues(Struct, forbid_unknown_fields=True, kw_only=True):
    """Parameters with one supported value, the default here; any other is an error."""

    n: Any = 1
    best_of: Any = 1
    presence_penalty: Any = 0
    frequency_penalty: Any = 0
    repetition_penalty: Any = 1
    length_penalty: Any = 1
    logit_bias: Any = {}
    bad_words: Any = []
    use_beam_search: Any = False
    early_stopping: Any = False
    response_format: Any = {"type": "text"}  # noqa: RUF012  # never written
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    prompt_logprobs: Any = None
    prompt_embeds: Any = None
    truncate_prompt_tokens: Any = None
    allowed_token_ids: Any = None
    logits_processors: Any = None
    spaces_between_special_tokens: Any = True
    thinking_token_budget: Any = None
    kv_transfer_params: Any = None
    vllm_xargs: Any = None


class GenerationBody(OnlyValues, kw_only=True):
    """What completions and chat completions share."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    # Accepted without effect: they ask nothing of the answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


class CompletionBody(GenerationBody, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: Any = ""


class ChatBody(GenerationBody, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: Any = False
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    parallel_tool_calls: Any = None
    include_reasoning: Any = True
    echo: Any = False
    documents: Any = None
    audio: Any = None
    modalities: Any = ["text"]  # noqa: RUF012  # never written
    prediction: Any = None
    functions: Any = []
    function_call: Any = None
    moderation: Any = None
    verbosity: Any = "medium"
    web_search_options: Any = None
    mm_processor_kwargs: Any = None


COMPLETION_ONLY = ("suffix",)
CHAT_ONLY = (
    *("continue_final_message", "chat_template", "include_reasoning", "echo", "documents"),
    *("audio", "modalities", "prediction", "functions", "function_call", "moderation"),
    *("verbosity", "web_search_options", "mm_processor_kwargs"),
)
