"""Drafters for the machines: one that knows what comes, and one that learns it.

Both look at the lives that they are told of: a slot is entered and left in turn, and what its
sequence knows only grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from ..engine.request import IntArray, Request
from ..engine.spec.suffix import SuffixDrafter

Texts = Callable[[], Iterable[Sequence[int]]]
DrafterName = Literal["knowing", "learning", "model", "eagle3", "mtp"]
DRAFTERS: tuple[DrafterName, ...] = get_args(DrafterName)
"""Two of the host, and those of the device."""


class KnowingDrafter:
    """Guesses what goes on one of some texts, and lies now and then: so that guesses are right and
    wrong. The same for the same tokens."""

    def __init__(self, texts: Texts, vocab: int) -> None:
        """texts: prompts with what is drawn behind them; may grow."""
        self._texts = texts
        self._vocab = vocab
        self.known: dict[int, list[int]] = {}
        """What the sequence in each slot knew when it was last seen."""

    def enter(self, slot: int, request: Request, token_ids: IntArray) -> None:
        """See Drafter."""
        assert slot not in self.known, slot
        prompt = request.prompt_token_ids
        assert token_ids[: len(prompt)].tolist() == prompt.tolist(), request.request_id
        self.known[slot] = token_ids.tolist()

    def leave(self, slot: int, token_ids: IntArray, *, ended: bool) -> None:
        """See Drafter."""
        del ended
        self._look(slot, token_ids.tolist())
        del self.known[slot]

    def pass_step(self) -> None:
        """See Drafter."""

    def _look(self, slot: int, known: list[int]) -> None:
        before = self.known[slot]
        assert known[: len(before)] == before, (slot, known, before)
        self.known[slot] = known

    def propose(self, slot: int, token_ids: IntArray, count: int) -> list[int]:
        """See Drafter."""
        known = token_ids.tolist()
        self._look(slot, known)
        return self.guess(known, count)

    def guess(self, known: list[int], count: int) -> list[int]:
        """Guess up to count tokens behind what is known."""
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


class LearningDrafter(KnowingDrafter):
    """Guesses by suffixes, with little memory; what they do not tell it knows, mostly."""

    def __init__(self, texts: Texts, vocab: int) -> None:
        """See KnowingDrafter."""
        super().__init__(texts, vocab)
        self._suffixes = SuffixDrafter(
            max_tree_depth=6,
            max_cached_requests=3,
            max_spec_factor=2.0,
            min_token_prob=0.1,
            most_kept=40,
        )

    def enter(self, slot: int, request: Request, token_ids: IntArray) -> None:
        """See Drafter."""
        super().enter(slot, request, token_ids)
        self._suffixes.enter(slot, request, token_ids)

    def leave(self, slot: int, token_ids: IntArray, *, ended: bool) -> None:
        """See Drafter."""
        super().leave(slot, token_ids, ended=ended)
        self._suffixes.leave(slot, token_ids, ended=ended)

    def pass_step(self) -> None:
        """See Drafter."""
        self._suffixes.pass_step()

    def propose(self, slot: int, token_ids: IntArray, count: int) -> list[int]:
        """See Drafter."""
        known = super().propose(slot, token_ids, count)
        return list(self._suffixes.propose(slot, token_ids, count)) or known


def make_drafter(name: DrafterName, texts: Texts, vocab: int) -> KnowingDrafter | None:
    """Make the drafter of a machine's run; None where the device guesses."""
    match name:
        case "knowing":
            return KnowingDrafter(texts, vocab)
        case "learning":
            return LearningDrafter(texts, vocab)
    return None
