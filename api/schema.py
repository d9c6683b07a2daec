"""Bodies of requests and responses, OpenAI's with vLLM's extra fields.

Pure. Types are checked here, ranges by SamplingParams. A field that nobody knows is an error,
because a misspelt parameter that is ignored gives a wrong answer; so is a known one with a value
that is not supported. null always means "not given".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from ..engine.params import RepetitionDetectionParams
from ..engine.request import Logprob, Timeline

Only = Annotated[Any, Meta(extra={"only": True})]
"""A field whose one supported value is its default (or listed in ALSO)."""
Ignored = Annotated[Any, Meta(extra={"ignored": True})]
"""A field that asks nothing of the answer: accepted without effect."""

ALSO: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "function_call": ("none", "auto"),
}

NEVER: dict[str, str] = {
    "logits_processors": "Python callables are taken by LLM and AsyncEngine, not over HTTP",
}
"""Why some Only fields have no other value."""


class StreamOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Only = False


class GenerationBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """What completions and chat completions share."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    bad_words: str | list[str] | None = None
    allowed_token_ids: list[int] | None = None
    seed: int | None = None
    truncate_prompt_tokens: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    thinking_token_budget: int | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    user: str | None = None
    """Whose request it is where there are no API keys."""
    request_id: str | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    """The form of the output: fields of StructuredOutputsParams."""
    prompt_logprobs: int | None = None
    """Likeliest tokens to tell beside each of the prompt; -1: all."""
    use_beam_search: bool | None = None
    """Search for the likeliest answers, with best_of or else n beams, of which n are told."""
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    timeline: bool | None = None
    """Tell, with the end of each choice, what happened to it and when."""

    prompt_embeds: Only = None
    logits_processors: Only = None

    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None


class CompletionBody(GenerationBody, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    """Answers that are generated, of which the n likeliest are told."""
    suffix: Only = ""


class ChatBody(GenerationBody, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    """The name of one of the checkpoint's templates."""
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    """What the template shows to the model beside the messages, where it knows documents."""
    reasoning_effort: str | None = None

    best_of: int | None = None
    """Beams, with use_beam_search."""

    echo: Only = False
    audio: Only = None
    modalities: Only = None
    prediction: Only = None
    functions: Only = []
    function_call: Only = None
    moderation: Only = None
    verbosity: Only = "medium"
    web_search_options: Only = None
    mm_processor_kwargs: Only = None

    include_reasoning: bool | None = None
    """false: thoughts are not told."""
    parallel_tool_calls: bool | None = None
    """false: of the calls only the first is told; a forced one is only one."""


class PromptTokensDetails(Struct, frozen=True):
    """How many prompt tokens came from the prefix cache."""

    cached_tokens: int


class Usage(Struct, frozen=True):
    """Tokens of a response."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(Struct, frozen=True):
    """Log probabilities as completions report them, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None for the first token of a prompt, here and below."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


PromptRows = Sequence[dict[int, Logprob] | None]
"""For each token of a prompt, vLLM's shape: None for the first, then token id -> Logprob."""


class CompletionChoice(Struct, frozen=True, kw_only=True):
    """One answer, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptRows | UnsetType = UNSET
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    seed: int | UnsetType | None = UNSET
    token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    timeline: Timeline | UnsetType = UNSET


class TopLogprob(Struct, frozen=True):
    """A likely token as chat completions report it."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    """A drawn token as chat completions report it."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Log probabilities as chat completions report them."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(Struct, frozen=True, kw_only=True):
    """The name (with the first piece) and the arguments of a call, or a piece of them."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    """One call, or (with its index) a piece of it."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionCall


class ChatMessage(Struct, frozen=True, kw_only=True):
    """An answer, or (without role) a piece of it."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    """Thoughts, by both names that clients know."""
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True, kw_only=True):
    """One answer; `message` when whole, `delta` in a stream."""

    index: int = 0
    message: ChatMessage | UnsetType = UNSET
    delta: ChatMessage | UnsetType = UNSET
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    seed: int | UnsetType | None = UNSET
    token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    timeline: Timeline | UnsetType = UNSET


class Response(Struct, frozen=True, kw_only=True):
    """A whole response, or one chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[CompletionChoice | ChatChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_logprobs: PromptRows | UnsetType = UNSET
    """Of a chat."""


class CompletionResponse(Response, frozen=True, kw_only=True):
    """How /v1/completions describes its Response."""

    choices: Sequence[CompletionChoice]


class ChatResponse(Response, frozen=True, kw_only=True):
    """How /v1/chat/completions describes its Response."""

    choices: Sequence[ChatChoice]


class ModelPermission(Struct, frozen=True, kw_only=True):
    """What may be done with a model, vLLM's shape."""

    id: str
    created: int
    object: str = "model_permission"
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(Struct, frozen=True, kw_only=True):
    """An entry of /v1/models."""

    id: str
    created: int
    max_model_len: int
    root: str
    """Where the weights came from."""
    permission: list[ModelPermission]
    parent: str | None = None
    object: str = "model"
    owned_by: str = "quire"


class ModelList(Struct, frozen=True):
    """GET /v1/models."""

    data: list[ModelCard]
    object: str = "list"


class ErrorDetail(Struct, frozen=True):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    request_id: str | None = None
    """The X-Request-Id, to find the request in the log."""


class ErrorBody(Struct, frozen=True):
    """What every error response holds."""

    error: ErrorDetail


class MessagesDetail(Struct, frozen=True):
    """What is wrong, in Anthropic's words."""

    type: str
    message: str


class MessagesError(Struct, frozen=True, kw_only=True, tag="error"):
    """What every error response of /v1/messages holds."""

    error: MessagesDetail
    request_id: str | None = None


class PlainError(Struct, frozen=True):
    """What error responses under /api hold, Ollama's."""

    error: str
