"""What a program with litellm asks a server, told as JSON: `litellm_client.py URL MODEL`.

A process of its own, as the package leaves sockets and a loop open, and takes seconds to import.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import sys
from typing import Any, Literal

import httpx
from pydantic import BaseModel

MESSAGES: Any = [{"role": "user", "content": "What is 3 + 4?"}]
PLAIN: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 40, "temperature": 0}
MANY = 1900
DIALECTS = ("openai", "hosted_vllm", "anthropic", "ollama_chat")
TEXTS = ["the cat", "on the mat"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"type": "string", "maxLength": 20}},
    "required": ["at"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
NAMED = {"type": "function", "function": {"name": "look"}}
CHOICES: dict[str, Any] = {"named": NAMED, "required": "required"}
FORM = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
WRONG: dict[str, dict[str, Any]] = {
    "model": {"model": "openai/gpt"},
    "temperature": {"temperature": 1e300},
    "max_tokens": {"max_tokens": 10**6},
    "nothing": {"extra_body": {"nothing": 1}},
}


class Pet(BaseModel):
    """A class as the form of an answer."""

    kind: Literal["cat", "fox"]
    old: bool


class Program:
    """Asks one server for one model."""

    def __init__(self, url: str, model: str, use: str) -> None:
        """use: a Use of tool_uses.py and the tools that are there, as JSON."""
        self._url = url
        self._model = model
        package: Any = importlib.import_module("litellm")
        package.suppress_debug_info = True
        self._litellm = package
        self._use: dict[str, Any] = json.loads(use)

    def run(self) -> dict[str, Any]:
        """Ask everything."""
        return {
            "chats": {dialect: self._chat(dialect) for dialect in DIALECTS},
            "calls": {name: self._call(choice) for name, choice in CHOICES.items()},
            "form": self._ask(response_format=FORM).choices[0].message.content,
            "pets": [self._parse(stream=stream) for stream in (False, True)],
            "used": {dialect: self._answer(dialect) for dialect in DIALECTS},
            "errors": {name: self._error(**given) for name, given in WRONG.items()},
            "left": self._leave(),
            "cancelled": asyncio.run(self._cancel()),
            "embedding": self._embed(),
            "ranked": self._rank(),
        }

    def _ask(self, dialect: str = "openai", **given: Any) -> Any:
        return self._litellm.completion(**self._asked(dialect, **given))

    def _asked(self, dialect: str, **given: Any) -> dict[str, Any]:
        base = self._url if dialect in ("anthropic", "ollama_chat") else f"{self._url}/v1"
        given = {"model": f"{dialect}/{self._model}", **PLAIN, "api_base": base, **given}
        return {"api_key": "none", "num_retries": 0, "max_retries": 0, **given}

    def _chat(self, dialect: str) -> dict[str, Any]:
        whole = self._ask(dialect)
        pieces = [one.choices[0].delta.content or "" for one in self._ask(dialect, stream=True)]
        return {
            "whole": whole.choices[0].message.content,
            "reason": whole.choices[0].finish_reason,
            "tokens": whole.usage.completion_tokens,
            "pieces": pieces,
        }

    def _call(self, choice: Any) -> list[list[str]]:
        """The calls, whole and of a stream."""
        given = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
        whole = self._ask(**given, max_tokens=100)
        chunks = list(self._ask(**given, max_tokens=100, stream=True))
        built = self._litellm.stream_chunk_builder(chunks, messages=MESSAGES)
        return [
            [call.function.name, call.function.arguments]
            for answer in (whole, built)
            for call in answer.choices[0].message.tool_calls
        ]

    def _parse(self, *, stream: bool) -> str:
        """The text of an answer whose form is a class."""
        answer = self._ask(response_format=Pet, stream=stream)
        if stream:
            answer = self._litellm.stream_chunk_builder(list(answer), messages=MESSAGES)
        return str(answer.choices[0].message.content)

    def _answer(self, dialect: str) -> list[Any]:
        """What the model calls, and what it answers from the result."""
        use = self._use
        messages: list[Any] = [{"role": "user", "content": use["question"]}]
        given: Any = {"messages": messages, "tools": use["tools"], "max_tokens": 100}
        message = self._ask(dialect, **given).choices[0].message
        (call,) = message.tool_calls
        messages += [
            message.model_dump(),
            {"role": "tool", "tool_call_id": call.id, "content": use["result"]},
        ]
        answer = self._ask(dialect, **given).choices[0].message.content
        return [call.function.name, json.loads(call.function.arguments), answer]

    def _error(self, **given: Any) -> list[list[str]]:
        """Classes and messages, of a whole answer and of a stream."""
        told = []
        for stream in (False, True):
            try:
                list(self._ask(**given, stream=stream))
            except Exception as error:  # which one is what is asked here
                told.append([type(error).__name__, str(error)])
        return told

    def _leave(self) -> float:
        """Leave a stream at its beginning; return how many tokens were made for it."""
        before = self._read("metrics", r"quire:generation_tokens_total\S* ([0-9.]+)")
        stream = self._ask(stream=True, max_tokens=MANY, extra_body={"ignore_eos": True})
        while not next(stream).choices[0].delta.content:
            pass
        stream.completion_stream.close()
        while self._is_busy():
            pass
        return self._read("metrics", r"quire:generation_tokens_total\S* ([0-9.]+)") - before

    async def _cancel(self) -> bool:
        """Cancel what waits for a whole answer."""
        asked = self._asked("openai", max_tokens=MANY, extra_body={"ignore_eos": True})
        task = asyncio.create_task(self._litellm.acompletion(**asked))
        while not await asyncio.to_thread(self._is_busy):
            pass
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    def _is_busy(self) -> bool:
        return self._read("load", r":\s*([0-9]+)") > 0

    def _read(self, path: str, pattern: str) -> float:
        (number,) = re.findall(pattern, httpx.get(f"{self._url}/{path}").text)
        return float(number)

    def _embed(self) -> list[list[float]]:
        base = f"{self._url}/v1"
        name = f"openai/{self._model}"
        found = self._litellm.embedding(name, input=TEXTS, api_base=base, api_key="none")
        return [one["embedding"] for one in found.data]

    def _rank(self) -> list[list[float]]:
        ranked = self._litellm.rerank(
            f"hosted_vllm/{self._model}",
            query=TEXTS[0],
            documents=TEXTS,
            api_base=f"{self._url}/v1",
            api_key="none",
        )
        return [[one["index"], one["relevance_score"]] for one in ranked.results]


if __name__ == "__main__":
    # It asks the network for prices otherwise.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    told = Program(*sys.argv[1:]).run()
    sys.stdout.write(f"\n{json.dumps(told)}\n")
