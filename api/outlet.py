"""The bytes of one response, no faster than its client reads them.

They go to the connection itself: aiohttp writes the headers and the end, and hears how much there
was between. Its own way there is some coroutines long, and most of the time of a small event.

What a client has not read waits in the connection's buffer: at most `stream_buffer_bytes` and one
write. Until there is room, whoever writes is held, so that the engine is not asked for more and
tokens gather in the request's state, where they are kept once. A client that takes nothing for
`slow_reader_timeout_s` loses its connection, which ends its handler and aborts its request.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import NoReturn

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from .account import find_account
from .limits import Limits

logger = logging.getLogger("quire")

FIRST_LOOK_S = 0.005
LAST_LOOK_S = 0.25
"""How often a slow client's buffer is looked at: first often, then less and less."""
CANCELLED_WITHIN_S = 1.0
UNPAUSED = 2**40
"""High-water mark of a connection that is never paused: the Outlet itself waits."""


class Outlet:
    """Writes one response. Raises ConnectionError when the client is gone, or is cut here."""

    def __init__(self, request: web.Request, response: web.StreamResponse, limits: Limits) -> None:
        self._request = request
        self.response = response
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._writer: AbstractStreamWriter | None = None
        self._chunked = False
        self.written_s = 0.0
        """When the last bytes were given to the connection, in the loop's time."""

    @property
    def has_room(self) -> bool:
        """Whether the headers were sent, and the client has taken enough of all that was."""
        transport = self._transport
        if transport is None:
            return False
        return transport.get_write_buffer_size() <= self._limits.stream_buffer_bytes

    async def open(self) -> None:
        """Send the headers."""
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        # aiohttp waits without a limit where the transport says so; here waits only `_room`.
        transport.set_write_buffer_limits(high=UNPAUSED)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # Else the kernel alone takes megabytes of what nobody reads.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._limits.stream_buffer_bytes)
        self._writer = await self.response.prepare(self._request)
        self._chunked = self.response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
        self._transport = transport
        self.written_s = self._loop.time()

    def put(self, data: bytes) -> None:
        """Send bytes, at least one, and do not look whether the client has taken others."""
        transport = self._transport
        assert transport is not None and self._writer is not None and data, "open() comes first"
        if transport.is_closing() or self._request.transport is not transport:
            raise ConnectionResetError("the client is gone")
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        transport.write(data)
        self._writer.output_size += len(data)
        self.written_s = self._loop.time()

    async def room(self) -> None:
        """Wait until the client has taken enough of all that was sent."""
        await self._room(self._limits.stream_buffer_bytes)

    async def write(self, data: bytes) -> None:
        """Send bytes, then wait for room."""
        self.put(data)
        await self.room()

    async def write_whole(self, data: bytes) -> None:
        """Send a long text, a piece at a time."""
        size = self._limits.stream_buffer_bytes
        view = memoryview(data)
        for start in range(0, len(data), size):
            await self.write(bytes(view[start : start + size]))

    async def close(self) -> web.StreamResponse:
        """Say that nothing more comes, and wait until the client has all."""
        await self.response.write_eof()
        await self._room(0)
        return self.response

    async def _room(self, most: int) -> None:
        """Wait until no more than `most` bytes are unread; cut who takes nothing."""
        transport = self._request.transport
        unread = self._unread(transport)
        if unread <= most:
            return
        loop, look_s = self._loop, FIRST_LOOK_S
        timeout_s = self._limits.slow_reader_timeout_s or float("inf")
        since_s = loop.time()
        while unread > most:
            await asyncio.sleep(look_s)
            look_s = min(2 * look_s, LAST_LOOK_S)
            now_unread = self._unread(transport)
            if now_unread < unread:
                unread, since_s = now_unread, loop.time()
            elif loop.time() - since_s >= timeout_s:
                await self._cut(timeout_s)

    async def _cut(self, timeout_s: float) -> NoReturn:
        account, transport = find_account(self._request), self._request.transport
        name = None if account is None else account.request_id
        logger.info("request %s: its client read nothing for %g s and is cut", name, timeout_s)
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if sock is not None:
                # Else the kernel keeps what it has, and goes on to offer it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        # The server hears of it and cancels the handler, as for any client that goes.
        await asyncio.sleep(CANCELLED_WITHIN_S)
        raise ConnectionAbortedError(f"the client read nothing for {timeout_s:g} s")

    def _unread(self, transport: asyncio.Transport | None) -> int:
        if transport is None or self._request.transport is not transport:
            raise ConnectionResetError("the client is gone")
        return transport.get_write_buffer_size()


async def respond(
    request: web.Request, data: bytes, limits: Limits, headers: dict[str, str]
) -> web.StreamResponse:
    """Send a whole response; a short one is left to the server to send."""
    if len(data) <= limits.stream_buffer_bytes:
        return web.Response(body=data, headers=headers)
    response = web.StreamResponse(headers=headers)
    response.content_length = len(data)
    outlet = Outlet(request, response, limits)
    await outlet.open()
    await outlet.write_whole(data)
    return await outlet.close()
