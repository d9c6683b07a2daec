"""From RequestOutputs to Ollama's answers, whole and in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from ..engine.request import RequestOutput, Timeline
from .choices import ChatChoices
from .errors import ApiError, Failure
from .ollama_schema import (
    OllamaAnswerMessage,
    OllamaCall,
    OllamaChatAnswer,
    OllamaFunction,
    OllamaGenerateAnswer,
)
from .reply import TellMore
from .schema import ChatChoice, PlainError, ToolCall
from .sse import LINES, Wire
from .tracing import phases

Answer = OllamaChatAnswer | OllamaGenerateAnswer

REASONS = {"tool_calls": "stop"}
"""Ollama's words for how an answer ended, where they are others."""
DURATIONS = {
    "load_duration": "gen_ai.latency.time_in_queue",
    "prompt_eval_duration": "gen_ai.latency.time_in_model_prefill",
    "eval_duration": "gen_ai.latency.time_in_model_decode",
}
NS_PER_MS = 1_000_000


def told_time(seconds: float) -> str:
    """Write a time since 1970 as clients read it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def durations(timeline: Timeline | None) -> dict[str, int]:
    """Return how long an answer took, in nanoseconds; without what is not known."""
    if timeline is None:
        return {}
    took_s = phases([timeline])
    found = {
        name: round(took_s[phase] * 1e3 * NS_PER_MS)
        for name, phase in DURATIONS.items()
        if phase in took_s
    }
    took_ms = timeline.events[-1].at_ms - timeline.events[0].at_ms
    return {"total_duration": round(took_ms * NS_PER_MS), **found}


@dataclass(slots=True, eq=False)
class OllamaReply:
    """Everything that one request is told. A call is told once it is whole, never a piece of it."""

    response_id: str
    model: str
    """As the client names it."""
    clock: Callable[[], float]
    chats: bool
    """Whether answers are messages, or else texts."""
    choices: ChatChoices = field(default_factory=ChatChoices)
    n: int = 1
    wire: Wire = LINES
    more: TellMore | None = None
    _open_calls: list[ToolCall] = field(default_factory=list)
    """The one call that may go on, if any."""
    _num_tokens: int = 0

    def keep_best(self, output: RequestOutput) -> RequestOutput:
        """See Teller. There is one answer."""
        return output

    def chunks(self, index: int, output: RequestOutput) -> list[Answer]:
        """See Teller."""
        self._num_tokens += len(output.outputs[0].token_ids)
        answers = []
        for choice in self.choices.pieces(index, output):
            message, fields = self._said(choice)
            if message != OllamaAnswerMessage() or fields:
                answers.append(self._made(message, {"done": False, **fields}))
        if output.outputs[0].finish_reason is not None:
            ended = self._ended(output, self._num_tokens)
            answers.append(self._made(OllamaAnswerMessage(), ended))
        return answers

    def end(self) -> list[Answer]:
        """See Teller. The answer has told it."""
        return []

    def failed(self, error: ApiError, request_id: str) -> list[Failure]:
        """See Teller."""
        return [error.body(PlainError, request_id)]

    def whole(self, outputs: Sequence[RequestOutput]) -> Answer:
        """See Teller."""
        (output,) = outputs
        message, fields = self._said(self.choices.whole(0, output))
        ended = self._ended(output, len(output.outputs[0].token_ids))
        return self._made(message, {**fields, **ended})

    def loaded(self) -> Answer:
        """Say that the model is there: what a request without a prompt asks."""
        return self._made(OllamaAnswerMessage(), {"done": True, "done_reason": "load"})

    def _said(self, choice: ChatChoice) -> tuple[OllamaAnswerMessage, dict[str, Any]]:
        """Return what a choice, or a piece of it, brings: a message and what is told beside it."""
        said = choice.message or choice.delta
        assert said, choice
        calls = self._whole_calls(said.tool_calls or (), ends=choice.finish_reason is not None)
        message = OllamaAnswerMessage(
            content=said.content or "", thinking=said.reasoning or UNSET, tool_calls=calls or UNSET
        )
        logprobs = {} if choice.logprobs is None else {"logprobs": choice.logprobs.content}
        return message, logprobs

    def _whole_calls(self, pieces: Sequence[ToolCall], *, ends: bool) -> list[OllamaCall]:
        """Return the calls that are whole now: another has begun behind them, or all has ended."""
        for piece in pieces:
            if piece.id:
                self._open_calls.append(piece)
                continue
            last = self._open_calls[-1]
            arguments = last.function.arguments + piece.function.arguments
            function = replace(last.function, arguments=arguments)
            self._open_calls[-1] = replace(last, function=function)
        num_whole = len(self._open_calls) if ends else max(0, len(self._open_calls) - 1)
        whole, self._open_calls = self._open_calls[:num_whole], self._open_calls[num_whole:]
        made = map(_call, whole)
        return [one for one in made if one is not None]

    def _ended(self, output: RequestOutput, num_tokens: int) -> dict[str, Any]:
        given = output.outputs[0]
        reason = given.finish_reason or "stop"
        return {
            "done": True,
            "done_reason": REASONS.get(reason, reason),
            "seed": given.seed,
            "prompt_eval_count": len(output.prompt_token_ids),
            "eval_count": num_tokens,
            **durations(output.timeline),
        }

    def _made(self, message: OllamaAnswerMessage, fields: dict[str, Any]) -> Answer:
        common = {"model": self.model, "created_at": told_time(self.clock()), **fields}
        if self.chats:
            return OllamaChatAnswer(message=message, **common)
        return OllamaGenerateAnswer(response=message.content, thinking=message.thinking, **common)


def _call(call: ToolCall) -> OllamaCall | None:
    """Return a call with its arguments as an object; None for one that was cut off before that."""
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(arguments, dict):
        return None
    name = call.function.name or ""
    return OllamaCall(id=call.id, function=OllamaFunction(name=name, arguments=arguments))
