"""What the server needs of an engine, and what it keeps beside it.

ServerState is owned by the server; routes read it, only the middleware, the drain and what
answers the lines of batches write.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from aiohttp import web

from .. import __version__
from ..engine.config import EngineConfig
from ..engine.live import LiveView
from ..engine.metrics import EngineMetrics
from ..engine.params import Params
from ..engine.parsing.choose import Parsers
from ..engine.timeline import Timelines
from ..engine.vectors import PoolingConfig
from .admission import Admission
from .limits import Limits
from .response_store import ResponseStore
from .viewers import Viewers

if TYPE_CHECKING:
    from ..engine.reading import Reading
    from ..engine.text.prepare import Prepared, Prompt
    from ..engine.text.tokenizer import Tokenizer

FINGERPRINT = f"quire-{__version__}"

Status = Literal["ok", "sleeping", "draining", "stopped"]


class Engine(Protocol):
    """The part of AsyncEngine that serves; tests fake it."""

    @property
    def config(self) -> EngineConfig: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def parsers(self) -> Parsers: ...
    @property
    def pooling(self) -> PoolingConfig: ...
    @property
    def auto_tools(self) -> bool: ...
    @property
    def metrics(self) -> EngineMetrics: ...
    @property
    def timelines(self) -> Timelines: ...
    @property
    def live(self) -> LiveView: ...
    @property
    def model_name(self) -> str: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def num_unfinished(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def is_running(self) -> bool: ...
    @property
    def is_sleeping(self) -> bool: ...

    def chat_prompt(self, messages: Sequence[dict[str, Any]], **options: Any) -> str: ...

    async def prepare(
        self,
        prompt: Prompt | Prepared,
        params: Params | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
    ) -> Prepared: ...

    def read(
        self,
        prepared: Prepared,
        call: Callable[[], None],
        *,
        on_added: Callable[[], None] | None = None,
    ) -> Reading: ...

    def reset_prefix_cache(self) -> bool: ...
    async def sleep(self) -> None: ...
    async def wake_up(self) -> None: ...


def new_id() -> str:
    """A name for a response that no other has."""
    return uuid.uuid4().hex


@dataclass(slots=True, eq=False)
class ServerState:
    """One server: its engine, its clock and names, and what it is doing."""

    engine: Engine
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time
    """Seconds since 1970, for `created`."""
    timer: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = new_id
    has_keys: bool = False
    """Whether every request brings an API key."""
    isolate_keys: bool = False
    """Whether an API key finds only the prefixes that were cached with it."""
    draining: bool = False
    """No new generation is begun; /health says 503."""
    num_active: int = 0
    """Requests being answered."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there are none."""
    created: int = field(init=False)
    admission: Admission = field(init=False)
    responses: ResponseStore = field(init=False)
    viewers: Viewers = field(init=False)

    def begin(self) -> None:
        """Count one more that is being answered."""
        self.num_active += 1
        self.idle.clear()

    def end(self) -> None:
        """Count one less."""
        self.num_active -= 1
        if not self.num_active:
            self.idle.set()

    def __post_init__(self) -> None:
        self.created = int(self.clock())
        self.admission = Admission(self.engine, self.limits.max_queued_requests, self.timer)
        self.responses = ResponseStore(self.limits.response_store_bytes)
        self.viewers = Viewers(self.engine, lambda: self.status, self.timer)
        self.idle.set()

    @property
    def status(self) -> Status:
        """How the server is."""
        if self.draining:
            return "draining"
        if self.engine.is_sleeping:
            return "sleeping"
        return "ok" if self.engine.is_running else "stopped"


STATE: web.AppKey[ServerState] = web.AppKey("state", ServerState)
