"""Tools of the demo corpus: their signatures, the requests that call them, and the answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import words

Message = dict[str, Any]
Tool = dict[str, Any]

NO_TOOL = "Sorry, I have no tool for that."


@dataclass(frozen=True)
class ToolUse:
    """What one use of a tool says: request, argument values, results, and the answer."""

    request: str
    values: tuple[str | int, ...]
    result: str
    answer: str


@dataclass(frozen=True)
class OfferedTool:
    """A tool: its kind, name, arguments with their JSON types, and how its uses are drawn."""

    kind: str
    name: str
    arguments: dict[str, str]
    draw: Callable[[random.Random], ToolUse]

    def schema(self) -> Tool:
        """Return the tool as the chat completion endpoint takes it."""
        parameters = {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in self.arguments.items()},
            "required": list(self.arguments),
        }
        return {"type": "function", "function": {"name": self.name, "parameters": parameters}}

    def call(self, use: ToolUse) -> Message:
        """Return the assistant message's tool call for one use."""
        arguments = dict(zip(self.arguments, use.values, strict=True))
        return {"type": "function", "function": {"name": self.name, "arguments": arguments}}


def _result(rng: random.Random, fields: dict[str, Any], text: str) -> str:
    """Return a tool's result: as JSON mostly, as plain text now and then."""
    return text if rng.random() < 0.25 else json.dumps(fields)


def _draw_weather(rng: random.Random) -> ToolUse:
    city, sky, degrees = words.pick_city(rng), rng.choice(words.SKIES), rng.randrange(-9, 40)
    requests = (
        f"What is the weather in {city}?",
        f"What's the weather like in {city}?",
        f"How is the weather in {city} today?",
        f"Tell me the weather in {city}.",
        f"Weather in {city}?",
        f"Is it warm in {city}?",
        f"Please check the weather in {city}.",
        f"What is the weather like in {city} right now?",
        f"What's the weather in {city}?",
    )
    fields: list[tuple[str, Any]] = [
        (rng.choice(("temperature", "temperature", "temp", "degrees")), degrees),
        (rng.choice(("sky", "condition", "conditions", "weather")), sky),
    ]
    rng.shuffle(fields)
    if rng.random() < 0.3:
        fields.insert(0, (rng.choice(("city", "location")), city))
    if rng.random() < 0.2:
        fields.append(("unit", "celsius"))
    text = rng.choice((f"{sky}, {degrees} degrees", f"{degrees} degrees and {sky}"))
    return ToolUse(
        rng.choice(requests),
        (city,),
        _result(rng, dict(fields), text),
        f"In {city} it is {sky} and {degrees} degrees.",
    )


def _draw_time(rng: random.Random) -> ToolUse:
    city, time = words.pick_city(rng), f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    requests = (
        f"What time is it in {city}?",
        f"What is the time in {city}?",
        f"Tell me the time in {city}.",
        f"How late is it in {city}?",
        f"Time in {city}?",
    )
    result = _result(rng, {rng.choice(("time", "time", "local_time")): time}, time)
    return ToolUse(rng.choice(requests), (city,), result, f"It is {time} in {city}.")


def _draw_timer(rng: random.Random) -> ToolUse:
    minutes = rng.randrange(2, 100)
    requests = (
        f"Set a timer for {minutes} minutes.",
        f"Please set a timer for {minutes} minutes.",
        f"Wake me up in {minutes} minutes.",
        f"Start a timer of {minutes} minutes.",
        f"I need a timer for {minutes} minutes.",
    )
    result = _result(rng, {"status": rng.choice(("ok", "started", "done"))}, "ok")
    return ToolUse(
        rng.choice(requests), (minutes,), result, f"The timer is set for {minutes} minutes."
    )


def _draw_message(rng: random.Random) -> ToolUse:
    name, text = words.pick_name(rng), rng.choice(words.MESSAGES)
    requests = (
        f"Send a message to {name}: {text}",
        f"Send {name} the message: {text}",
        f"Tell {name} that {text}.",
        f"Write to {name}: {text}.",
        f'Please send "{text}" to {name}.',
    )
    result = _result(rng, {"status": rng.choice(("sent", "ok", "done"))}, "sent")
    return ToolUse(rng.choice(requests), (name, text), result, f"I sent the message to {name}.")


def _draw_price(rng: random.Random) -> ToolUse:
    item, price = rng.choice(words.ITEMS), rng.randrange(2, 100)
    requests = (
        f"How much is the {item}?",
        f"What does the {item} cost?",
        f"What is the price of the {item}?",
        f"Tell me the price of the {item}.",
        f"How much does {words.with_article(item)} cost?",
    )
    result = _result(rng, {"price": price}, f"{price} euros")
    return ToolUse(rng.choice(requests), (item,), result, f"The {item} costs {price} euros.")


def _draw_table(rng: random.Random) -> ToolUse:
    name, people = words.pick_name(rng), rng.randrange(2, 13)
    requests = (
        f"Book a table for {people} people for {name}.",
        f"Book a table for {people} under the name {name}.",
        f"Please book a table for {people} people under the name {name}.",
        f"{name} needs a table for {people} people.",
    )
    result = _result(rng, {"status": rng.choice(("booked", "ok", "done"))}, "booked")
    return ToolUse(
        rng.choice(requests), (name, people), result, f"A table for {people} is booked for {name}."
    )


def _draw_add(rng: random.Random) -> ToolUse:
    first, second = rng.randrange(100), rng.randrange(100)
    requests = (
        f"What is {first} + {second}?",
        f"Add {first} and {second}.",
        f"{first} + {second}",
        f"How much is {first} plus {second}?",
    )
    total = first + second
    result = _result(rng, {rng.choice(("sum", "result")): total}, str(total))
    return ToolUse(rng.choice(requests), (first, second), result, f"{first} + {second} = {total}.")


KINDS: dict[str, OfferedTool] = {
    tool.kind: tool
    for tool in (
        OfferedTool("weather", "get_weather", {"city": "string"}, _draw_weather),
        OfferedTool("time", "get_time", {"city": "string"}, _draw_time),
        OfferedTool("timer", "set_timer", {"minutes": "integer"}, _draw_timer),
        OfferedTool("message", "send_message", {"to": "string", "text": "string"}, _draw_message),
        OfferedTool("price", "get_price", {"item": "string"}, _draw_price),
        OfferedTool("table", "book_table", {"name": "string", "people": "integer"}, _draw_table),
        OfferedTool("add", "add", {"a": "integer", "b": "integer"}, _draw_add),
    )
}


def draw_offer(rng: random.Random) -> list[OfferedTool]:
    """Draw the tools that one chat offers."""
    num_tools = rng.choice((1, 1, 2, 2, 3, 3, 4, 5))
    return [KINDS[kind] for kind in rng.sample(tuple(KINDS), num_tools)]


def draw_use(rng: random.Random, kind: str, held_out: bool) -> ToolUse:
    """Draw a use of a tool whose argument values are (not) held out for this tool."""
    while True:
        use = KINDS[kind].draw(rng)
        key = (
            ("sum", *sorted(use.values, key=int)) if kind == "add" else ("tool", kind, *use.values)
        )
        if words.is_held_out(*key) == held_out:
            return use


def tool_exchange(rng: random.Random, offer: list[OfferedTool], held_out: bool) -> list[Message]:
    """Return request, call, result and answer for one of the tools on offer."""
    tool = rng.choice(offer)
    uses = [draw_use(rng, tool.kind, held_out)]
    if tool.kind in ("weather", "time") and not held_out and rng.random() < 0.1:
        other = draw_use(rng, tool.kind, held_out)
        city, other_city = uses[0].values[0], other.values[0]
        if city != other_city and str(city) in uses[0].request:
            request = uses[0].request.replace(str(city), f"{city} and {other_city}")
            uses = [ToolUse(request, uses[0].values, uses[0].result, uses[0].answer), other]
    calls = [tool.call(use) for use in uses]
    return [
        {"role": "user", "content": uses[0].request},
        {"role": "assistant", "content": "", "tool_calls": calls},
        *({"role": "tool", "content": use.result} for use in uses),
        {"role": "assistant", "content": " ".join(use.answer for use in uses)},
    ]


def refused_exchange(rng: random.Random, offer: list[OfferedTool]) -> list[Message]:
    """Return a request for which no tool on offer fits, and the refusal."""
    offered = {tool.kind for tool in offer} | {"add"}
    missing = [kind for kind in KINDS if kind not in offered]
    use = draw_use(rng, rng.choice(missing), held_out=False)
    return [
        {"role": "user", "content": use.request},
        {"role": "assistant", "content": NO_TOOL},
    ]
