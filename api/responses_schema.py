"""Bodies, items and events of /v1/responses, OpenAI's with some of vLLM's extra fields.

Pure, as schema.py, whose rules hold here too. Items of the input are objects that
responses_input.py checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct, field

from .schema import Ignored, Only

Item = dict[str, Any]
"""An item of the input, checked, with an id."""


class TextOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """The form of the text."""

    format: dict[str, Any] | None = None
    verbosity: Only = "medium"


class ReasoningOptions(Struct, forbid_unknown_fields=True, kw_only=True):
    """How to think. Thoughts are told as they are, so no summary is made."""

    effort: str | None = None
    summary: Ignored = None
    generate_summary: Ignored = None


class ResponsesBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/responses."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    """false: the response is not kept for later requests."""
    metadata: dict[str, str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    user: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    thinking_token_budget: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    background: bool | None = None
    """true: the answer is told at once, and made while nobody waits."""
    conversation: Only = None
    prompt: Only = None
    top_logprobs: Only = 0
    truncation: Only = "disabled"

    max_tool_calls: Ignored = None
    """Of tools that a server runs; there are none."""
    stream_options: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None


COPIED = (
    *("model", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "seed", "min_tokens", "stop", "stop_token_ids"),
    *("ignore_eos", "skip_special_tokens", "thinking_token_budget", "priority", "cache_salt"),
    *("request_id", "include_reasoning", "chat_template_kwargs", "stream", "user"),
    "parallel_tool_calls",
)
"""Fields that a ChatBody has as they are."""


class OutputText(Struct, frozen=True, tag="output_text"):
    """The text of a message."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[()] = ()


class ReasoningText(Struct, frozen=True, tag="reasoning_text"):
    """The text of a thought."""

    text: str


Part = OutputText | ReasoningText


class OutputMessage(Struct, frozen=True, kw_only=True, tag="message"):
    """What is said to the user."""

    id: str
    status: str
    """in_progress, completed, or incomplete where the answer was cut inside."""
    content: tuple[OutputText, ...] = ()
    role: str = "assistant"


class OutputReasoning(Struct, frozen=True, kw_only=True, tag="reasoning"):
    """A thought."""

    id: str
    status: str
    content: tuple[ReasoningText, ...] = ()
    summary: tuple[()] = ()
    encrypted_content: None = None


class OutputCall(Struct, frozen=True, kw_only=True, tag="function_call"):
    """A call that the client is to make."""

    id: str
    status: str
    call_id: str
    name: str
    arguments: str = ""


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputDetails(Struct, frozen=True):
    """How many tokens of the prompt came from the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Struct, frozen=True):
    """How many tokens the text of thoughts has."""

    reasoning_tokens: int


class ResponseUsage(Struct, frozen=True, kw_only=True):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Struct, frozen=True):
    """Why an answer is not whole: max_output_tokens, repetition or abort."""

    reason: str


class ResponseFailure(Struct, frozen=True):
    """Why there is no answer."""

    code: str
    message: str


class ResponseObject(Struct, frozen=True, kw_only=True):
    """A response: what was asked, and what is answered so far."""

    id: str
    created_at: int
    model: str
    status: str = "in_progress"
    completed_at: int | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    output: Sequence[OutputItem] = ()
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: ReasoningOptions = field(default_factory=ReasoningOptions)
    seed: int | None = None
    """Give it to replay the answer."""
    store: bool = True
    temperature: float | None = None
    text: TextOptions = field(default_factory=TextOptions)
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = field(default_factory=list)
    top_p: float | None = None
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    background: bool = False
    object: str = "response"


class Deleted(Struct, frozen=True, kw_only=True):
    """DELETE /v1/responses/ID."""

    id: str
    object: str = "response"
    deleted: bool = True


class ItemList(Struct, frozen=True, kw_only=True):
    """GET /v1/responses/ID/input_items."""

    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class StreamEvent(Struct, frozen=True, kw_only=True):
    """What events have in common."""

    sequence_number: int = 0


class Created(StreamEvent, frozen=True, kw_only=True, tag="response.created"):
    """The first event."""

    response: ResponseObject


class Queued(StreamEvent, frozen=True, kw_only=True, tag="response.queued"):
    """The second, of one that is made in the background."""

    response: ResponseObject


class InProgress(StreamEvent, frozen=True, kw_only=True, tag="response.in_progress"):
    """The second."""

    response: ResponseObject


class Completed(StreamEvent, frozen=True, kw_only=True, tag="response.completed"):
    """The last, of a whole answer."""

    response: ResponseObject


class Incomplete(StreamEvent, frozen=True, kw_only=True, tag="response.incomplete"):
    """The last, of one that was cut or cancelled."""

    response: ResponseObject


class Failed(StreamEvent, frozen=True, kw_only=True, tag="response.failed"):
    """The last, where the server could not go on."""

    response: ResponseObject


class ItemAdded(StreamEvent, frozen=True, kw_only=True, tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: OutputItem


class ItemDone(StreamEvent, frozen=True, kw_only=True, tag="response.output_item.done"):
    """An item is over."""

    output_index: int
    item: OutputItem


class PieceEvent(StreamEvent, frozen=True, kw_only=True):
    """What events inside of an item have in common."""

    item_id: str
    output_index: int


class PartAdded(PieceEvent, frozen=True, kw_only=True, tag="response.content_part.added"):
    """The one part of a message or of a thought begins."""

    part: Part
    content_index: int = 0


class PartDone(PieceEvent, frozen=True, kw_only=True, tag="response.content_part.done"):
    """It is over."""

    part: Part
    content_index: int = 0


class TextDelta(PieceEvent, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """More of a message."""

    delta: str
    content_index: int = 0
    logprobs: tuple[()] = ()


class TextDone(PieceEvent, frozen=True, kw_only=True, tag="response.output_text.done"):
    """All of it."""

    text: str
    content_index: int = 0
    logprobs: tuple[()] = ()


class ReasoningDelta(PieceEvent, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    """More of a thought."""

    delta: str
    content_index: int = 0


class ReasoningDone(PieceEvent, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    """All of it."""

    text: str
    content_index: int = 0


class ArgumentsDelta(
    PieceEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"
):
    """More of a call's arguments, as JSON text."""

    delta: str


class ArgumentsDone(
    PieceEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.done"
):
    """All of them."""

    name: str
    arguments: str


ResponseEvent = (
    Created
    | Queued
    | InProgress
    | ItemAdded
    | PartAdded
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | PartDone
    | ItemDone
    | Completed
    | Incomplete
    | Failed
)
