"""What comes to an engine, and how its device behaves, drawn from one generator.

A seed gives the limits, the phases of load, every request and the fate of every step. Owns the
draws; knows no engine.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from msgspec import Struct

from ..engine.params import RepetitionDetectionParams, SamplingParams
from ..engine.request import Request
from ..engine.sched.limits import SchedulerLimits
from .oracles import FLAKY, VOCAB
from .strategies import make_limits, make_request

Fate = Literal["done", "before", "after", "stall"]
"""of a step: it dies before or after the device has done it, or never ends."""
SALTS = (None, None, None, "a", "b")
EOS = ((), (), (0,), (0, 1))
MEAN_GAP_S = 0.004
NUM_STEMS = 6
REPETITION = RepetitionDetectionParams(max_pattern_size=3, min_count=3)
Item = TypeVar("Item")


class Dice:
    """Cheap draws from one generator."""

    def __init__(self, seed: int) -> None:
        self._next = _numbers(np.random.default_rng(seed)).__next__

    def chance(self, probability: float) -> bool:
        """Draw whether something happens."""
        return self._next() < probability

    def below(self, count: int) -> int:
        """Draw from 0 to count - 1."""
        return int(self._next() * count)

    def pick(self, items: Sequence[Item]) -> Item:
        """Draw one of items."""
        return items[int(self._next() * len(items))]

    def wait(self, mean: float) -> float:
        """Draw an exponential time."""
        return -mean * math.log1p(-self._next())

    def tokens(self, count: int) -> list[int]:
        """Draw token ids."""
        return [self.below(VOCAB) for _ in range(count)]


def _numbers(generator: np.random.Generator) -> Iterator[float]:
    while True:
        yield from generator.random(4096).tolist()


class Setup(Struct, frozen=True):
    """What holds for a whole episode. The rest are probabilities."""

    limits: SchedulerLimits
    num_steps: int
    """After so many nothing new comes."""
    abort: float
    """of a request,"""
    fork: float
    death: float
    """of a step: it dies, or does not end;"""
    slow: float
    """and it takes long."""
    gesture: float
    """of a burst: the budget changes, or the prefix cache is emptied."""


def draw_setup(dice: Dice, most_steps: int) -> Setup:
    """Draw an episode's limits, down to pools that hold just one sequence, and its troubles."""
    block_size = dice.pick((1, 2, 4, 4, 8, 16))
    max_model_len = dice.pick((3, 12, 24, 40, 40, 72, 72))
    least = -(-(max_model_len - 1) // block_size)
    spare = dice.pick((0, 1, 3, least // 2, least, 2 * least, 4 * least, 10 * least + 150))
    limits = make_limits(
        max_num_seqs=dice.pick((1, 2, 3, 4, 6, 8, 12, 16)),
        budget=dice.pick((1, 3, 5, 8, 16, 64, 64, 512)),
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=least + spare,
        caching=dice.chance(0.8),
        policy=dice.pick(("fcfs", "fcfs", "priority")),
        overlap=dice.pick((1, 2, 2)),
    )
    return Setup(
        limits=limits,
        num_steps=int(2_000 * (most_steps / 2_000) ** dice.pick((0.0, 0.3, 0.6, 1.0))),
        abort=dice.pick((0.0, 0.05, 0.3)),
        fork=dice.pick((0.0, 0.1, 0.4)),
        death=dice.pick((0.0, 0.0002, 0.002)),
        slow=dice.pick((0.0, 0.02)),
        gesture=dice.pick((0.0, 0.01, 0.1)),
    )


class Phase(NamedTuple):
    """How much comes for a while."""

    most_alive: int
    gap_s: float
    burst: int
    """Most requests at once."""


TENANTS = ("", "a", "b")
NUM_TENANTS = len(TENANTS)


class Traffic:
    """Draws requests that share prefixes with each other and with answers of earlier ones."""

    def __init__(
        self, dice: Dice, limits: SchedulerLimits, roots: Mapping[str | None, int]
    ) -> None:
        """roots: history of the empty prefix by salt."""
        self._dice, self._limits, self._salt_roots = dice, limits, roots
        self.roots: dict[int, int] = {}
        """The same by the seed of each request."""
        self._most = limits.max_model_len - 1
        self._stems = [dice.tokens(self._most) for _ in range(NUM_STEMS)]
        self._ended: deque[list[int]] = deque(maxlen=20)
        self._most_outputs = dice.pick((4, 20, 20, self._most))
        self._tenants = dice.pick((TENANTS[:1], TENANTS[:1], TENANTS))
        self.num_requests = 0

    def phase(self) -> Phase:
        """Draw how much comes, from nothing to more than fits."""
        dice, seqs = self._dice, self._limits.max_num_seqs
        return Phase(
            most_alive=dice.pick((0, 1, seqs, seqs + 2, 2 * seqs, 2 * seqs + 4, 3 * seqs + 12)),
            gap_s=MEAN_GAP_S * dice.pick((0.1, 0.3, 1.0, 5.0)),
            burst=dice.pick((1, 2, 4, 16)),
        )

    def request(self, salt: str | None, prompt: list[int] | None = None) -> Request:
        """Draw a request. prompt: None draws one."""
        dice = self._dice
        self.num_requests += 1
        number = self.num_requests
        seed = number | (FLAKY if dice.chance(0.08) else 0)
        self.roots[seed] = self._salt_roots[salt]
        return make_request(
            f"r{number}",
            self._prompt() if prompt is None else prompt,
            params=self._params(),
            seed=seed,
            eos=dice.pick(EOS),
            priority=dice.below(5) - 2,
            salt=salt,
            tenant=dice.pick(self._tenants),
        )

    def ended(self, token_ids: list[int]) -> None:
        """Let later prompts continue what has ended."""
        self._ended.append(token_ids)

    def _prompt(self) -> list[int]:
        dice = self._dice
        if dice.chance(0.02):
            self._stems[dice.below(NUM_STEMS)] = dice.tokens(self._most)
        if self._ended and dice.chance(0.3):
            stem = dice.pick(self._ended)
        else:
            stem = dice.pick(self._stems)
        stem = stem[: dice.below(1 + dice.below(len(stem) + 1))]
        tail = dice.tokens(dice.below(8) if dice.chance(0.8) else dice.below(self._most))
        return [*stem, *tail][: self._most] or dice.tokens(1)

    def _params(self) -> SamplingParams:
        dice = self._dice
        max_tokens = None if dice.chance(0.2) else 1 + dice.below(self._most_outputs)
        least = dice.pick((0, 0, 0, 1, 3, 6))
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=least if max_tokens is None else min(least, max_tokens),
            stop_token_ids=dice.tokens(dice.pick((0, 0, 0, 1, 2))),
            ignore_eos=dice.chance(0.5),
            repetition_detection=dice.pick((None, None, REPETITION)),
        )


def draw_fate(dice: Dice, setup: Setup) -> Fate:
    """Draw what becomes of a step."""
    if not dice.chance(setup.death):
        return "done"
    return dice.pick(("before", "after", "stall"))


def draw_duration_s(dice: Dice, setup: Setup, num_tokens: int) -> float:
    """Draw how long a step takes."""
    seconds = (0.001 + 0.00002 * num_tokens) * (0.5 + dice.wait(0.5))
    return seconds * 50 if dice.chance(setup.slow) else seconds
