"""Load on a running server: python -m quire.benchmarks.serving --url http://127.0.0.1:8000

Sends streamed completions of random words and prints time to first token, time between tokens,
whole time (percentiles, milliseconds) and throughput, as a client sees them. Knows HTTP only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

WORDS = "the a cat dog king river one two small old went saw gave said and then but home".split()  # noqa: SIM905
PERCENTILES = (50, 90, 99)


@dataclass(slots=True, eq=False)
class Sample:
    """One request as its client saw it. Times in seconds."""

    sent_s: float
    arrivals_s: list[float] = field(default_factory=list)
    """Of every chunk with text."""
    ended_s: float = 0.0
    num_prompt: int = 0
    num_output: int = 0
    error: str | None = None


def make_prompt(rng: random.Random, num_words: int) -> str:
    """Random words, about one token each."""
    return " ".join(rng.choices(WORDS, k=num_words))


async def send(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> Sample:
    """Stream one completion."""
    sample = Sample(time.perf_counter())
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                sample.error = f"{response.status}: {await response.text()}"
                return sample
            async for line in response.content:
                if line.startswith(b"data: {"):
                    _read(sample, json.loads(line[6:]), time.perf_counter())
    except aiohttp.ClientError as error:
        sample.error = f"{type(error).__name__}: {error}"
    sample.ended_s = time.perf_counter()
    return sample


def _read(sample: Sample, chunk: dict[str, object], now_s: float) -> None:
    match chunk:
        case {"error": {"message": message}}:
            sample.error = str(message)
        case {"usage": {"prompt_tokens": int(prompt), "completion_tokens": int(output)}}:
            sample.num_prompt, sample.num_output = prompt, output
        case {"choices": [_, *_]}:
            sample.arrivals_s.append(now_s)


async def run(options: argparse.Namespace) -> tuple[list[Sample], float]:
    """Send all requests; return what became of them and the seconds it took."""
    rng = random.Random(options.seed)
    shared = make_prompt(rng, options.shared_len)
    limit = asyncio.Semaphore(options.concurrency)
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}

    async def one(session: aiohttp.ClientSession, index: int, due_s: float) -> Sample:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        own = make_prompt(random.Random(f"{options.seed}-{index}"), options.input_len)
        body: dict[str, object] = {
            "prompt": f"{shared} {own}".strip(),
            "max_tokens": options.output_len,
            "temperature": options.temperature,
            "seed": index,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with limit:
            return await send(session, options.url, body)

    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=connector, headers=headers
    ) as session:
        due_s = began_s = time.perf_counter()
        tasks = []
        for index in range(options.num_prompts):
            tasks.append(asyncio.create_task(one(session, index, due_s)))
            if options.request_rate:
                due_s += rng.expovariate(options.request_rate)
        samples = await asyncio.gather(*tasks)
        return samples, time.perf_counter() - began_s


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def report(samples: Sequence[Sample], took_s: float) -> dict[str, float]:
    """Figures of a run; times in milliseconds."""
    good = [sample for sample in samples if sample.error is None and sample.arrivals_s]
    num_output = sum(sample.num_output for sample in good)
    figures = {
        "requests": float(len(good)),
        "failed": float(len(samples) - len(good)),
        "seconds": took_s,
        "requests_per_s": len(good) / took_s,
        "output_tokens_per_s": num_output / took_s,
        "total_tokens_per_s": (num_output + sum(one.num_prompt for one in good)) / took_s,
    }
    times = {
        "ttft_ms": [one.arrivals_s[0] - one.sent_s for one in good],
        "itl_ms": [
            late - early
            for one in good
            for early, late in zip(one.arrivals_s, one.arrivals_s[1:], strict=False)
        ],
        "e2e_ms": [one.ended_s - one.sent_s for one in good],
    }
    for name, values in times.items():
        for percent in PERCENTILES:
            figures[f"{name}_p{percent}"] = (
                1e3 * percentile(values, percent) if values else math.nan
            )
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load and print its figures."""
    parser = argparse.ArgumentParser(description="Load on a running server.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=16, help="most requests at once")
    parser.add_argument("--request-rate", type=float, help="a second, Poisson; default: at once")
    parser.add_argument("--input-len", type=int, default=64, help="words of a prompt")
    parser.add_argument("--shared-len", type=int, default=0, help="words that all begin with")
    parser.add_argument("--output-len", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    samples, took_s = asyncio.run(run(options))
    figures = report(samples, took_s)
    for name, value in figures.items():
        print(f"{name:>20} {value:12.2f}")
    for error in sorted({sample.error for sample in samples if sample.error is not None})[:5]:
        print(f"error: {error}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
