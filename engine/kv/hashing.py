"""Keys of full blocks: a chain of 128-bit hashes, so that a key covers a block and all before it.

Pure. A chain starts from a root that covers everything but the tokens which decides what the KV
memory holds (now: the cache salt), each field tagged so that two kinds of field cannot collide.
The root is cryptographic (blake2b, keyed): salts separate tenants. The links are xxh3_128 with a
secret seed, drawn once a process, so that nobody can prepare colliding tokens.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

KEY_BYTES = 16
TOKEN_BYTES = 4


class BlockHasher:
    """Chains keys over blocks of `block_size` tokens; `secret` is 16 random bytes."""

    __slots__ = ("_no_salt", "_secret", "_seed", "block_size")

    def __init__(self, block_size: int, secret: bytes) -> None:
        assert len(secret) == KEY_BYTES, len(secret)
        self.block_size = block_size
        self._secret = secret
        self._seed = int.from_bytes(secret[:8], "little")
        self._no_salt = hashlib.blake2b(b"none", key=secret, digest_size=KEY_BYTES).digest()

    def root(self, salt: str | None) -> bytes:
        """Give the parent key of a sequence's first block."""
        if salt is None:
            return self._no_salt
        field = b"salt" + salt.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(field, key=self._secret, digest_size=KEY_BYTES).digest()

    def extend(self, keys: list[bytes], root: bytes, token_ids: NDArray[np.int32]) -> None:
        """Append to `keys`, in place, those of all full blocks of `token_ids` beyond them.

        token_ids: [tokens] the whole sequence; its first len(keys) blocks are not looked at.
        """
        size = self.block_size
        start, end = len(keys) * size, len(token_ids) // size * size
        data = token_ids[start:end].tobytes()
        key = keys[-1] if keys else root
        seed, width = self._seed, TOKEN_BYTES * size
        for offset in range(0, len(data), width):
            key = xxh3_128_digest(key + data[offset : offset + width], seed)
            keys.append(key)
