"""Questions that the bundled model answers rightly by a tool, for the clients that ask them.

The held-out evaluation says how often it is right (demo/README.md). No result can be guessed.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Use(NamedTuple):
    """A question, the call that it asks for, a result of it, and what the answer is then."""

    question: str
    name: str
    arguments: dict[str, Any]
    result: str
    answer: str

    def run(self, name: str, arguments: str | dict[str, Any]) -> str:
        """Do what is called, if it is what was asked for."""
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
        assert (name, given) == (self.name, self.arguments)
        return self.result


USES = [
    Use(
        "What is the weather in Paris?",
        "get_weather",
        {"city": "Paris"},
        '{"temperature": 17, "sky": "foggy"}',
        "In Paris it is foggy and 17 degrees.",
    ),
    Use(
        "What is the weather in Paris?",
        "get_weather",
        {"city": "Paris"},
        '{"temperature": -4, "sky": "sunny"}',
        "In Paris it is sunny and -4 degrees.",
    ),
    Use(
        "What time is it in Rome?",
        "get_time",
        {"city": "Rome"},
        '{"time": "22:29"}',
        "It is 22:29 in Rome.",
    ),
    Use(
        "What does the map cost?",
        "get_price",
        {"item": "map"},
        "93 euros",
        "The map costs 93 euros.",
    ),
    Use(
        "What does the map cost?", "get_price", {"item": "map"}, "8 euros", "The map costs 8 euros."
    ),
    Use("Add 95 and 44.", "add", {"a": 95, "b": 44}, '{"sum": 139}', "95 + 44 = 139."),
]


def make_tool(name: str, **arguments: str) -> dict[str, Any]:
    """A tool as /v1/responses takes it. arguments: their JSON types."""
    return {
        "type": "function",
        "name": name,
        "description": f"Do {name}.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in arguments.items()},
            "required": list(arguments),
            "additionalProperties": False,
        },
    }


TOOLS: Any = [
    make_tool("get_weather", city="string"),
    make_tool("get_time", city="string"),
    make_tool("get_price", item="string"),
    make_tool("add", a="integer", b="integer"),
]
CHAT_TOOLS: Any = [
    {"type": "function", "function": {key: tool[key] for key in tool if key != "type"}}
    for tool in TOOLS
]
"""As /v1/chat/completions takes them, and /api/chat."""
MESSAGES_TOOLS: Any = [
    {
        "name": tool["name"],
        "description": tool["description"],
        "input_schema": tool["parameters"],
    }
    for tool in TOOLS
]
"""As /v1/messages takes them."""
