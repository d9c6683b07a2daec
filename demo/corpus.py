"""The demo model's synthetic corpus: chats and raw stories for training, held-out prompts.

Everything is drawn from one seed. A chat is rendered by the model's own chat template, so the
model learns exactly the text that it meets when it is served.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from . import tasks, words
from .smalltalk import chat
from .stories import make_story
from .tasks import Exchange
from .tools import draw_offer, refused_exchange, tool_exchange

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
MARKUP = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TEMPLATE_PATH = Path(__file__).parent / "chat_template.jinja"
MAX_CHARACTERS = 1900

Draw = Callable[[random.Random, bool], Exchange]

# Each task with the number of its exchanges drawn at once and its share of the draws.
CHAT_TASKS: tuple[tuple[str, Draw, tuple[int, ...], int], ...] = (
    ("tell a story", tasks.tell_story, (1,), 16),
    ("finish a story", tasks.finish_story, (1,), 12),
    ("question about a story", tasks.question_story, (1,), 6),
    ("sum of two numbers", tasks.do_sum, (1, 2, 3, 4), 14),
    ("list of sums", tasks.list_sums, (1,), 14),
    ("unit conversion", tasks.convert_units, (1, 2, 3), 5),
    ("fields as JSON", tasks.extract_fields, (1, 2), 9),
    ("small talk (recall a name)", chat, (1, 1, 2, 3), 9),
)


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt that training never shows, and what a right answer is.

    A story has no single right answer: `facts` names what its telling must keep to.
    """

    task: str
    prompt: str
    expected: str
    facts: dict[str, str] = field(default_factory=dict)


class ChatRenderer:
    """Renders chats with the model's chat template, as engines that load the model do."""

    def __init__(self) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(TEMPLATE_PATH.read_text())

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return the text of a chat."""
        return self._template.render(
            messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
        )


def _system_prompt(rng: random.Random) -> str:
    """Draw a system prompt; none of them changes what the assistant does."""
    role = rng.choice(("assistant", "assistant", "model", "storyteller", "helper", "chatbot"))
    return rng.choice(
        (
            "You are a helpful assistant.",
            "You are the demo model of Quire.",
            f"You are a {rng.choice(words.TRAITS)} {role}.",
            f"You are a {rng.choice(words.TRAITS)} {role} named {words.pick_name(rng)}.",
            f"You are a helpful {role}. Answer briefly.",
            f"You are a {role}. Use the tools if you need them.",
            "Answer briefly.",
        )
    )


def _draw_chat(rng: random.Random, renderer: ChatRenderer) -> str:
    """Draw a chat of one or several exchanges, a third of the chats with tools on offer."""
    offer = draw_offer(rng) if rng.random() < 0.4 else []
    kinds = {tool.kind for tool in offer}
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.2:
        messages.append({"role": "system", "content": _system_prompt(rng)})
    num_segments = rng.choice((1, 1, 1, 1, 2, 2, 3, 5))
    for segment_index in range(num_segments):
        if offer and (segment_index == 0 or rng.random() < 0.5) and rng.random() < 0.85:
            refuse = rng.random() < 0.07
            messages += refused_exchange(rng, offer) if refuse else tool_exchange(rng, offer, False)
        elif not offer and rng.random() < 0.02:
            messages += refused_exchange(rng, [])
        else:
            possible = [
                task for task in CHAT_TASKS if "add" not in kinds or task[1] != tasks.do_sum
            ]
            weights = [task[3] for task in possible]
            _, draw, counts, _ = rng.choices(possible, weights)[0]
            for _ in range(rng.choice(counts)):
                messages += draw(rng, False).messages
    return renderer.render(messages, [tool.schema() for tool in offer] or None)


def training_texts(seed: int, num_texts: int) -> Iterator[str]:
    """Yield the corpus: chats, and raw stories that close with the end token."""
    rng = random.Random(seed)
    renderer = ChatRenderer()
    num_yielded = 0
    while num_yielded < num_texts:
        if rng.random() < 0.18:
            text = make_story(rng, held_out=False).text + END_OF_TEXT
        else:
            text = _draw_chat(rng, renderer)
        if len(text) <= MAX_CHARACTERS:
            num_yielded += 1
            yield text


def _raw_story_prompt(rng: random.Random) -> HeldOutPrompt:
    """Draw the beginning of a raw story; the model is to end it."""
    story = make_story(rng, held_out=True)
    begun, facts = story.beginning(rng.choice((0, 1, 2)))
    return HeldOutPrompt("finish a story (raw text)", begun, "", facts)


def _chat_prompts(
    task: str, exchange: Exchange, renderer: ChatRenderer, tools: list[dict[str, Any]] | None = None
) -> Iterator[HeldOutPrompt]:
    """Yield a prompt for the last of an exchange's answers, or for each if tools are called."""
    messages = exchange.messages
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if tools is None and index != len(messages) - 1:
            continue
        prompt = renderer.render(messages[:index], tools, add_generation_prompt=True)
        expected = renderer.render(messages[: index + 1], tools)[len(prompt) :]
        is_call = "tool_calls" in message
        suffix = "" if tools is None else (": call" if is_call else ": answer from result")
        expected = expected.removesuffix(f"{TURN_END}\n")
        yield HeldOutPrompt(task + suffix, prompt, expected, exchange.facts)


def held_out_prompts(seed: int, num_per_task: int) -> list[HeldOutPrompt]:
    """Draw the held-out prompts of every task."""
    rng = random.Random(seed)
    renderer = ChatRenderer()
    prompts: list[HeldOutPrompt] = []
    for _ in range(num_per_task):
        prompts.append(_raw_story_prompt(rng))
        offer = draw_offer(rng)
        exchange = Exchange(tool_exchange(rng, offer, held_out=True))
        schemas = [tool.schema() for tool in offer]
        prompts += _chat_prompts("use a tool", exchange, renderer, schemas)
        for task, draw, _, _ in CHAT_TASKS:
            prompts += _chat_prompts(task, draw(rng, True), renderer)
    return prompts
