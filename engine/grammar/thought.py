"""ThoughtLimit: how far the thought before a form has come, and the token that must end it.

Twin of reference.edits.due_token for an output whose grammar says where the thought ends: a grammar
of the thought alone is followed beside, so that both mean the same text by its end, however that is
cut into tokens. A function of the tokens, as Follower is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..request import BoundedThought
from .grammars import Compiled


class ThoughtLimit:
    """One output's thought."""

    def __init__(self, compiled: Compiled, thought: BoundedThought, prompt: Sequence[int]) -> None:
        """compiled: the thought's grammar; prompt: what the output follows."""
        self._matcher: Any = compiled.start()
        self._limit = limit = thought.limit
        self._is_over = False
        self._has_begun = thought.is_open
        self._seen: list[int] = []
        """Tokens of the output until the thought has begun, then those of the thought."""
        if thought.is_open:
            begun = _behind(prompt, limit.start)
            if begun is not None and _behind(prompt[begun:], limit.end) is None:
                self._seen += prompt[begun:]

    def read(self, token_id: int) -> None:
        """Take in the next token."""
        if self._is_over:
            return
        # A token that the thought cannot have is of what comes behind it.
        consumed = token_id >= 0 and self._matcher.consume_token(token_id)
        self._is_over = not consumed or self._matcher.is_accepting()
        self._seen.append(token_id)
        start = self._limit.start
        if not self._has_begun and tuple(self._seen[-len(start) :]) == start:
            self._seen, self._has_begun = [], True

    @property
    def due(self) -> int | None:
        """The token that must come next; None: what the grammar allows."""
        if self._is_over or not self._has_begun or len(self._seen) < self._limit.budget:
            return None
        end = self._limit.end
        said = (count for count in range(len(end) - 1, 0, -1) if self._ends_with(end[:count]))
        return end[next(said, 0)]

    def copy(self) -> ThoughtLimit:
        """Return another at the same place."""
        other = object.__new__(ThoughtLimit)
        other._matcher, other._limit = self._matcher.deep_copy(), self._limit
        other._is_over, other._has_begun = self._is_over, self._has_begun
        other._seen = list(self._seen)
        return other

    def _ends_with(self, tokens: Sequence[int]) -> bool:
        return tuple(self._seen[-len(tokens) :]) == tuple(tokens)


def _behind(tokens: Sequence[int], marker: Sequence[int]) -> int | None:
    """Return the place behind the last marker in tokens."""
    size, wanted = len(marker), list(marker)
    for end in range(len(tokens), size - 1, -1):
        if list(tokens[end - size : end]) == wanted:
            return end
    return None
