"""Which replica gets a request: round robin, the least loaded, or the one that knows its prefix.

Deterministic: equal calls give equal choices. A router sees what a front end would see: the prompt
and how many requests each replica has not yet answered. Its memory is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engine.kv.hashing import KEY_BYTES, BlockHasher
from ..engine.request import IntArray

RouterName = Literal["round-robin", "least-loaded", "prefix-aware"]
ROUTERS: tuple[RouterName, ...] = ("round-robin", "least-loaded", "prefix-aware")
Loads = NDArray[np.int64]


class Router(Protocol):
    """Chooses a replica for each request."""

    def choose(self, prompt: IntArray, loads: Loads) -> int:
        """Choose an index into `loads`: [replicas] requests that each has not answered.

        prompt: [tokens]. Counts the request as sent there.
        """
        ...


class RoundRobin:
    """One after the other, whatever they do."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, prompt: IntArray, loads: Loads) -> int:
        """See Router."""
        chosen = self._next % len(loads)
        self._next = chosen + 1
        return chosen


class LeastLoaded:
    """The one with the fewest unanswered requests, the first of equals."""

    def choose(self, prompt: IntArray, loads: Loads) -> int:
        """See Router."""
        return int(loads.argmin())


class PrefixAware:
    """The one where cached tokens saved outweigh the longer queue.

    Remembers, for each block of every prompt it saw, the `width` replicas that served it last, in a
    table of `capacity` keys, the least recently used forgotten first. A key covers its block and
    all before it, as the engine's do. A candidate is worth the tokens of its longest match, less
    `request_tokens` for each request that it has more than the least loaded one.
    """

    def __init__(
        self,
        *,
        capacity: int = 200_000,
        block_size: int = 64,
        width: int = 4,
        request_tokens: int = 64,
    ) -> None:
        assert capacity > 0 and block_size > 0 and width > 0, (capacity, block_size, width)
        self._hasher = BlockHasher(block_size, bytes(KEY_BYTES))
        self._root = self._hasher.root(None)
        self._capacity = capacity
        self._width = width
        self._request_tokens = request_tokens
        self._served: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    @property
    def num_keys(self) -> int:
        """Keys in the table."""
        return len(self._served)

    def choose(self, prompt: IntArray, loads: Loads) -> int:
        """See Router."""
        keys: list[bytes] = []
        self._hasher.extend(keys, self._root, prompt)
        chosen = least = int(loads.argmin())
        best, floor = 0, int(loads[least])
        for replica, length in self._matches(keys, len(loads)).items():
            worth = length - self._request_tokens * (int(loads[replica]) - floor)
            if worth > best:
                chosen, best = replica, worth
        self._remember(keys, chosen)
        return chosen

    def _matches(self, keys: list[bytes], num_replicas: int) -> dict[int, int]:
        """Give each known replica's longest match in tokens, the longest and latest first."""
        found: list[tuple[int, ...]] = []
        for key in keys:
            replicas = self._served.get(key)
            if replicas is None:
                break
            found.append(replicas)
        lengths: dict[int, int] = {}
        for index in range(len(found) - 1, -1, -1):
            for replica in found[index]:
                if replica < num_replicas and replica not in lengths:
                    lengths[replica] = (index + 1) * self._hasher.block_size
        return lengths

    def _remember(self, keys: list[bytes], chosen: int) -> None:
        """Note that `chosen` serves these blocks; the first block is forgotten last."""
        served = self._served
        for key in reversed(keys):
            others = [replica for replica in served.get(key, ()) if replica != chosen]
            served[key] = (chosen, *others[: self._width - 1])
            served.move_to_end(key)
        while len(served) > self._capacity:
            served.popitem(last=False)


def make_router(name: RouterName) -> Router:
    """Make a router by its name."""
    match name:
        case "round-robin":
            return RoundRobin()
        case "least-loaded":
            return LeastLoaded()
        case "prefix-aware":
            return PrefixAware()
