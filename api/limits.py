"""What one request may ask of the server: every bound of the HTTP edge in one struct. Pure.

docs/limits.md has the same table for people, with the bounds that SamplingParams sets beside them.
"""

from __future__ import annotations

import math
from typing import Any

from msgspec import Struct

from ..engine.errors import ConfigError


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds of one server. ConfigError names the option that is out of range."""

    max_body_bytes: int = 32 * 2**20
    """Of a request, unpacked: 413 above."""
    max_header_bytes: int = 8190
    """Of the request line, and of each header: 400 above."""
    max_headers: int = 128
    """Of a request: 400 above."""
    max_nesting: int = 128
    """Lists and objects inside each other in a body: 400 above."""
    max_answers: int = 2048
    """Prompts of a request times n: 400 above."""
    max_queued_requests: int | None = None
    """Answers that wait for their turn: 429 above. None: no bound."""
    max_request_id_chars: int = 128
    """Of X-Request-Id: a longer one is not taken over."""
    stream_buffer_bytes: int = 64 * 2**10
    """Of one response that its client has not read: no more of it is made until it reads."""
    response_store_bytes: int = 64 * 2**20
    """Of responses kept for requests that name them: the oldest are forgotten above. 0: none."""
    max_background_responses: int = 1024
    """That have not ended: 429 above."""
    max_file_bytes: int = 200 * 2**20
    """Of a file that a client sends: 413 above."""
    file_store_bytes: int = 16 * 2**30
    """Of all files together: 413 above. What batches write counts, and is always written."""
    max_batch_lines: int = 50_000
    """Of a batch: it fails above."""
    max_batches: int = 1000
    """That have not ended: 429 above."""
    max_batch_in_flight: int | None = None
    """Lines of batches that are answered at once. None: half of max_num_seqs."""
    slow_reader_timeout_s: float = 60.0
    """A client that takes nothing of its response for so long is cut; 0: never."""
    sse_heartbeat_s: float = 15.0
    """A stream that was silent for so long gets a comment; 0: none."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_body_bytes", 1024, 2**40),
            ("max_header_bytes", 1024, 2**24),
            ("max_headers", 8, 2**16),
            ("max_nesting", 1, 512),
            ("max_answers", 1, 2**20),
            ("max_queued_requests", 1, 2**31),
            ("max_request_id_chars", 0, 4096),
            ("stream_buffer_bytes", 1024, 2**30),
            ("response_store_bytes", 0, 2**40),
            ("max_background_responses", 0, 2**20),
            ("max_file_bytes", 1024, 2**50),
            ("file_store_bytes", 1024, 2**60),
            ("max_batch_lines", 1, 2**31),
            ("max_batches", 1, 2**31),
            ("max_batch_in_flight", 1, 2**16),
        ):
            value = getattr(self, name)
            if value is not None and not (_is_number(value, int) and low <= value <= high):
                raise ConfigError(f"{name} is {value!r}: it must be an integer, {low} to {high}.")
        for name in ("slow_reader_timeout_s", "sse_heartbeat_s"):
            value = getattr(self, name)
            if not (_is_number(value, int | float) and 0 <= value < math.inf):
                raise ConfigError(
                    f"{name} is {value!r}: it must be a number of seconds, 0 or more."
                )


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
