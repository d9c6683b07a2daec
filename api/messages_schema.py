"""Bodies, blocks and events of /v1/messages, Anthropic's with a seed. Pure, as schema.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from .schema import Ignored, Only


class OutputConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The form of the answer, and how much to think."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class Thinking(Struct, forbid_unknown_fields=True, kw_only=True):
    """Whether to think: enabled, adaptive or disabled. Thoughts are told as they are."""

    type: str
    budget_tokens: int | None = None
    display: Ignored = None


class MessagesMetadata(Struct, forbid_unknown_fields=True, kw_only=True):
    """Whose request it is where there are no API keys."""

    user_id: str | None = None


class CountBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/messages/count_tokens: what makes a prompt."""

    messages: list[dict[str, Any]]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Ignored = None
    """Every prefix is cached."""


class MessagesBody(CountBody, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    metadata: MessagesMetadata | None = None
    thread: Only = None
    service_tier: Ignored = None
    inference_geo: Ignored = None


class TextBlock(Struct, frozen=True, tag="text"):
    """What is said to the user."""

    text: str


class ThinkingBlock(Struct, frozen=True, tag="thinking"):
    """A thought. It needs no signature to be given back."""

    thinking: str
    signature: str = ""


class ToolUse(Struct, frozen=True, kw_only=True, tag="tool_use"):
    """A call that the client is to make."""

    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUse


class MessageUsage(Struct, frozen=True, kw_only=True):
    """Tokens of a message; those that came from the prefix cache are counted apart."""

    input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0


class MessageObject(Struct, frozen=True, kw_only=True, tag="message"):
    """An answer."""

    id: str
    model: str
    content: Sequence[Block] = ()
    role: str = "assistant"
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    seed: int | UnsetType | None = UNSET
    """Give it to replay the answer."""


class TokenCount(Struct, frozen=True):
    """Tokens of a prompt."""

    input_tokens: int


class MessageStart(Struct, frozen=True, tag="message_start"):
    """The first event."""

    message: MessageObject


class BlockStart(Struct, frozen=True, kw_only=True, tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: Block


class MoreText(Struct, frozen=True, tag="text_delta"):
    """More of a text."""

    text: str


class MoreThinking(Struct, frozen=True, tag="thinking_delta"):
    """More of a thought."""

    thinking: str


class MoreInput(Struct, frozen=True, tag="input_json_delta"):
    """More of a call's input, as JSON text."""

    partial_json: str


class BlockDelta(Struct, frozen=True, kw_only=True, tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: MoreText | MoreThinking | MoreInput


class BlockStop(Struct, frozen=True, kw_only=True, tag="content_block_stop"):
    """A block is over."""

    index: int


class Ending(Struct, frozen=True, kw_only=True):
    """Why an answer is over."""

    stop_reason: str
    stop_sequence: str | None
    seed: int | None


class MessageDelta(Struct, frozen=True, kw_only=True, tag="message_delta"):
    """The answer is over."""

    delta: Ending
    usage: MessageUsage


class MessageStop(Struct, frozen=True, tag="message_stop"):
    """The last event."""


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
