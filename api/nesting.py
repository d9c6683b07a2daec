"""How deep JSON is nested, told before it is decoded. Pure.

What reads a decoded value may recurse once for each level: decoders, templates, grammars.
"""

from __future__ import annotations

import numpy as np

PIECE = 2**20
BRACKETS = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def is_deeper(data: bytes, most: int) -> bool:
    """Whether lists and objects lie more than `most` deep in each other.

    Brackets in strings do not count. Takes some ns a byte, and for most bodies only a count.
    """
    if data.count(b"[") + data.count(b"{") <= most:
        return False
    plain = data.replace(rb"\\", b"").replace(rb"\"", b"")
    steps = np.zeros(256, dtype=np.int64)
    for bracket, step in BRACKETS.items():
        steps[ord(bracket)] = step
    depth, num_quotes = 0, 0
    for start in range(0, len(plain), PIECE):
        piece = np.frombuffer(plain, np.uint8, min(PIECE, len(plain) - start), start)
        quotes = num_quotes + np.cumsum(piece == ord('"'))
        depths = depth + np.cumsum(np.where(quotes % 2 == 0, steps[piece], 0))
        if depths.max() > most:
            return True
        depth, num_quotes = int(depths[-1]), int(quotes[-1])
    return False
