"""Which block holds which tokens: finds the longest known prefix of a sequence.

Owns the keys of published blocks and their tokens; knows nothing of who holds a block. Only full
blocks with known tokens are published. Several blocks may have one key (both were computed before
either was published): one of them is found, the others (twins) take over when it goes.

Prefixes are found to the token: the found blocks form trees (a child continues its parent), and of
the children of the last full block the one that shares most tokens is taken. When a parent goes
before its children they are orphans: still found by their keys, but no longer compared. The trees
are plain lists of block numbers: publishing and removing a block touch little memory, which is what
they cost.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

MAX_SIBLINGS = 32
"""Blocks compared for a partial match: the newest ones, to bound the cost."""
UPCOMING = -1
"""Stands for a block that another row of the same step will publish."""
_NONE = -1


class PrefixIndex:
    """Maps chained keys to blocks and keeps the tokens of published blocks."""

    __slots__ = (
        "_blocks",
        "_following",
        "_keys",
        "_newest",
        "_parents",
        "_previous",
        "_root_of",
        "_roots",
        "_twins",
        "block_size",
        "keyed",
        "tokens",
    )

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.keyed = np.zeros(num_blocks, np.bool_)
        """[blocks] whether a block is published. Read-only for others."""
        self.tokens = np.zeros((num_blocks, block_size), np.int32)
        """[blocks, block_size] of published blocks. Read-only for others."""
        self._keys = [b""] * num_blocks
        self._blocks: dict[bytes, int] = {}
        self._twins: dict[bytes, dict[int, None]] = {}
        self._parents = [_NONE] * num_blocks
        self._newest = [_NONE] * num_blocks
        """The newest child of each block; from there through _following to older ones."""
        self._previous = [_NONE] * num_blocks
        self._following = [_NONE] * num_blocks
        # First blocks are children of (root, first token), so that unlike prompts never meet.
        self._roots: dict[tuple[bytes, int], int] = {}
        self._root_of: dict[int, tuple[bytes, int]] = {}

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
        """Give the block that is found for a published key."""
        return self._blocks[key]

    def partial(
        self, root: bytes, parent: int | None, token_ids: NDArray[np.int32]
    ) -> tuple[int, int]:
        """Find the block after `parent` that shares most first tokens with `token_ids`.

        parent: a block that find() gave, None: the first block of a sequence with this root.
        token_ids: [n] 1 <= n <= block_size. Returns (block, shared tokens); (-1, 0) if none.
        """
        if parent is None:
            newest = self._roots.get((root, int(token_ids[0])), _NONE)
        else:
            newest = self._newest[parent]
        blocks = list(islice(self._from(newest), MAX_SIBLINGS))
        if not blocks:
            return -1, 0
        # A last column that always differs makes argmax the shared length.
        differs = np.ones((len(blocks), len(token_ids) + 1), np.bool_)
        np.not_equal(self.tokens[blocks, : len(token_ids)], token_ids, out=differs[:, :-1])
        lengths = differs.argmax(axis=1)
        best = int(lengths.argmax())
        length = int(lengths[best])
        return (blocks[best], length) if length else (-1, 0)

    def _from(self, block: int) -> Iterator[int]:
        """Iterate over a block and its older siblings."""
        while block != _NONE:
            yield block
            block = self._following[block]

    def publish(
        self,
        root: bytes,
        keys: list[bytes],
        blocks: NDArray[np.int32],
        token_ids: NDArray[np.int32],
    ) -> None:
        """Make the last len(blocks) of a sequence's blocks findable; those before them are.

        keys: of all its blocks; blocks: [n], none published; token_ids: [n, block_size].
        """
        self.tokens[blocks] = token_ids
        self.keyed[blocks] = True
        known, parents, newest = self._blocks, self._parents, self._newest
        first = len(keys) - len(blocks)
        parent = known[keys[first - 1]] if first else _NONE
        for key, block in zip(keys[first:], blocks.tolist(), strict=True):
            assert not self._keys[block], f"block {block} is published twice"
            self._keys[block] = key
            found = known.setdefault(key, block)
            if found != block:
                self._twins.setdefault(key, {})[block] = None
            elif parent == _NONE:
                self._root_of[block] = (root, int(token_ids[0, 0]))
                self._link(block, self._roots.get(self._root_of[block], _NONE))
            else:
                parents[block] = parent
                if newest[parent] == _NONE:
                    newest[parent] = block
                else:
                    self._link(block, newest[parent])
            parent = found

    def remove(self, blocks: list[int]) -> None:
        """Forget the keys of `blocks`, which are about to be overwritten."""
        parents, newest = self._parents, self._newest
        for block in blocks:
            key = self._keys[block]
            assert key, f"block {block} has no key"
            self._keys[block] = b""
            if self._twins and key in self._twins:
                self._remove_twin(key, block)
            else:
                del self._blocks[key]
                parent = parents[block]
                if parent != _NONE and self._previous[block] == self._following[block] == _NONE:
                    newest[parent] = parents[block] = _NONE
                else:
                    self._unlink(block)
            if newest[block] != _NONE:
                for child in self._from(newest[block]):
                    parents[child] = _NONE
                newest[block] = _NONE
        self.keyed[blocks] = False

    def _remove_twin(self, key: bytes, block: int) -> None:
        """Take away one of several blocks with one key; another becomes the one that is found."""
        twins = self._twins[key]
        if block in twins:
            del twins[block]
        else:
            heir = next(iter(twins))
            del twins[heir]
            self._blocks[key] = heir
            self._inherit(block, heir)
        if not twins:
            del self._twins[key]

    def _inherit(self, block: int, heir: int) -> None:
        """Put `heir` at the place of `block` in its tree."""
        for child in self._from(self._newest[block]):
            self._parents[child] = heir
        self._newest[heir], self._newest[block] = self._newest[block], _NONE
        self._parents[heir] = self._parents[block]
        root = self._root_of.get(block)
        if root is not None:
            self._root_of[heir] = root
        self._unlink(block)
        if root is not None:
            self._link(heir, self._roots.get(root, _NONE))
        elif self._parents[heir] != _NONE:
            self._link(heir, self._newest[self._parents[heir]])

    def _set_root(self, block: int, newest: int) -> None:
        """Set the newest of the first blocks among which `block` is."""
        if newest == _NONE:
            del self._roots[self._root_of[block]]
        else:
            self._roots[self._root_of[block]] = newest

    def _link(self, block: int, older: int) -> None:
        """Put a block before `older`, the newest of its siblings."""
        if self._parents[block] != _NONE:
            self._newest[self._parents[block]] = block
        else:
            self._set_root(block, block)
        if older != _NONE:
            self._previous[older] = block
            self._following[block] = older

    def _unlink(self, block: int) -> None:
        """Take a block from among its siblings and its parent."""
        previous, following = self._previous[block], self._following[block]
        parent = self._parents[block]
        self._parents[block] = _NONE
        if previous != _NONE:
            self._following[previous] = following
            self._previous[block] = _NONE
        elif parent != _NONE:
            self._newest[parent] = following
        elif block in self._root_of:
            self._set_root(block, following)
        if following != _NONE:
            self._previous[following] = previous
            self._following[block] = _NONE
        self._root_of.pop(block, None)

    def clear(self) -> None:
        """Forget everything."""
        self.remove(self.keyed.nonzero()[0].tolist())

    def check(self) -> None:
        """Assert the invariants. Slow."""
        holders: dict[bytes, set[int]] = {}
        for block, key in enumerate(self._keys):
            assert bool(key) == self.keyed[block], block
            if key:
                holders.setdefault(key, set()).add(block)
        found = {key: {block, *self._twins.get(key, ())} for key, block in self._blocks.items()}
        assert found == holders, (found, holders)
        assert all(self._twins.values()), "an empty set of twins"
        main = set(self._blocks.values())
        heads = [(block, self._root_of[block]) for block in self._roots.values()]
        assert all(self._roots[root] == block for block, root in heads), heads
        for parent, newest in [*enumerate(self._newest), *((_NONE, head) for head, _ in heads)]:
            previous = _NONE
            for block in self._from(newest):
                assert block in main, block
                assert self._parents[block] == parent, (block, parent)
                assert self._previous[block] == previous, (block, previous)
                previous = block
        for block in main:
            linked = self._from(self._roots[root] if (root := self._root_of.get(block)) else _NONE)
            parent = self._parents[block]
            siblings = linked if parent == _NONE else self._from(self._newest[parent])
            assert block in siblings or (parent == _NONE and not root), block
        assert set(self._root_of) <= main, self._root_of
