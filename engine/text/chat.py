"""Chats to prompts: a checkpoint's jinja2 template, rendered in a sandbox.

Owns the bringing of OpenAI's messages into the form that templates expect. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import ParamsError
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

MAX_PROMPT_CHARS = 2**26
"""A template that writes more is stopped: no model reads that much."""

END_MARK = "<<end of the message to continue>> "
"""Written behind a message to be continued, and cut off again with all that the template adds."""


class ChatTemplate:
    """The chat templates of a checkpoint, each compiled on first use.

    `templates`: name -> source; the one named "tool_use" serves chats with tools, "default" all
    others. `special_tokens`: bos_token, eos_token, ... -> text, variables of the template. `clock`
    tells templates the date.
    """

    def __init__(
        self,
        templates: Mapping[str, str] | str | None,
        special_tokens: Mapping[str, str],
        *,
        clock: Callable[[], datetime],
    ) -> None:
        if isinstance(templates, str):
            templates = {"default": templates}
        self._sources = dict(templates or {})
        self._special_tokens = dict(special_tokens)
        self._clock = clock
        self._compiled: dict[str, Template] = {}

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Tokenizer, *, clock: Callable[[], datetime] = datetime.now
    ) -> ChatTemplate:
        """Return the templates that came with a tokenizer."""
        return cls(tokenizer.chat_templates, tokenizer.special_tokens, clock=clock)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt of a chat.

        `chat_template` chooses a template by name. `variables` are the template's own
        (enable_thinking, documents, ...). Raises ParamsError for messages of a wrong form and with
        the template's own message for those it refuses.
        """
        from .sandbox import RENDER_ERRORS, plain

        source = self._choose(chat_template, with_tools=bool(tools))
        if continue_final_message and add_generation_prompt:
            raise ParamsError(
                "continue_final_message is true and add_generation_prompt too: "
                "an answer is either continued or begun.",
                "continue_final_message",
            )
        chat = normalize_messages(messages)
        if continue_final_message:
            chat[-1]["content"] += END_MARK
        try:
            values = plain(variables) | {
                "messages": plain(chat),
                "tools": plain(tools) if tools else None,
                "add_generation_prompt": add_generation_prompt,
            }
            prompt = _write(self._compile(source), self._special_tokens | values)
        except RENDER_ERRORS as error:
            text = str(error) or type(error).__name__
            raise ParamsError(f"The chat template refuses: {text}", "messages") from error
        return _cut_at_end(prompt) if continue_final_message else prompt

    def _choose(self, name: str | None, *, with_tools: bool) -> str:
        sources = self._sources
        if not sources:
            raise ParamsError(
                "The model has no chat template: use completions with a prompt of your own.",
                "messages",
            )
        if name is not None:
            if name not in sources:
                raise ParamsError(
                    f"chat_template is {name!r:.80}: it must be one of {sorted(sources)}.",
                    "chat_template",
                )
            return sources[name]
        if with_tools and "tool_use" in sources:
            return sources["tool_use"]
        if "default" not in sources and len(sources) > 1:
            raise ParamsError(
                f"The model has no default chat template: choose one of {sorted(sources)}.",
                "chat_template",
            )
        return sources.get("default") or next(iter(sources.values()))

    def _compile(self, source: str) -> Template:
        if source not in self._compiled:
            from .sandbox import make_environment

            self._compiled[source] = make_environment(self._clock).from_string(source)
        return self._compiled[source]


def normalize_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check messages and bring them into the form of templates, as vLLM does.

    Text parts are joined by newlines, a missing content is "", and the arguments of tool calls are
    objects instead of JSON texts. What an assistant's message has as reasoning is its
    reasoning_content too.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ParamsError("messages must be a list of at least one message.", "messages")
    chat = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise _wrong(where, message, "an object with role and content")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise _wrong(f"{where}.role", role, "a name like user, assistant, system or tool")
        new = dict(message)
        new["content"] = _content(message.get("content"), f"{where}.content")
        if message.get("tool_calls") is None:
            new.pop("tool_calls", None)
        else:
            new["tool_calls"] = _tool_calls(message["tool_calls"], f"{where}.tool_calls")
        if new.get("reasoning") is not None:
            # Templates know the older name only.
            new.setdefault("reasoning_content", new["reasoning"])
        chat.append(new)
    return chat


def _wrong(where: str, given: Any, allowed: str) -> ParamsError:
    return ParamsError(f"{where} is {given!r:.80}: it must be {allowed}.", "messages")


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise _wrong(where, content, "a text or a list of text parts")
    return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    match part:
        case str():
            return part
        case {"type": "text" | "input_text" | "output_text", "text": str(text)}:
            return text
        case {"type": str(kind)} if kind not in ("text", "input_text", "output_text"):
            raise _wrong(f"{where}.type", kind, "text: the model reads nothing else")
        case _:
            raise _wrong(where, part, 'a part like {"type": "text", "text": "..."}')


def _tool_calls(calls: Any, where: str) -> list[Any]:
    if not isinstance(calls, list | tuple):
        raise _wrong(where, calls, "a list of tool calls")
    new = []
    for i, call in enumerate(calls):
        if not isinstance(call, Mapping):
            raise _wrong(f"{where}[{i}]", call, "an object with a function")
        function = call.get("function")
        if isinstance(function, Mapping):
            function = {**function, "arguments": _arguments(function.get("arguments"))}
        new.append({**call, "function": function})
    return new


def _arguments(arguments: Any) -> Any:
    """Return the object that a JSON text holds, or the text itself where it holds none."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        value = msgspec.json.decode(arguments) if arguments.strip() else {}
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _write(template: Template, values: Mapping[str, Any]) -> str:
    parts: list[str] = []
    num_chars = 0
    for part in template.generate(values):
        num_chars += len(part)
        if num_chars > MAX_PROMPT_CHARS:
            raise ValueError(f"the prompt is longer than {MAX_PROMPT_CHARS} characters")
        parts.append(part)
    return "".join(parts)


def _cut_at_end(prompt: str) -> str:
    """Cut the prompt behind the message that is to be continued."""
    end = prompt.rfind(END_MARK.rstrip())
    if end < 0:
        raise ParamsError(
            "continue_final_message is true, but the chat template leaves out the last message.",
            "continue_final_message",
        )
    # A template that trims messages has trimmed the mark's space: so it would trim the message.
    kept = prompt.startswith(END_MARK, end)
    return prompt[:end] if kept else prompt[:end].rstrip()
