"""How the answers of a chat are read: what they may hold, by which formats. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from msgspec.structs import replace

from ..engine.params import BeamSearchParams, SamplingParams
from ..engine.parsing.choose import Expects, Parsers, ThoughtAt
from ..engine.structured import StructuredOutputsParams, Thought
from .parsed import ParsedAnswers
from .schema import ChatBody
from .state import Engine
from .structured import ForcedTools

Params = SamplingParams | BeamSearchParams


class Reading(NamedTuple):
    """What the answers to one request may hold."""

    parsers: Parsers
    expects: Expects
    thinks: bool
    hides: bool
    """Text has special tokens for the tags among them; clients see the tags' meaning only."""
    tools: dict[str, Any]
    named: str | None

    def thought(self, body: ChatBody, prompt: str | None) -> ThoughtAt:
        """Tell where the thought is of which an answer to a prompt may have one."""
        message = _last_text(body) if body.continue_final_message else None
        return self.parsers.thought_at(prompt or "", message) if self.thinks else "behind"

    def with_thought(self, body: ChatBody, prompt: str | None, params: Params) -> Params:
        """Let the form of an answer begin behind the thought, where it may have one."""
        form, reasoning = _form(params), self.parsers.reasoning
        place = self.thought(body, prompt)
        if form is None or reasoning is None or place == "behind":
            return params
        assert isinstance(params, SamplingParams), params
        start = reasoning.start if place == "ahead" else ""
        return replace(
            params, structured_outputs=replace(form, thought=Thought(start, reasoning.end))
        )

    def answers(
        self, body: ChatBody, prompt: str | None, new_id: Callable[[], str]
    ) -> ParsedAnswers | None:
        """Return what takes the answers to a prompt apart; None where they are nothing but text."""
        parsers = self.parsers
        if not parsers.reads(self.expects, thinks=self.thinks):
            return None
        tools = parsers.tools
        has_reasoning = self.thinks and parsers.reasoning is not None
        return ParsedAnswers(
            start=partial(
                parsers.start,
                self.expects,
                self.tools,
                named=self.named,
                thinks=self.thinks,
                opened=self.thought(body, prompt) == "open",
                hides=self.hides,
            ),
            new_id=new_id,
            short_ids=tools is not None and tools.short_ids,
            has_reasoning=has_reasoning and body.include_reasoning is not False,
            one_call=body.parallel_tool_calls is False,
            forced=(self.named or "") if self.expects in ("some call", "named call") else None,
        )


def read_answers(
    engine: Engine, body: ChatBody, forced: ForcedTools | None, params: Params
) -> tuple[Reading, Params]:
    """Return how answers are to be read, and the parameters that show what this needs."""
    expects: Expects = "text"
    if forced is not None:
        expects = "some call" if forced.name is None else "named call"
    elif body.tools and body.tool_choice != "none" and engine.auto_tools:
        expects = "calls"
    parsers = engine.parsers
    # Where an answer is messages with heads, a form takes the place of all of them.
    in_messages = parsers.reasoning is not None and parsers.reasoning.messages is not None
    thinks = not in_messages or _form(params) is None
    hides = params.skip_special_tokens and parsers.needs_special(expects, thinks=thinks)
    tools: dict[str, Any] = {}
    if expects != "text":
        tools = {
            tool["function"]["name"]: tool["function"].get("parameters")
            for tool in body.tools or ()
        }
    name = None if forced is None else forced.name
    reading = Reading(parsers, expects, thinks, hides, tools, name)
    return reading, replace(params, skip_special_tokens=False) if hides else params


def _form(params: Params) -> StructuredOutputsParams | None:
    return params.structured_outputs if isinstance(params, SamplingParams) else None


def _last_text(body: ChatBody) -> str:
    """Return the text of the message that the answer continues."""
    content = body.messages[-1].get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))
