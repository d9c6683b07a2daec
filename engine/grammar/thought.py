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
        self._count = 0
        """Tokens of the output until the thought has begun, then those of the thought,"""
        self._newest: tuple[int, ...] = ()
        """and the newest of them: as many as a marker has."""
        if thought.is_open:
            begun = _behind(prompt, limit.start)
            if begun is not None and _behind(prompt[begun:], limit.end) is None:
                for token_id in prompt[begun:]:
                    self._see(token_id)

    def read(self, token_id: int) -> None:
        """Take in the next token."""
        if self._is_over:
            return
        # A token that the thought cannot have is of what comes behind it.
        consumed = token_id >= 0 and self._matcher.consume_token(token_id)
        self._is_over = not consumed or self._matcher.is_accepting()
        self._see(token_id)
        if not self._has_begun and self._ends_with(self._limit.start):
            self._count, self._newest, self._has_begun = 0, (), True

    @property
    def due(self) -> int | None:
        """The token that must come next; None: what the grammar allows."""
        if self._is_over or not self._has_begun or self._count < self._limit.budget:
            return None
        end = self._limit.end
        said = (count for count in range(len(end) - 1, 0, -1) if self._ends_with(end[:count]))
        return end[next(said, 0)]

    def copy(self) -> ThoughtLimit:
        """Return another at the same place."""
        other = object.__new__(ThoughtLimit)
        other._matcher, other._limit = self._matcher.deep_copy(), self._limit
        other._is_over, other._has_begun = self._is_over, self._has_begun
        other._count, other._newest = self._count, self._newest
        return other

    def _see(self, token_id: int) -> None:
        most = max(len(self._limit.start), len(self._limit.end))
        self._count += 1
        self._newest = (*self._newest, token_id)[-most:]

    def _ends_with(self, tokens: Sequence[int]) -> bool:
        return self._newest[-len(tokens) :] == tuple(tokens)


def _behind(tokens: Sequence[int], marker: Sequence[int]) -> int | None:
    """Return the place behind the last marker in tokens."""
    size, wanted = len(marker), list(marker)
    for end in range(len(tokens), size - 1, -1):
        if list(tokens[end - size : end]) == wanted:
            return end
    return None
