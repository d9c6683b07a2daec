"""What a program with instructor asks a server, told as JSON: `instructor_client.py URL MODEL`."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any, Literal

import openai
from pydantic import BaseModel, ConfigDict, Field

MODES = ("JSON_SCHEMA", "TOOLS")


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat", "fox"]
    name: str = Field(max_length=8)
    old: bool


def main(url: str, model: str) -> dict[str, Any]:
    """Ask everything."""
    instructor: Any = importlib.import_module("instructor")
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Tell me of a pet."}],
        "response_model": Pet,
        "max_tokens": 200,
        "temperature": 0,
    }
    told: dict[str, Any] = {"pets": {}, "partial": {}, "errors": {}}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as plain:
        for mode in MODES:
            client = instructor.from_openai(plain, mode=getattr(instructor.Mode, mode))
            pet = client.chat.completions.create(model=model, max_retries=0, **asked)
            told["pets"][mode] = pet.model_dump()
            parts = client.chat.completions.create_partial(model=model, **asked)
            told["partial"][mode] = [part.model_dump() for part in parts]
        for name, wrong in (("model", "gpt"), ("temperature", model)):
            given = asked | ({"temperature": 1e300} if name == "temperature" else {})
            try:
                client.chat.completions.create(model=wrong, max_retries=0, **given)
            except Exception as error:  # which one is what is asked here
                told["errors"][name] = [type(error.__cause__).__name__, str(error)]
    return told


if __name__ == "__main__":
    sys.stdout.write(f"\n{json.dumps(main(*sys.argv[1:]))}\n")
