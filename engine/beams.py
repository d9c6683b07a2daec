"""Beam search: which sequences go on, which are answers, and when no better one can come.

Pure. In each step every live sequence is continued by its 2 * beam_width likeliest tokens; a token
that ends a sequence makes it an answer; of the others the beam_width likeliest live on. Equal ones
are ordered by their parents, then by token id. An answer's score is its log probability divided by
its length, prompt included and the ending token not, to the power of length_penalty. All as in
vLLM, but that a search ends as soon as nothing that is still live can become one of the best:
log probabilities only fall.

Log probabilities are float32 and added in float64, the first token's first, as those of every
answer are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from .params import BeamSearchParams, RequestOutputKind
from .request import (
    CompletionOutput,
    Finished,
    FinishReason,
    IntArray,
    MoreText,
    Request,
    RequestOutput,
    Timeline,
)
from .sched.stopping import NOT_FINITE
from .text.output import OutputState, TokenLogprobs
from .text.tokenizer import Tokenizer

MARGIN = 1e-9
"""Relative; powers are not rounded in order. A search goes on where the difference is less."""


@dataclass(slots=True, eq=False, frozen=True)
class Beam:
    """One sequence: what it continues and its last token."""

    token_ids: IntArray
    """Prompt and answer so far."""
    cumulative: float = 0.0
    parent: Beam | None = None
    """None: it is the prompt."""
    last: TokenLogprobs | None = None
    """Of the last token, with the likeliest in its place."""
    stopped: bool = False
    """Whether its last token ends it."""

    def rows(self) -> list[TokenLogprobs]:
        """Give the log probabilities of the answer's tokens."""
        rows: list[TokenLogprobs] = []
        beam: Beam | None = self
        while beam is not None and beam.last is not None:
            rows.append(beam.last)
            beam = beam.parent
        return rows[::-1]


class BeamSearch:
    """The search of one request, told as one OutputState is one. `advance` it until `finished`."""

    def __init__(
        self,
        request: Request,
        params: BeamSearchParams,
        *,
        prompt_text: str | None,
        tokenizer: Tokenizer | None,
        max_len: int,
    ) -> None:
        """request: of the first step. max_len: no sequence becomes longer."""
        self.request = request
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.timeline: Timeline | None = None
        self.num_cached_tokens = 0
        self.live = [Beam(request.prompt_token_ids)]
        """The likeliest first."""
        self.num_steps = 0
        self._params = params
        self._prompt_text = prompt_text
        self._tokenizer = tokenizer
        self._max_len = max_len
        self._eos = frozenset(() if params.ignore_eos else request.eos_token_ids)
        self._answers: list[Beam] = []
        self._told: tuple[CompletionOutput, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the answers are there."""
        return self.finish_reason is not None

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all answers that are told."""
        return sum(len(one.token_ids) for one in self._told)

    def advance(self, rows: Sequence[TokenLogprobs]) -> list[tuple[int, Request]]:
        """Take a step: rows are the log probabilities of what continues each live sequence.

        Returns the requests of the next step, each with the place of the sequence that it forks
        among those that were live; none when the search has ended.
        """
        self.num_steps += 1
        if any(math.isnan(row.top[0]) for row in rows):
            self.fail(NOT_FINITE)
            return []
        places: list[int] = []
        parents, self.live = self.live, []
        for cumulative, place, index in self._candidates(parents, rows):
            parent, row = parents[place], rows[place]
            token_id = row.top_ids[index]
            stopped = token_id in self._eos
            if not stopped and len(self.live) == self._params.beam_width:
                continue
            tokens = np.append(parent.token_ids, np.int32(token_id))
            beam = Beam(tokens, cumulative, parent, self._told_row(row, index), stopped)
            if stopped:
                self._answers.append(beam)
            else:
                self.live.append(beam)
                places.append(place)
        if not self.live or len(self.live[0].token_ids) == self._max_len:
            self._finish("length")
        elif self._is_settled():
            self.live = []
            self._finish("length")
        if self.finished:
            return []
        return [(place, self._next(i)) for i, place in enumerate(places)]

    def fail(self, message: str) -> None:
        """End the search with an error, for all answers."""
        self.finish_reason, self.error = "error", message
        self._told = tuple(
            CompletionOutput(index=i, text="", token_ids=(), finish_reason="error")
            for i in range(self._params.beam_width)
        )

    def abort(self) -> None:
        """End the search with the best that there are so far."""
        self._finish("abort")

    def more(self) -> MoreText | None:
        """See Reading: of several answers there is always more to say."""
        return None

    def output(self, kind: RequestOutputKind = RequestOutputKind.CUMULATIVE) -> RequestOutput:
        """Return the answers, the best first, whatever kind is asked for; none before the end."""
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._prompt_text,
            prompt_token_ids=tuple(self.request.prompt_token_ids.tolist()),
            outputs=self._told,
            finished=self.finished,
            num_cached_tokens=self.num_cached_tokens,
            error=self.error,
            timeline=self.timeline if self.finished else None,
        )

    def _candidates(
        self, parents: Sequence[Beam], rows: Sequence[TokenLogprobs]
    ) -> Iterator[tuple[float, int, int]]:
        """Give what may continue the parents, the likeliest first.

        (cumulative log probability, place of the parent, index in its row)
        """
        count = self._params.num_candidates
        before = np.array([parent.cumulative for parent in parents])
        sums = before[:, None] + np.array([row.top[:count] for row in rows])
        ids = np.array([row.top_ids[:count] for row in rows])
        places, indices = np.indices(sums.shape).reshape(2, -1)
        order = np.lexsort((ids.ravel(), places, -sums.ravel()))
        # What cannot happen is no candidate.
        order = order[sums.ravel()[order] > -np.inf]
        columns = (sums.ravel()[order], places[order], indices[order])
        return zip(*(column.tolist() for column in columns), strict=True)

    def _told_row(self, row: TokenLogprobs, index: int) -> TokenLogprobs:
        """Make the row of the token that is index-th in the row of the likeliest."""
        num_told, logprob = self._params.logprobs, row.top[index]
        if num_told is None:
            num_told = self._params.num_candidates
        rank = 1 + sum(one > logprob for one in row.top)
        return TokenLogprobs(logprob, rank, row.top_ids[:num_told], row.top[:num_told])

    def _next(self, index: int) -> Request:
        """Make the request that computes the index-th live sequence's last token."""
        name = f"{self.request.request_id}#{self.num_steps}.{index}"
        return replace(self.request, request_id=name, prompt_token_ids=self.live[index].token_ids)

    def _score(self, cumulative: float, length: int) -> float:
        return float(cumulative / length**self._params.length_penalty)

    def _score_of(self, beam: Beam) -> float:
        return self._score(beam.cumulative, len(beam.token_ids) - beam.stopped)

    def _is_settled(self) -> bool:
        """Tell whether what is live cannot become one of the best any more."""
        width = self._params.beam_width
        if len(self._answers) < width:
            return False
        if self._params.early_stopping is True:
            return True
        least = sorted(map(self._score_of, self._answers), reverse=True)[width - 1]
        # Its log probability falls and its length grows: which of them weighs more, the penalty's
        # sign decides.
        first = self.live[0]
        best = max(
            self._score(first.cumulative, length)
            for length in (len(first.token_ids), self._max_len)
        )
        return least > best + MARGIN * abs(best)

    def _finish(self, reason: FinishReason) -> None:
        """Tell the best of what has ended and of what is live, which ends for `reason`."""
        candidates = [*self._answers, *self.live]
        best = sorted(candidates, key=self._score_of, reverse=True)[: self._params.beam_width]
        self._told = tuple(self._tell(i, beam, reason) for i, beam in enumerate(best))
        self.finish_reason = self._told[0].finish_reason
        self.live = []

    def _tell(self, index: int, beam: Beam, reason: FinishReason) -> CompletionOutput:
        """Word an answer as if it had been generated token by token."""
        state = OutputState(self.request, self._prompt_text, self._tokenizer, index)
        rows = beam.rows()
        answer = beam.token_ids[len(self.request.prompt_token_ids) :].tolist()
        for place, (token_id, row) in enumerate(zip(answer, rows, strict=True), 1):
            end = Finished(0, "stop" if beam.stopped else reason) if place == len(rows) else None
            state.push(token_id, end, row)
        if not rows:
            state.push(-1, Finished(0, reason))
        return replace(state.output().outputs[0], seed=None)
