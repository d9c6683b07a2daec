"""GrammarRows: the grammars of the slots that have one, and the masks of a step's rows.

Owns one Follower a slot. A mask needs the newest token of its sequence, whose step may still be on
its way: then a thread of its own waits for that step and computes masks while the device computes
the next one's layers. Nobody waits before the logits are there.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..grammar.follower import ALL, Follower
from ..grammar.grammars import Grammars
from ..plan import Admitted
from .link import Landing, Link

logger = logging.getLogger("quire")

BITS = 32


class MaskedRows(NamedTuple):
    """The sampling rows of a step that have a grammar."""

    rows: list[int]
    slots: list[int]
    early: list[bool]
    """Whether the row may not stop yet (min_tokens)."""


class Masks(NamedTuple):
    """What a step's masked rows may draw."""

    rows: list[int]
    words: NDArray[np.uint32]
    """[masked, vocab / 32] one bit a token, the lowest first."""
    faults: dict[int, str]
    """By slot: grammars that cannot be followed."""


@dataclass(slots=True, eq=False)
class Constrained:
    """One slot's grammar."""

    follower: Follower
    stop_token_ids: tuple[int, ...]
    """Not drawn while it is early, where anything else may come."""
    unread: deque[tuple[Landing, int]] = field(default_factory=deque)
    """Tokens that were drawn since: (step, row among its samples)."""

    def read(self) -> None:
        """Wait for what was drawn, and take it in."""
        while self.unread:
            landing, row = self.unread.popleft()
            self.follower.read([int(landing.tokens()[row])])


class GrammarRows:
    """The grammars of one runner's slots."""

    def __init__(self, link: Link, vocab_size: int) -> None:
        self._link, self._vocab_size = link, vocab_size
        self.compiled = Grammars()
        """Where they come from; these know none."""
        self._slots: dict[int, Constrained] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._bits: Tensor | None = None

    def admit(self, admitted: Admitted) -> bool:
        """Take a sequence's grammar into its slot; whether it has one. ParamsError if it fails."""
        self._slots.pop(admitted.slot, None)
        use = admitted.grammar
        if use is None:
            return False
        start = admitted.num_prompt_tokens - use.num_read
        tokens = admitted.token_ids[start:].tolist()
        follower = Follower(self.compiled.resume(use.source), tokens)
        stops = tuple(token for token in admitted.stop_token_ids if token < self._vocab_size)
        self._slots[admitted.slot] = Constrained(follower, stops)
        return True

    def begin(self, masked: MaskedRows) -> Future[Masks]:
        """Compute the masks of a step's rows beside the caller."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "quire-grammars")
        return self._thread.submit(self._fill, masked)

    def launched(self, masked: MaskedRows, landing: Landing) -> None:
        """Remember which step draws the next token of each row."""
        for row, slot in zip(masked.rows, masked.slots, strict=True):
            self._slots[slot].unread.append((landing, row))

    def apply(self, logits: Tensor, masks: Masks, *, keep: bool) -> Tensor:
        """Return logits [rows, vocab] with what must not be drawn at -infinity.

        keep: logits stay as they are.
        """
        x = logits.clone() if keep else logits
        denied = self._unpack(masks.words)
        if len(masks.rows) == len(x):
            return x.masked_fill_(denied, -torch.inf)
        rows = self._link.upload(np.array(masks.rows, np.int64))
        x[rows] = x[rows].masked_fill(denied, -torch.inf)
        return x

    def _fill(self, masked: MaskedRows) -> Masks:
        num_words = -(-self._vocab_size // BITS)
        words = np.zeros((len(masked.rows), num_words), np.uint32)
        faults: dict[int, str] = {}
        for mask, slot, is_early in zip(words, masked.slots, masked.early, strict=True):
            one = self._slots[slot]
            try:
                one.read()
                one.follower.fill(mask)
                fault = one.follower.fault
            except Exception as error:  # of this row alone
                logger.exception("the grammar of the sequence in slot %d failed", slot)
                fault = f"Its grammar failed: {type(error).__name__}: {error}"
            if fault is not None:
                mask[:], faults[slot] = ALL, fault
            elif is_early:
                _withhold(mask, one.stop_token_ids)
        return Masks(masked.rows, words, faults)

    def _unpack(self, words: NDArray[np.uint32]) -> Tensor:
        """Return [masked, vocab] bool on the device: true for what must not be drawn."""
        if self._bits is None:
            bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
            self._bits = torch.from_numpy(bits == 0).to(self._link.device)
        packed = self._link.upload(words.reshape(-1).view(np.int32)).view(torch.uint8)
        denied = self._bits.index_select(0, packed.int())
        return denied.view(len(words), -1)[:, : self._vocab_size]


def _withhold(mask: NDArray[np.uint32], tokens: Sequence[int]) -> None:
    """Take tokens out of a mask, unless nothing were left."""
    before = mask.copy()
    for token in tokens:
        mask[token // BITS] &= ALL ^ np.uint32(1 << token % BITS)
    if not mask.any():
        mask[:] = before
