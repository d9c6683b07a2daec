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

from ..grammar.follower import ALL, BITS, Follower
from ..grammar.grammars import Grammars
from ..grammar.thought import ThoughtLimit
from ..plan import Admitted
from .link import Landing, Link

logger = logging.getLogger("quire")


class MaskedRows(NamedTuple):
    """The sampling rows of a step that have a grammar."""

    rows: list[int]
    slots: list[int]
    early: list[bool]
    """Whether the row may not stop yet (min_tokens)."""
    guesses: Sequence[int] = ()
    """The guess that a row comes behind, the row before it being the same slot's; -1 where it comes
    behind known tokens. Empty: all do."""


class Masks(NamedTuple):
    """What a step's masked rows may draw."""

    rows: list[int]
    words: NDArray[np.uint32]
    """[masked, vocab / 32] one bit a token, the lowest first."""
    faults: dict[int, str]
    """By slot: grammars that cannot be followed."""
    void: list[int]
    """Rows whose guesses failed the grammar's compiler: what they draw must not count."""


@dataclass(slots=True, eq=False)
class Constrained:
    """One slot's grammar."""

    follower: Follower
    stop_token_ids: tuple[int, ...]
    """Not drawn while it is early, where anything else may come."""
    unread: deque[tuple[Landing, int, list[int]]] = field(default_factory=deque)
    """Tokens that were drawn since: (step, row among its samples, guesses that rows behind it
    follow)."""

    def read(self) -> None:
        """Wait for what was drawn, and take in what counts."""
        while self.unread:
            landing, row, guesses = self.unread.popleft()
            drawn = landing.tokens()[row : row + len(guesses) + 1].tolist()
            wrong = (i for i, guess in enumerate(guesses) if guess != drawn[i])
            self.follower.read(drawn[: next(wrong, len(guesses)) + 1])


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
        thought = None
        if use.thought is not None:
            compiled = self.compiled.resume(use.thought.source)
            prompt = admitted.token_ids[:start].tolist()
            thought = ThoughtLimit(compiled, use.thought, prompt)
        follower = Follower(self.compiled.resume(use.source), tokens, thought)
        stops = tuple(token for token in admitted.stop_token_ids if token < self._vocab_size)
        self._slots[admitted.slot] = Constrained(follower, stops)
        return True

    def begin(self, masked: MaskedRows) -> Future[Masks]:
        """Compute the masks of a step's rows beside the caller."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "quire-grammars")
        return self._thread.submit(self._fill, masked)

    def launched(self, masked: MaskedRows, landing: Landing, void: Sequence[int] = ()) -> None:
        """Remember which step draws the next tokens of each slot. void: of its masks."""
        for row, slot, guess in zip(masked.rows, masked.slots, guesses_of(masked), strict=True):
            unread = self._slots[slot].unread
            if guess < 0:
                unread.append((landing, row, []))
            elif row not in void:
                unread[-1][2].append(guess)

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
        masks = Masks(masked.rows, np.zeros((len(masked.rows), num_words), np.uint32), {}, [])
        ahead: Follower | None = None
        rows = zip(masked.rows, masked.slots, masked.early, guesses_of(masked), strict=True)
        for index, (row, slot, is_early, guess) in enumerate(rows):
            one, mask, fault = self._slots[slot], masks.words[index], None
            is_void = guess >= 0 and row - 1 in masks.void
            try:
                if guess < 0:
                    one.read()
                    ahead = one.follower
                    ahead.fill(mask)
                else:
                    ahead = _follow(one, ahead, guess, masks.words[index - 1], mask)
                fault = None if ahead is None else ahead.fault
            except Exception as error:  # of this row alone
                logger.exception("the grammar of the sequence in slot %d failed", slot)
                fault = f"Its grammar failed: {type(error).__name__}: {error}"
            if fault is not None and guess < 0:
                masks.faults[slot] = fault
            elif fault is not None or is_void:
                masks.void.append(row)
            if fault is not None or ahead is None:
                mask[:], ahead = ALL, None
            elif is_early:
                _withhold(mask, one.stop_token_ids)
        return masks

    def _unpack(self, words: NDArray[np.uint32]) -> Tensor:
        """Return [masked, vocab] bool on the device: true for what must not be drawn."""
        if self._bits is None:
            bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
            self._bits = torch.from_numpy(bits == 0).to(self._link.device)
        packed = self._link.upload(words.reshape(-1).view(np.int32)).view(torch.uint8)
        denied = self._bits.index_select(0, packed.int())
        return denied.view(len(words), -1)[:, : self._vocab_size]


def guesses_of(masked: MaskedRows) -> Sequence[int]:
    """Give the guess that each row comes behind, or -1."""
    return masked.guesses or [-1] * len(masked.rows)


def _follow(
    one: Constrained,
    ahead: Follower | None,
    guess: int,
    before: NDArray[np.uint32],
    mask: NDArray[np.uint32],
) -> Follower | None:
    """Fill the mask of a row behind a guess, by a copy of the follower: nothing is rolled back.

    ahead: at the row before it, whose mask is `before`. None where the guess cannot be drawn there:
    then no row behind it counts.
    """
    if ahead is None or not before[guess // BITS] >> np.uint32(guess % BITS) & 1:
        return None
    if ahead is one.follower:
        ahead = ahead.copy()
    ahead.read([guess])
    ahead.fill(mask)
    return ahead


def _withhold(mask: NDArray[np.uint32], tokens: Sequence[int]) -> None:
    """Take tokens out of a mask, unless nothing were left."""
    before = mask.copy()
    for token in tokens:
        mask[token // BITS] &= ALL ^ np.uint32(1 << token % BITS)
    if not mask.any():
        mask[:] = before
