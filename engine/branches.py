"""The n answers of one request: n sequences that share their prompt, told as one.

Pure but for the states, which are Front's. Each answer is that of a request of its own with the
seed of its number: `n` saves the prompt, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from .params import RequestOutputKind
from .request import MoreText, Request, RequestOutput
from .text.output import OutputState


def branches_of(request: Request) -> list[Request]:
    """Return the n requests that one stands for; the first keeps its id and its seed."""
    n = request.params.n
    if n == 1:
        return [request]
    first = replace(request.params, n=1)
    # The first one tells of the prompt for all.
    later = replace(first, prompt_logprobs=None)
    return [
        replace(
            request,
            request_id=request.request_id if index == 0 else f"{request.request_id}#{index}",
            params=later if index else first,
            seed=(request.seed + index) % 2**64,
        )
        for index in range(n)
    ]


class Branches:
    """Several answers, as one OutputState is one."""

    def __init__(self, states: Sequence[OutputState]) -> None:
        self._states = states
        self._ended: set[int] = set()
        """Answers whose end a delta has told."""

    @property
    def finished(self) -> bool:
        """Whether all have ended."""
        return all(state.finished for state in self._states)

    def more(self) -> MoreText | None:
        """See Reading: of several answers there is always more to say."""
        return None

    def output(self, kind: RequestOutputKind = RequestOutputKind.CUMULATIVE) -> RequestOutput:
        """Return all answers so far; with DELTA what is new, of those that have something new."""
        whole = [state.output(kind) for state in self._states]
        answers = [output.outputs[0] for output in whole]
        if kind is RequestOutputKind.DELTA:
            answers = [
                one
                for one in answers
                if one.token_ids
                or one.text
                or (one.finish_reason is not None and one.index not in self._ended)
            ]
            self._ended |= {one.index for one in answers if one.finish_reason is not None}
        return replace(
            whole[0],
            outputs=tuple(answers),
            finished=self.finished,
            error=next((one.error for one in whole if one.error), None),
        )
