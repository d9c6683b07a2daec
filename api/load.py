"""Load on a running server that speaks OpenAI's API: `quire bench`.

Sends streamed requests of random words, at once or as a Poisson process, and prints time to first
token, time between tokens, whole time (percentiles, milliseconds) and throughput, as a client sees
them. Knows HTTP only. Tokens are what the server counts; an event may bring several.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from .load_options import ENDPOINTS, add_load_options
from .pictures import PERCENTS, bar_panel, picture, quantile_panel

WORDS = "the a cat dog king river one two small old went saw gave said and then but home".split()  # noqa: SIM905
PERCENTILES = (50, 90, 99)
NUM_BARS = 60
Clock = Callable[[], float]


@dataclass(slots=True, eq=False)
class Sample:
    """One request as its client saw it. Times in seconds."""

    sent_s: float
    arrivals_s: list[float] = field(default_factory=list)
    """Of every event with text."""
    ended_s: float = 0.0
    num_prompt: int = 0
    num_output: int = 0
    error: str | None = None


def make_prompt(rng: random.Random, num_words: int) -> str:
    """Random words, about one token each."""
    return " ".join(rng.choices(WORDS, k=num_words))


def make_body(options: argparse.Namespace, model: str, text: str, seed: int) -> dict[str, Any]:
    """Make a request for an answer of one length."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": options.output_len,
        "temperature": options.temperature,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        body["ignore_eos"] = True
    if options.endpoint == "chat":
        return body | {"messages": [{"role": "user", "content": text}]}
    return body | {"prompt": text}


async def send(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], clock: Clock
) -> Sample:
    """Stream one answer."""
    sample = Sample(clock())
    try:
        async with session.post(url, json=body) as response:
            if response.status != 200:
                sample.error = f"{response.status}: {await response.text()}"
                return sample
            async for line in response.content:
                if line.startswith(b"data: {"):
                    read_event(sample, json.loads(line[6:]), clock())
    except (aiohttp.ClientError, ValueError) as error:
        sample.error = f"{type(error).__name__}: {error}"
    sample.ended_s = clock()
    return sample


def read_event(sample: Sample, event: Any, now_s: float) -> None:
    """Note what an event brings: text, usage, or an error."""
    if "error" in event:
        sample.error = str(event["error"].get("message"))
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
            sample.arrivals_s.append(now_s)
            break
    usage = event.get("usage")
    if usage:
        sample.num_prompt, sample.num_output = usage["prompt_tokens"], usage["completion_tokens"]


async def run(options: argparse.Namespace, clock: Clock) -> tuple[list[Sample], float]:
    """Send all requests; return what became of them and the seconds it took."""
    rng = random.Random(options.seed)
    shared = make_prompt(rng, options.shared_len)
    limit = asyncio.Semaphore(options.concurrency)
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    url = options.url.rstrip("/").removesuffix("/v1")

    async def one(session: aiohttp.ClientSession, model: str, index: int, due_s: float) -> Sample:
        await asyncio.sleep(max(0.0, due_s - clock()))
        own = make_prompt(random.Random(f"{options.seed}-{index}"), options.input_len)
        body = make_body(options, model, f"{shared} {own}".strip(), index)
        async with limit:
            return await send(session, url + ENDPOINTS[options.endpoint], body, clock)

    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=connector, headers=headers
    ) as session:
        model = options.model or await first_model(session, url)
        due_s = began_s = clock()
        tasks = []
        for index in range(options.num_prompts):
            tasks.append(asyncio.create_task(one(session, model, index, due_s)))
            if options.request_rate:
                due_s += rng.expovariate(options.request_rate)
        samples = await asyncio.gather(*tasks)
        return samples, clock() - began_s


async def first_model(session: aiohttp.ClientSession, url: str) -> str:
    """Ask the server what it has."""
    async with session.get(f"{url}/v1/models") as response:
        response.raise_for_status()
        name: str = (await response.json())["data"][0]["id"]
        return name


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def times_of(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Collect the times of good requests, in milliseconds. An answer may have no text.

    tpot: from the first token to the last, by token; itl: between events.
    """
    ended = [one for one in samples if one.error is None]
    good = [one for one in ended if one.arrivals_s]
    between = (
        late - early
        for one in good
        for early, late in zip(one.arrivals_s, one.arrivals_s[1:], strict=False)
    )
    seconds = {
        "ttft": [one.arrivals_s[0] - one.sent_s for one in good],
        "tpot": [
            (one.arrivals_s[-1] - one.arrivals_s[0]) / (one.num_output - 1)
            for one in good
            if one.num_output > 1
        ],
        "itl": list(between),
        "e2e": [one.ended_s - one.sent_s for one in ended],
    }
    return {name: [1e3 * value for value in values] for name, values in seconds.items()}


def report(samples: Sequence[Sample], took_s: float) -> dict[str, float]:
    """Figures of a run; times in milliseconds."""
    good = [one for one in samples if one.error is None]
    num_output, num_events = sum(one.num_output for one in good), sum(map(_num_events, good))
    figures = {
        "requests": float(len(good)),
        "failed": float(len(samples) - len(good)),
        "seconds": took_s,
        "requests_per_s": len(good) / took_s,
        "output_tokens_per_s": num_output / took_s,
        "total_tokens_per_s": (num_output + sum(one.num_prompt for one in good)) / took_s,
        "tokens_per_event": num_output / num_events if num_events else math.nan,
    }
    for name, values in times_of(samples).items():
        for percent in PERCENTILES:
            figures[f"{name}_ms_p{percent}"] = percentile(values, percent) if values else math.nan
    return figures


def draw(samples: Sequence[Sample], took_s: float, title: str) -> str:
    """Draw times by percentile, and events over the run, as SVG."""
    curves = {
        name: [percentile(values, percent) for percent in PERCENTS]
        for name, values in times_of(samples).items()
        if values
    }
    first_s = min((one.sent_s for one in samples), default=0.0)
    counts = [0.0] * NUM_BARS
    for one in samples:
        for arrival_s in one.arrivals_s:
            counts[min(NUM_BARS - 1, int((arrival_s - first_s) / took_s * NUM_BARS))] += 1
    rates = [count / (took_s / NUM_BARS) for count in counts]
    panels = [
        quantile_panel("milliseconds by percentile", curves),
        bar_panel("events a second, over the run", rates, ranked=False),
    ]
    return picture(title, panels)


def _num_events(sample: Sample) -> int:
    return len(sample.arrivals_s)


def bench(options: argparse.Namespace) -> int:
    """Run the load and print its figures; 1 where a request failed or no server is there."""
    try:
        samples, took_s = asyncio.run(run(options, time.perf_counter))
    except (aiohttp.ClientError, ValueError) as error:
        print(f"quire: {options.url} cannot be asked: {error}", file=sys.stderr)
        return 1
    figures = report(samples, took_s)
    for name, value in figures.items():
        print(f"{name:>20} {value:12.2f}")
    for told in sorted({sample.error for sample in samples if sample.error is not None})[:5]:
        print(f"error: {told}", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.plot is not None:
        title = f"{options.url}: {options.num_prompts} requests"
        options.plot.write_text(draw(samples, took_s, title))
    return 1 if figures["failed"] else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a load as the command line says."""
    parser = argparse.ArgumentParser(description="Load on a running server.")
    add_load_options(parser)
    return bench(parser.parse_args(arguments))
