"""What a program with instructor asks a server, told as JSON: `instructor_client.py URL MODEL`."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any, Literal

import httpx
import openai
from pydantic import BaseModel, ConfigDict, Field

MESSAGES: Any = [{"role": "user", "content": "Tell me of a pet."}]
MODES = ("JSON_SCHEMA", "TOOLS")


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat", "fox"]
    name: str = Field(max_length=8)
    old: bool


class Pets(BaseModel):
    """So many that it takes long."""

    pets: list[Literal["cat", "fox"]] = Field(min_length=400)


async def cancel(instructor: Any, url: str, asked: dict[str, Any], mode: str) -> list[bool]:
    """Cancel what waits for a whole answer, and what reads one that grows, once each has begun."""
    given = asked | {"response_model": Pets, "max_tokens": 1900}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as plain:
        client = instructor.from_openai(plain, mode=getattr(instructor.Mode, mode))

        async def wait() -> None:
            await client.chat.completions.create(max_retries=0, **given)

        async def read() -> None:
            async for _ in client.chat.completions.create_partial(max_retries=0, **given):
                pass

        def load() -> int:
            return int(httpx.get(f"{url}/load").json()["server_load"])

        told = []
        for work in (wait, read):
            task = asyncio.create_task(work())
            while not await asyncio.to_thread(load):
                pass
            task.cancel()
            await asyncio.wait([task])
            told.append(task.cancelled())
            while await asyncio.to_thread(load):
                pass
    return told


def main(url: str, model: str) -> dict[str, Any]:
    """Ask everything."""
    instructor: Any = importlib.import_module("instructor")
    asked: dict[str, Any] = {
        "model": model,
        "messages": MESSAGES,
        "response_model": Pet,
        "max_tokens": 200,
        "temperature": 0,
    }
    told: dict[str, Any] = {"pets": {}, "partial": {}, "errors": {}, "cancelled": {}}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as plain:
        for mode in MODES:
            client = instructor.from_openai(plain, mode=getattr(instructor.Mode, mode))
            pet = client.chat.completions.create(max_retries=0, **asked)
            told["pets"][mode] = pet.model_dump()
            parts = client.chat.completions.create_partial(**asked)
            told["partial"][mode] = [part.model_dump() for part in parts]
            plainly = asked | {"response_model": None}
            told["plain"] = [
                client.chat.completions.create(**plainly).choices[0].message.content,
                "".join(
                    chunk.choices[0].delta.content or ""
                    for chunk in client.chat.completions.create(stream=True, **plainly)
                ),
            ]
            told["cancelled"][mode] = asyncio.run(cancel(instructor, url, asked, mode))
        for name, wrong in (("model", "gpt"), ("temperature", 1e300)):
            try:
                client.chat.completions.create(max_retries=0, **{**asked, name: wrong})
            except Exception as error:  # which one is what is asked here
                told["errors"][name] = [type(error.__cause__).__name__, str(error)]
    return told


if __name__ == "__main__":
    sys.stdout.write(f"\n{json.dumps(main(*sys.argv[1:]))}\n")
