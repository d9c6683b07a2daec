"""Drafter: guesses the tokens that come next, for the target model to verify all at once.

A guess is right when it is the token that the target draws there, with the noise of that place: so
no drafter, however bad, changes a token, and none is asked to be more than fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..request import IntArray, Request


class Drafter(Protocol):
    """Guesses from known tokens.

    The same calls in the same order give the same guesses. A sequence enters a slot, is guessed
    for, and leaves; one that was preempted enters again with all it knows, in any slot.
    """

    def enter(self, slot: int, request: Request, token_ids: IntArray) -> None:
        """Begin with a sequence that knows token_ids [n] int32: its prompt, and what it has drawn.

        token_ids never change.
        """

    def propose(self, slot: int, token_ids: IntArray, count: int) -> Sequence[int]:
        """Guess what follows token_ids [n >= 1] int32: up to count > 0 tokens, or none.

        token_ids are all that the sequence in `slot` knows. Called while planning, and not all
        plans are carried out: whether it was called makes no difference to later guesses.
        """

    def leave(self, slot: int, token_ids: IntArray, *, ended: bool) -> None:
        """Forget the slot, whose sequence knows token_ids [n] and has ended, or is preempted."""

    def pass_step(self) -> None:
        """Do a part of what takes long: a step begins."""
