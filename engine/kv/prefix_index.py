"""Which block holds which tokens: finds the longest known prefix of a sequence.

Owns the keys of published blocks and their contents; knows nothing of who holds a block. Only full
blocks with known tokens are published. Several blocks may have one key (both were computed before
either was published): one of them is found, the others (twins) take over when it goes. Prefixes are
found to the token: after the last full block, the children of its key are compared token by token.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

MAX_CHILDREN = 64
"""Children looked at for a partial match: the newest ones, to bound the cost."""
UPCOMING = -1
"""Stands for a block that another row of the same step will publish."""


class PrefixIndex:
    """Maps chained keys to blocks and keeps the tokens of published blocks."""

    __slots__ = (
        "_blocks",
        "_children",
        "_contents",
        "_keys",
        "_parents",
        "_twins",
        "block_size",
        "keyed",
    )

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.keyed = np.zeros(num_blocks, np.bool_)
        """[blocks] whether a block is published. Read-only for others."""
        self._keys = [b""] * num_blocks
        self._parents = [b""] * num_blocks
        self._contents = [b""] * num_blocks
        self._blocks: dict[bytes, int] = {}
        self._twins: dict[bytes, dict[int, None]] = {}
        self._children: dict[bytes, dict[bytes, None]] = {}

    def __len__(self) -> int:
        """Count the distinct keys."""
        return len(self._blocks)

    def find(self, keys: Iterable[bytes], upcoming: Container[bytes] = ()) -> list[int]:
        """Give the blocks of the longest run of known keys.

        UPCOMING where only `upcoming` has the key.
        """
        known, blocks = self._blocks, []
        for key in keys:
            block = known.get(key, UPCOMING)
            if block == UPCOMING and key not in upcoming:
                break
            blocks.append(block)
        return blocks

    def block_of(self, key: bytes) -> int:
        """Give the block of a published key."""
        return self._blocks[key]

    def partial(self, parent: bytes, token_ids: NDArray[np.int32]) -> tuple[int, int]:
        """Find the child of `parent` that shares most first tokens with `token_ids`.

        token_ids: [n] n <= block_size. Returns (block, number of shared tokens); (-1, 0) if none.
        """
        children = self._children.get(parent)
        if not children or len(token_ids) == 0:
            return -1, 0
        blocks = [self._blocks[key] for key in islice(reversed(children), MAX_CHILDREN)]
        contents = b"".join([self._contents[block] for block in blocks])
        held = np.frombuffer(contents, np.int32).reshape(len(blocks), self.block_size)
        differs = held[:, : len(token_ids)] != token_ids
        lengths = np.where(differs.any(axis=1), differs.argmax(axis=1), len(token_ids))
        best = int(lengths.argmax())
        length = int(lengths[best])
        return (blocks[best], length) if length else (-1, 0)

    def publish(self, parent: bytes, keys: list[bytes], blocks: list[int], data: bytes) -> None:
        """Make consecutive full blocks findable.

        parent: the key before the first; data: their tokens, int32. No block may have a key.
        """
        known, children = self._blocks, self._children
        width = 4 * self.block_size
        offset = 0
        for key, block in zip(keys, blocks, strict=True):
            assert not self._keys[block], f"block {block} is published twice"
            self._keys[block] = key
            self._parents[block] = parent
            self._contents[block] = data[offset : offset + width]
            if key in known:
                self._twins.setdefault(key, {})[block] = None
            else:
                known[key] = block
                siblings = children.get(parent)
                if siblings is None:
                    children[parent] = {key: None}
                else:
                    siblings[key] = None
            parent = key
            offset += width
        self.keyed[blocks] = True

    def remove(self, blocks: list[int]) -> None:
        """Forget the keys of `blocks`, which are about to be overwritten."""
        for block in blocks:
            key = self._keys[block]
            assert key, f"block {block} has no key"
            twins = self._twins.get(key)
            if twins is None:
                del self._blocks[key]
                siblings = self._children[self._parents[block]]
                del siblings[key]
                if not siblings:
                    del self._children[self._parents[block]]
            else:
                if block in twins:
                    del twins[block]
                else:
                    heir = next(iter(twins))
                    del twins[heir]
                    self._blocks[key] = heir
                if not twins:
                    del self._twins[key]
            self._keys[block] = self._parents[block] = self._contents[block] = b""
        self.keyed[blocks] = False

    def clear(self) -> None:
        """Forget everything."""
        self.remove(self.keyed.nonzero()[0].tolist())

    def content(self, block: int) -> NDArray[np.int32]:
        """Give the tokens of a published block, [block_size]."""
        return np.frombuffer(self._contents[block], np.int32)

    def check(self) -> None:
        """Assert the invariants. Slow."""
        holders: dict[bytes, set[int]] = {}
        for block, key in enumerate(self._keys):
            assert bool(key) == self.keyed[block], block
            if key:
                holders.setdefault(key, set()).add(block)
                assert key in self._children[self._parents[block]], block
                assert len(self._contents[block]) == 4 * self.block_size, block
        found = {key: {block, *self._twins.get(key, ())} for key, block in self._blocks.items()}
        assert found == holders, (found, holders)
        assert all(self._twins.values()), "an empty set of twins"
        assert sum(map(len, self._children.values())) == len(self._blocks)
