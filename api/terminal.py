"""Chat in the terminal: one conversation with one engine, answers streamed as they come.

The engine's loop runs only while an answer is generated; reading a line blocks this thread and
nothing else. Ctrl-C stops an answer, Ctrl-D leaves.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TextIO

from msgspec.structs import replace

from ..engine.config import EngineConfig
from ..engine.errors import EngineError, ParamsError
from ..engine.params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from ..engine.async_engine import AsyncEngine

PROMPT = ">>> "
GREETING = "Ctrl-C stops an answer, Ctrl-D leaves, /reset begins anew."


class Conversation:
    """The messages so far. A failed turn leaves no trace; a stopped one keeps what was said."""

    def __init__(self, engine: AsyncEngine, params: SamplingParams, system: str | None) -> None:
        self._engine = engine
        self._params = replace(params, output_kind=RequestOutputKind.DELTA)
        self._system = system
        self._messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    async def ask(self, text: str, out: TextIO) -> None:
        """Answer a line on `out`. ParamsError if it does not fit, EngineError if it fails."""
        messages = [*self._messages, {"role": "user", "content": text}]
        engine = self._engine
        prompt = engine.chat_input(messages)
        pieces: list[str] = []
        try:
            async with aclosing(engine.generate(prompt, self._params)) as outputs:
                async for output in outputs:
                    if output.error is not None:
                        raise EngineError(output.error)
                    pieces.append(output.outputs[0].text)
                    out.write(pieces[-1])
                    out.flush()
        finally:
            out.write("\n")
            out.flush()
            if pieces:
                answer = {"role": "assistant", "content": "".join(pieces)}
                self._messages = [*messages, answer]


def chat(config: EngineConfig, params: SamplingParams, system: str | None) -> int:
    """Talk until the input ends; return the exit code. ConfigError if the model cannot be had."""
    from ..engine.async_engine import AsyncEngine

    with asyncio.Runner() as runner:
        engine = AsyncEngine(config)
        runner.run(engine.start())
        try:
            conversation = Conversation(engine, params, system)
            if sys.stdin.isatty():
                _talk(runner, conversation)
                return 0
            line = sys.stdin.read().strip()
            return _turn(runner, conversation, line) if line else 0
        finally:
            runner.run(engine.stop())


def _talk(runner: asyncio.Runner, conversation: Conversation) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  # gives input() its line editing

    sys.stdout.write(GREETING + "\n")
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            continue
        if line == "/reset":
            conversation.reset()
        elif line in {"/exit", "/quit", "/bye"}:
            return
        elif line:
            _turn(runner, conversation, line)


def _turn(runner: asyncio.Runner, conversation: Conversation, line: str) -> int:
    """Answer one line; return 1 if that failed. Ctrl-C cancels it through the runner."""
    try:
        runner.run(conversation.ask(line, sys.stdout))
    except KeyboardInterrupt:
        return 130
    except (ParamsError, EngineError) as error:
        sys.stderr.write(f"quire: {error}\n")
        return 1
    return 0
