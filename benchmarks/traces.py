"""Traffic for the simulator: who asks when, with which prompt, for how long an answer.

Pure but for the trace files. A prompt is a few segments (source, length) whose tokens follow from
these two numbers, so that a million requests need no memory: generators yield them one by one, by
a seed. Requests that start with equal segments share these tokens, and with them cached blocks.
An agent's turns come one after another: each starts a think time after the answer before it has
ended, wherever that is, and its prompt is all that came before and something new.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, count
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct

from ..engine.request import IntArray

TrafficKind = Literal["poisson", "bursty", "shared-prefix", "agent"]
KINDS: tuple[TrafficKind, ...] = ("poisson", "bursty", "shared-prefix", "agent")

_MASK = 0x3FFFFFFF
_SOURCE_STEP, _INDEX_STEP = 0x9E3779B1, 40503
_MOST = 1 << 17
_STEPS = np.arange(_MOST, dtype=np.int64) * _INDEX_STEP


class Segment(NamedTuple):
    """Tokens that belong together."""

    source: int
    """Equal sources give equal tokens."""
    length: int


class Turn(NamedTuple):
    """One more question in a conversation."""

    think_s: float
    """From the end of the answer before to this question,"""
    new: Segment
    """which adds these tokens,"""
    answer: Segment
    """and gets these."""


class Arrival(NamedTuple):
    """A request, and the turns that follow it."""

    arrival_s: float
    prompt: tuple[Segment, ...]
    answer: Segment
    """Its source is the request's own: no other answer has it."""
    turns: tuple[Turn, ...] = ()
    tenant: str = ""

    def following(self, ended_s: float) -> Arrival | None:
        """Give the next turn, once this one has ended; None after the last."""
        if not self.turns:
            return None
        turn, *rest = self.turns
        prompt = (*self.prompt, self.answer, turn.new)
        return Arrival(ended_s + turn.think_s, prompt, turn.answer, tuple(rest), self.tenant)


class Lengths(Struct, frozen=True):
    """A log-normal distribution of token counts, from 1 to a cap."""

    median: float
    sigma: float
    cap: int

    def draw(self, rng: Random) -> int:
        """Draw one length."""
        return max(1, min(self.cap, round(self.median * rng.lognormvariate(0.0, self.sigma))))


class Traffic(Struct, frozen=True, kw_only=True):
    """All that a stream of requests follows from."""

    kind: TrafficKind
    num_requests: int
    """Turns count one by one."""
    rate: float
    """Requests a second, on average; for agents without their waiting for answers."""
    seed: int = 0
    prompt: Lengths = Lengths(192, 0.8, 2048)
    output: Lengths = Lengths(16, 0.6, 64)
    num_prefixes: int = 200
    """System prompts, of which the i-th is chosen in proportion to 1 / i ** zipf,"""
    zipf: float = 1.0
    prefix: Lengths = Lengths(512, 0.5, 2048)
    """and their lengths. For shared prefixes and agents."""
    on_s: float = 2.0
    """Mean length of a burst,"""
    off_s: float = 6.0
    """and of the silence after it."""
    num_turns: float = 5.0
    """Mean of a geometric distribution."""
    think_s: float = 5.0
    """Mean of an exponential distribution."""
    max_len: int = 8192
    """A conversation ends before its prompt and answer exceed this."""


def tokens_of(prompt: Iterable[Segment]) -> IntArray:
    """Write a prompt out: [tokens]."""
    parts = [
        ((_STEPS[:length] + (source * _SOURCE_STEP & _MASK)) & _MASK).astype(np.int32)
        for source, length in prompt
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def answer_base(source: int) -> int:
    """Give what answer_tokens needs of a source."""
    return source * _SOURCE_STEP & _MASK


def answer_tokens(bases: np.ndarray, places: np.ndarray) -> IntArray:
    """Give tokens `places` of answers, such that tokens_of gives the same in a later prompt."""
    tokens: IntArray = ((bases + places * _INDEX_STEP) & _MASK).astype(np.int32)
    return tokens


def arrivals(traffic: Traffic) -> Iterator[Arrival]:
    """Generate the requests in the order of their arrival; the later turns inside the first."""
    rng = Random(f"{traffic.seed}-{traffic.kind}")
    sources = count(traffic.num_prefixes)
    if traffic.kind in {"poisson", "bursty"}:
        for time_s in _times(traffic, rng, traffic.num_requests):
            new = Segment(next(sources), traffic.prompt.draw(rng))
            yield Arrival(time_s, (new,), Segment(next(sources), traffic.output.draw(rng)))
        return
    prefixes = [Segment(i, traffic.prefix.draw(rng)) for i in range(traffic.num_prefixes)]
    chances = list(accumulate((i + 1) ** -traffic.zipf for i in range(traffic.num_prefixes)))
    left = traffic.num_requests
    for time_s in _times(traffic, rng, traffic.num_requests):
        prefix = prefixes[bisect_left(chances, rng.random() * chances[-1])]
        new = Segment(next(sources), traffic.prompt.draw(rng))
        answer = Segment(next(sources), traffic.output.draw(rng))
        turns: tuple[Turn, ...] = ()
        if traffic.kind == "agent":
            used = prefix.length + new.length + answer.length
            turns = tuple(_turns(traffic, rng, sources, used))[: left - 1]
        yield Arrival(time_s, (prefix, new), answer, turns)
        left -= 1 + len(turns)
        if left == 0:
            return


def _times(traffic: Traffic, rng: Random, most: int) -> Iterator[float]:
    """Generate arrival times: Poisson, in bursts where that is asked for."""
    rate, silent_s, burst_end_s, now_s = traffic.rate, 0.0, 0.0, 0.0
    if traffic.kind == "agent":
        rate /= traffic.num_turns
    bursty = traffic.kind == "bursty"
    if bursty:
        rate *= (traffic.on_s + traffic.off_s) / traffic.on_s
        burst_end_s = rng.expovariate(1 / traffic.on_s)
    for _ in range(most):
        now_s += rng.expovariate(rate)
        while bursty and now_s > burst_end_s:
            silent_s += rng.expovariate(1 / traffic.off_s)
            burst_end_s += rng.expovariate(1 / traffic.on_s)
        yield now_s + silent_s


def _turns(traffic: Traffic, rng: Random, sources: Iterator[int], used: int) -> Iterator[Turn]:
    """Generate the turns after the first, while they fit."""
    while rng.random() > 1 / traffic.num_turns:
        new = Segment(next(sources), traffic.prompt.draw(rng))
        answer = Segment(next(sources), traffic.output.draw(rng))
        used += new.length + answer.length
        if used > traffic.max_len:
            return
        yield Turn(rng.expovariate(1 / traffic.think_s), new, answer)


def write_trace(path: Path, trace: Iterable[Arrival]) -> int:
    """Write a trace as JSON lines; gives the number of lines."""
    lines = 0
    with path.open("w") as file:
        for one in trace:
            record: dict[str, object] = {
                "arrival_s": one.arrival_s,
                "prompt": one.prompt,
                "answer": one.answer,
            }
            if one.turns:
                record["turns"] = one.turns
            file.write(json.dumps(record) + "\n")
            lines += 1
    return lines


def read_trace(path: Path) -> Iterator[Arrival]:
    """Read a trace line by line; ValueError where its times go back or a segment is impossible."""
    last_s = 0.0
    with path.open() as file:
        for number, line in enumerate(file, 1):
            record = json.loads(line)
            prompt = tuple(Segment(*segment) for segment in record["prompt"])
            answer = Segment(*record["answer"])
            turns = tuple(
                Turn(think_s, Segment(*new), Segment(*reply))
                for think_s, new, reply in record.get("turns", ())
            )
            segments = [*prompt, answer, *(s for turn in turns for s in turn[1:])]
            if not all(0 < segment.length <= _MOST for segment in segments):
                raise ValueError(f"{path}, line {number}: a segment has 1 to {_MOST} tokens.")
            if record["arrival_s"] < last_s:
                raise ValueError(f"{path}, line {number}: it arrives before the line above.")
            last_s = record["arrival_s"]
            yield Arrival(last_s, prompt, answer, turns)
