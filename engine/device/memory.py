"""How many KV blocks fit: bytes of a block, free memory of the machine.

Reads /proc/meminfo; owns nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...reference.decoder import DecoderConfig
from ...reference.encoder import EncoderConfig

MAX_DEFAULT_BYTES = 4 * 2**30


def bytes_per_block(block_size: int, *configs: DecoderConfig | EncoderConfig) -> int:
    """Bytes of one block's keys and values in all layers of all the models."""
    return block_size * sum(
        config.num_kv_layers * 2 * config.num_kv_heads * config.head_dim * config.dtype.itemsize
        for config in configs
    )


def default_cache_bytes() -> int:
    """Return a quarter of the machine's free memory, at most 4 GiB."""
    return min(_available_bytes() // 4, MAX_DEFAULT_BYTES)


def _available_bytes() -> int:
    """Return what Linux calls available; elsewhere half of the physical memory."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
