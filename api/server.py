"""Sockets, signals and the drain: from a bound port to the last answer.

The port is bound before the model is loaded, so that a taken port is known at once, and listens
only when requests can be answered.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from msgspec import Struct

from ..engine.errors import ConfigError
from .access_log import LOGGER_NAME, AccessLog, AccessLogFormat
from .app import create_app
from .auth import ApiKeys
from .background import BACKGROUND_RESPONSES
from .batch.archive import ARCHIVE
from .limits import Limits
from .state import Engine, ServerState
from .tracing import RequestTracer, make_tracer

if TYPE_CHECKING:
    from ..engine.config import EngineConfig

logger = logging.getLogger("quire")

KEEPALIVE_S = 75.0
BACKLOG = 1024
CUT_TIMEOUT_S = 0.5
"""What handlers get to say goodbye after the engine has ended their requests."""


class ServerOptions(Struct, frozen=True, kw_only=True):
    """Where and for whom to serve."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    api_keys: Sequence[str] = ()
    """None, and no file: everybody may ask."""
    api_key_file: str | None = None
    """More keys, one a line; read again on SIGHUP."""
    ssl_certfile: str | None = None
    """Serve over TLS with this certificate, and those that signed it; read again on SIGHUP."""
    ssl_keyfile: str | None = None
    """Its key; None: it is in the same file."""
    allowed_origins: Sequence[str] = ()
    """Web pages that may call from a browser; "*" is all."""
    share_prefix_cache: bool = False
    """Whether requests with different API keys may find each other's prefixes."""
    drain_timeout_s: float = 30.0
    files_dir: str | None = None
    """Where files and batches are kept for the next server too; None: they end with this one."""
    access_log: AccessLogFormat = "off"
    otlp_traces_endpoint: str | None = None
    """Where traces go, by OTLP over HTTP; None: nowhere."""
    limits: Limits = Limits()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not listening yet. ConfigError if it cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host {host!r} cannot be served on: {error}.") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _cannot_listen(host, port, error) from error
    return sock


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"port {port} on {host} cannot be used: {error.strerror}. Choose another with --port, "
        "or 0 for any free one."
    )


def make_ssl_context(options: ServerOptions) -> ssl.SSLContext | None:
    """Return what TLS needs; None where no certificate was given. ConfigError if it is not good."""
    if options.ssl_certfile is None:
        if options.ssl_keyfile is not None:
            raise ConfigError("ssl_keyfile needs ssl_certfile.")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_certificate(context, options)
    return context


def load_certificate(context: ssl.SSLContext, options: ServerOptions) -> None:
    """Read the certificate and its key, again too: for connections from now on. ConfigError."""
    assert options.ssl_certfile is not None, "no certificate was given"
    try:
        # A password would be asked for on the terminal.
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"ssl_certfile {options.ssl_certfile!r} and ssl_keyfile {options.ssl_keyfile!r} "
            f"cannot be used: {error}."
        ) from error


class Server:
    """An engine on a socket."""

    def __init__(
        self, engine: Engine, options: ServerOptions, tracer: RequestTracer | None = None
    ) -> None:
        """ConfigError where a file cannot be read. tracer: instead of that of the options."""
        self._options = options
        file = options.api_key_file
        self._keys = ApiKeys(options.api_keys, None if file is None else Path(file))
        self._ssl = make_ssl_context(options)
        endpoint = options.otlp_traces_endpoint
        if tracer is None and endpoint is not None:
            tracer = make_tracer(endpoint)
        self._tracer = tracer
        has_keys, limits = bool(self._keys), options.limits
        isolate = has_keys and not options.share_prefix_cache
        self.state = ServerState(engine, has_keys=has_keys, isolate_keys=isolate, limits=limits)
        access_logger = None if options.access_log == "off" else logging.getLogger(LOGGER_NAME)
        app = create_app(
            self.state,
            api_keys=self._keys,
            allowed_origins=options.allowed_origins,
            access_log=AccessLog(access_logger, options.access_log) if access_logger else None,
            tracer=tracer,
            files_dir=None if options.files_dir is None else Path(options.files_dir),
        )
        self._app = app
        self._archive = app[ARCHIVE]
        # A handler is cancelled when its client goes: that is what aborts the request at once.
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log_class=AccessLog,
            access_log=access_logger,
            access_log_format=options.access_log,
            max_line_size=limits.max_header_bytes,
            max_field_size=limits.max_header_bytes,
            max_headers=limits.max_headers,
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=CUT_TIMEOUT_S,
        )
        self.url = ""

    def claim_folder(self) -> None:
        """Take the folder of files before a model is loaded. ConfigError if it cannot be had."""
        self._archive.claim()

    async def start(self, sock: socket.socket) -> None:
        """Listen, and take requests from now on; go on with batches. ConfigError if the port was
        lost, or the folder of files cannot be used."""
        host, port = sock.getsockname()[:2]
        self._archive.open()
        await self._runner.setup()
        try:
            site = web.SockSite(self._runner, sock, backlog=BACKLOG, ssl_context=self._ssl)
            await site.start()
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        scheme = "http" if self._ssl is None else "https"
        self.url = f"{scheme}://[{shown}]:{port}" if ":" in shown else f"{scheme}://{shown}:{port}"

    async def drain(self, hurry: asyncio.Event) -> None:
        """Refuse new requests and let the running ones finish, up to the timeout or `hurry`."""
        self.state.draining = True
        waiting = [asyncio.create_task(one.wait()) for one in (self.state.idle, hurry)]
        await asyncio.wait(
            waiting,
            timeout=self._options.drain_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in waiting:
            task.cancel()

    @property
    def can_reload(self) -> bool:
        """Whether there are files that `reload` reads."""
        return self._options.api_key_file is not None or self._ssl is not None

    def reload(self) -> None:
        """Read keys and certificate again; what cannot be read stays as it is, and is logged."""
        try:
            self._keys.reload()
            if self._ssl is not None:
                load_certificate(self._ssl, self._options)
        except ConfigError as error:
            logger.error("not read again: %s", error)
        else:
            logger.info("keys and certificate were read again")

    async def close_archive(self) -> None:
        """Ask nothing more for batches: before the engine ends what it is asked."""
        await self._archive.close()

    async def stop(self) -> None:
        """End what is made in the background, and close all connections."""
        await self._app[BACKGROUND_RESPONSES].close()
        await self._archive.close()
        await self._runner.cleanup()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)


def is_worth_logging(record: logging.LogRecord) -> bool:
    """Whether a record of aiohttp is about more than bytes that are no HTTP (scanners, mostly)."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


def settle_memory() -> None:
    """Tell the collector that what is loaded stays: it would look through all of it, a tenth of a
    second or more in which no step is planned, whenever enough has come beside it."""
    gc.collect()
    gc.freeze()


async def serve(
    config: EngineConfig, options: ServerOptions, announce: Callable[[str, Engine], None]
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends it at once.

    Calls announce(url, engine) when requests are taken. ConfigError or CheckpointError if it cannot
    begin.
    """
    logging.getLogger("aiohttp.server").addFilter(is_worth_logging)
    with bind(options.host, options.port) as sock:
        from ..engine.async_engine import (
            AsyncEngine,
        )  # torch: a taken port is known before it loads

        engine = AsyncEngine(config)
        server = Server(engine, options)
        stopping, hurry = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (hurry if stopping.is_set() else stopping).set()

        try:
            server.claim_folder()
            await engine.start()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, on_signal)
            if server.can_reload:
                loop.add_signal_handler(signal.SIGHUP, server.reload)
            await server.start(sock)
            settle_memory()
            announce(server.url, engine)
            await stopping.wait()
            await server.drain(hurry)
        finally:
            await server.close_archive()
            await engine.stop()
            await server.stop()
