"""Drafter: guesses the tokens that come next, for the target model to verify all at once.

A guess is right when it is the token that the target draws there, with the noise of that place: so
no drafter, however bad, changes a token, and none is asked to be more than fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..request import IntArray


class Drafter(Protocol):
    """Guesses from known tokens."""

    def propose(self, token_ids: IntArray, count: int) -> Sequence[int]:
        """Guess what follows token_ids [n >= 1] int32: up to count > 0 tokens, or none.

        A function of its arguments, so that the same calls make the same plans.
        """
