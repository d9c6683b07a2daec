"""How far a 5 ms heartbeat slips in an application's loop while the engine computes in its process.

The application awaits `asyncio.sleep` for each beat; a slip is how late the beat comes. The same
beats are measured first in the idle loop, since a busy machine makes a loop late without any
engine.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ..engine.async_engine import AsyncEngine
from ..engine.params import RequestOutputKind, SamplingParams
from .offline import make_transformers

BEAT_S = 0.005


async def beat(slips_ms: list[float], stop: asyncio.Event) -> None:
    """Append the lateness of every beat until stop is set."""
    due = time.perf_counter()
    while not stop.is_set():
        due += BEAT_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        slips_ms.append((now - due) * 1e3)
        due = max(due, now - BEAT_S)


def describe(name: str, slips_ms: list[float]) -> None:
    """Print median, 99th percentile and maximum."""
    ordered = sorted(slips_ms)
    median, high = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    print(
        f"{name:28} {len(ordered):6} beats, slip median {median:6.2f} ms, "
        f"p99 {high:6.2f} ms, max {ordered[-1]:6.2f} ms"
    )


async def measure(folder: str | None, num_requests: int, num_prompt: int, num_output: int) -> None:
    """Beat in the idle loop, then while num_requests are answered."""
    options: dict[str, Any] = {"model": folder, "load_format": "dummy", "skip_tokenizer_init": True}
    async with AsyncEngine(**(options if folder else {}), num_threads=1) as engine:
        params = SamplingParams(
            temperature=1.0,
            top_p=0.95,
            max_tokens=num_output,
            ignore_eos=True,
            detokenize=not folder,
            output_kind=RequestOutputKind.DELTA,
        )

        async def ask(index: int) -> None:
            prompt = [(7 * index + place * place) % 1000 + 1 for place in range(num_prompt)]
            async for _ in engine.generate(prompt, params):
                pass

        for name, count in (("idle loop", 0), (f"{num_requests} requests", num_requests)):
            slips_ms: list[float] = []
            stop = asyncio.Event()
            heart = asyncio.create_task(beat(slips_ms, stop))
            if count:
                await asyncio.gather(*(ask(index) for index in range(count)))
            else:
                await asyncio.sleep(2.0)
            stop.set()
            await heart
            describe(name, slips_ms)


def main() -> None:
    """Measure on the bundled demo model, then on the ~125 M-parameter shape with random weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    options = parser.parse_args()
    print("demo model, 200 tokens in, 100 out")
    asyncio.run(measure(None, options.requests, 200, 100))
    print("125 M parameters, 1,024 tokens in, 16 out")
    with tempfile.TemporaryDirectory() as folder:
        make_transformers(Path(folder), torch.bfloat16)
        asyncio.run(measure(folder, options.requests // 8, 1024, 16))


if __name__ == "__main__":
    main()
