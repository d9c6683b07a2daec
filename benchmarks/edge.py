"""What a streamed token costs between the engine and the socket: python -m quire.benchmarks.edge

The whole server with the demo model's tokenizer and scheduler, and a device that only says tokens
of a text, at once or some steps a second. Clients are another process, which counts events and
parses nothing. Told are, for each number of streams: CPU of the server for a token (all of
it: scheduler, detokenizing, JSON, framing, sockets), what is left of it without the engine, steps
a second that it kept, and tokens in an event; a server that falls behind puts more into one. What
the engine takes is measured in the same process: the same steps, of which nobody reads anything. An
empty loop of 100,000 iterations is timed beside, since the budget of 25 microseconds is for a
machine that takes 1.8 ms for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct, structs

from ..api.server import Server, ServerOptions, bind, settle_memory
from ..engine.async_engine import AsyncEngine
from ..engine.params import RequestOutputKind, SamplingParams
from ..engine.plan import StepPlan, StepResult
from ..engine.request import IntArray

STORY = (
    "Once upon a time there was a small fox named Ada. She lived near the river with her brother "
    "Tom, and every morning they went to look for berries. One day the berries were gone. "
)
LOOP_S = 1.8e-3
"""Of an empty loop of 100,000 iterations, where the budget is 25 microseconds."""
CLIENT = """
import asyncio, json, sys
host, port, streams, body = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()
async def one():
    reader, writer = await asyncio.open_connection(host, port, limit=2**20)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: bench\\r\\nContent-Type: "
        b"application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    events, tail = 0, b""
    while b"[DONE]" not in tail:
        data = await reader.read(2**16)
        if not data:
            raise SystemExit("a stream broke")
        events += data.count(b'"delta"')
        tail = tail[-16:] + data
    writer.close()
    return events
async def main():
    print(sum(await asyncio.gather(*(one() for _ in range(streams)))))
asyncio.run(main())
"""


class SayingExecutor:
    """An Executor that computes nothing: every sequence says the story, each from its own place."""

    def __init__(self, story: list[int], steps_per_s: float | None) -> None:
        """steps_per_s: None, and a step is done at once."""
        self._story = np.array(story, np.int32)
        self._every_s = None if steps_per_s is None else 1 / steps_per_s
        self._due_s = 0.0
        self.num_steps = 0
        self.num_tokens = 0

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """See Executor."""
        slots, positions = plan.sampled()
        tokens: IntArray = self._story[(slots * 7 + positions) % len(self._story)]
        self.num_steps += 1
        self.num_tokens += len(tokens)
        future: Future[StepResult] = Future()
        result = StepResult(plan.step, tokens)
        if self._every_s is None:
            future.set_result(result)
            return future
        now = time.perf_counter()
        self._due_s = max(now, self._due_s + self._every_s)
        asyncio.get_running_loop().call_later(self._due_s - now, future.set_result, result)
        return future

    def now(self) -> tuple[float, float, int, int]:
        """Tell seconds, seconds of CPU, steps and tokens so far."""
        return time.perf_counter(), time.process_time(), self.num_steps, self.num_tokens

    def abandon(self) -> None:
        """See Executor."""

    def close(self) -> None:
        """See Executor."""


class Figure(Struct):
    """One load."""

    streams: int
    steps_per_s: float | None
    """Of the device; None: as many as the server takes."""
    tokens: int
    cpu_us_per_token: float
    """Of the whole process,"""
    engine_us_per_token: float
    """and where nobody reads and nothing becomes text."""
    kept_steps_per_s: float
    tokens_per_event: float
    loop_ms: float

    @property
    def scaled_us(self) -> float:
        """Microseconds for a token on a machine whose empty loop takes 1.8 ms."""
        return self.cpu_us_per_token * self._scale

    @property
    def scaled_edge_us(self) -> float:
        """The same without the engine: detokenizing, JSON, framing, sockets."""
        return (self.cpu_us_per_token - self.engine_us_per_token) * self._scale

    @property
    def _scale(self) -> float:
        return LOOP_S * 1e3 / self.loop_ms


class Spent(NamedTuple):
    """On some steps of all streams."""

    tokens: int
    cpu_us_per_token: float
    steps_per_s: float


def empty_loop_s() -> float:
    """Seconds of CPU of 100,000 iterations of nothing, the least of some."""
    found = []
    for _ in range(20):
        began = time.process_time()
        for _ in range(100_000):
            pass
        found.append(time.process_time() - began)
    return min(found)


async def until(true: Callable[[], bool]) -> None:
    """Wait, and look seldom: a look is time of the server's."""
    async with asyncio.timeout(600):
        looks = asyncio.Event()
        while not true():
            asyncio.get_running_loop().call_later(0.02, looks.set)
            await looks.wait()
            looks.clear()


@contextlib.asynccontextmanager
async def serving(streams: int) -> AsyncIterator[tuple[AsyncEngine, Server]]:
    """A server with room for all streams at once."""
    engine = AsyncEngine(
        served_model_name="demo",
        max_num_seqs=streams,
        num_kv_blocks=streams * 40,
        max_num_batched_tokens=8192,
        num_threads=1,
    )
    server = Server(engine, ServerOptions(port=0))
    await engine.start()
    await server.start(bind("127.0.0.1", 0))
    settle_memory()
    try:
        yield engine, server
    finally:
        gc.unfreeze()
        await engine.stop()
        await server.stop()


async def measure(streams: int, steps_per_s: float | None, num_tokens: int) -> Figure:
    """Stream num_tokens to each of some clients."""
    loop_s = empty_loop_s()
    async with serving(streams) as (engine, server):
        story = engine.tokenizer.encode(STORY, add_special_tokens=False)
        core = engine.front.core
        core.rest().close()
        executor = SayingExecutor(story, steps_per_s)
        core.resume(executor)
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        host, port = server.url.removeprefix("http://").split(":")
        arguments = (host, port, str(streams), json.dumps(body))
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, *arguments, stdout=subprocess.PIPE
        )
        spent = await spend(engine, executor, streams)
        told, _ = await client.communicate()
        assert client.returncode == 0, client.returncode
        tokens_per_event = executor.num_tokens / int(told)
        await until(lambda: not engine.num_unfinished)
        params = SamplingParams(
            max_tokens=num_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        alone = SayingExecutor(story, steps_per_s)
        core.rest()
        core.resume(alone)
        prepared = [await engine.prepare(story, params) for _ in range(streams)]
        readings = [engine.read(one, lambda: None) for one in prepared]
        unread = await spend(engine, alone, streams)
        for reading in readings:
            reading.close()
    return Figure(
        streams=streams,
        steps_per_s=steps_per_s,
        tokens=spent.tokens,
        cpu_us_per_token=spent.cpu_us_per_token,
        engine_us_per_token=unread.cpu_us_per_token,
        kept_steps_per_s=spent.steps_per_s,
        tokens_per_event=tokens_per_event,
        loop_ms=1e3 * (loop_s + empty_loop_s()) / 2,
    )


async def spend(engine: AsyncEngine, executor: SayingExecutor, streams: int) -> Spent:
    """Count from the first token of each stream until half of them have ended."""
    # Requests are read and prompts rendered before the time counts.
    await until(lambda: executor.num_tokens >= streams)
    start = executor.now()
    await until(lambda: engine.num_unfinished <= streams // 2)
    wall_s, cpu_s, steps, tokens = (b - a for a, b in zip(start, executor.now(), strict=True))
    return Spent(int(tokens), cpu_s / tokens * 1e6, steps / wall_s)


def main() -> int:
    """Print a line for each load."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=300, help="of each stream")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kept = []
    for streams, steps_per_s in ((1, None), (16, None), (256, None), (256, 30.0), (1024, 30.0)):
        runs = [
            asyncio.run(measure(streams, steps_per_s, options.tokens)) for _ in range(options.runs)
        ]
        figure = sorted(runs, key=lambda one: one.cpu_us_per_token)[len(runs) // 2]
        scaled = {"scaled_us": figure.scaled_us, "scaled_edge_us": figure.scaled_edge_us}
        kept.append({**structs.asdict(figure), **scaled})
        pace = "at once" if steps_per_s is None else f"{steps_per_s:g} steps/s"
        print(
            f"{streams:5} streams, {pace:10} {figure.cpu_us_per_token:6.1f} us a token, "
            f"{figure.scaled_us:5.1f} where a loop takes 1.8 ms (here {figure.loop_ms:.2f}), "
            f"{figure.scaled_edge_us:5.1f} without the engine; "
            f"kept {figure.kept_steps_per_s:6.1f} steps/s, "
            f"{figure.tokens_per_event:.2f} tokens an event"
        )
    medians = statistics.median(one["loop_ms"] for one in kept)
    if options.json is not None:
        text = json.dumps({"loop_ms": medians, "loads": kept}, indent=1)
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
