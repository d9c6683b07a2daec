"""A drafter that knows what comes, and lies now and then: so that guesses are right and wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..engine.request import IntArray

Texts = Callable[[], Iterable[Sequence[int]]]


class KnowingDrafter:
    """Guesses what goes on one of some texts; the same for the same tokens."""

    def __init__(self, texts: Texts, vocab: int) -> None:
        """texts: prompts with what is drawn behind them; may grow."""
        self._texts = texts
        self._vocab = vocab

    def propose(self, token_ids: IntArray, count: int) -> list[int]:
        """See Drafter."""
        known = token_ids.tolist()
        size = len(known)
        guesses: list[int] = []
        for text in self._texts():
            if len(text) > size and list(text[:size]) == known:
                guesses = list(text[size : size + count])
                break
        word = (sum(known[-3:]) + size) * 2654435761 >> 7
        if word % 2 == 0:
            # One too many, or another than what comes.
            guesses = [*guesses[: word % (count + 1)], word % self._vocab][:count]
        # What was drawn from logits that are not finite is no token.
        return [guess for guess in guesses if guess >= 0][: 1 + word % count]
