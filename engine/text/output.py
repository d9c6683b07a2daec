"""The answer of one request as it grows: tokens in, text, logprobs and RequestOutputs out.

Owns the answer's text and the decision that a stop string ended it. A token costs the same however
long the answer is, unless cumulative outputs are asked for after each.
"""

from __future__ import annotations

from typing import NamedTuple

from ..params import RequestOutputKind
from ..request import (
    CompletionOutput,
    Finished,
    FinishReason,
    Logprob,
    LogprobRows,
    MoreText,
    PromptLogprobs,
    Request,
    RequestOutput,
    Timeline,
    VectorRows,
)
from .detokenizer import IncrementalDetokenizer, start_detokenizer
from .stop import StopMatcher
from .tokenizer import Tokenizer


class TokenLogprobs(NamedTuple):
    """Log probabilities of one sampled token."""

    logprob: float
    rank: int
    top_ids: tuple[int, ...]
    top: tuple[float, ...]


def take_row(rows: LogprobRows, row: int, num_top: int) -> TokenLogprobs:
    """Return one row as Python numbers, with the num_top most likely tokens."""
    return TokenLogprobs(
        float(rows.sampled[row]),
        int(rows.ranks[row]),
        tuple(rows.top_ids[row, :num_top].tolist()),
        tuple(rows.top[row, :num_top].tolist()),
    )


class OutputState:
    """One answer. Push every token of its events until `finished`, then drop the request.

    The stop token that ended an answer stays in token_ids and shows no text, unless the parameters
    include stops. What comes after a stop string is ignored: the engine may still have had tokens
    under way.
    """

    __slots__ = (
        "_detokenizer",
        "_logprobs",
        "_matcher",
        "_prompt_logprobs",
        "_prompt_text",
        "_prompt_token_ids",
        "_seen_texts",
        "_seen_tokens",
        "_sum",
        "_texts",
        "_token_ids",
        "_tokenizer",
        "error",
        "finish_reason",
        "index",
        "num_cached_tokens",
        "request",
        "stop_reason",
        "timeline",
        "vector",
    )

    def __init__(
        self,
        request: Request,
        prompt_text: str | None,
        tokenizer: Tokenizer | None,
        index: int = 0,
    ) -> None:
        """index: of the answer among those of its request."""
        self.index = index
        params = request.params
        self.request = request
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.error: str | None = None
        self.timeline: Timeline | None = None
        self.vector: VectorRows | None = None
        """[width] of a request that pools."""
        self.num_cached_tokens = 0
        self._tokenizer = tokenizer
        self._prompt_text = prompt_text
        self._prompt_token_ids: tuple[int, ...] = tuple(request.prompt_token_ids.tolist())
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if params.prompt_logprobs is not None:
            self._prompt_logprobs = [None]
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        """Released text, one entry a token at most."""
        self._logprobs: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        self._sum = 0.0
        self._seen_tokens = 0
        """Tokens and texts that earlier deltas gave."""
        self._seen_texts = 0
        self._detokenizer: IncrementalDetokenizer | None = None
        self._matcher: StopMatcher | None = None
        if tokenizer is not None and params.detokenize:
            self._detokenizer = start_detokenizer(
                tokenizer,
                self._prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
            )
        if params.stop:
            assert self._detokenizer is not None, params.stop
            include = params.include_stop_str_in_output
            self._matcher = StopMatcher(params.stop, include=include)

    @property
    def finished(self) -> bool:
        """Whether no more text will come."""
        return self.finish_reason is not None

    @property
    def known_token_ids(self) -> tuple[int, ...]:
        """Prompt and answer so far."""
        return (*self._prompt_token_ids, *self._token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self._token_ids)

    def push(
        self,
        token_id: int,
        finished: Finished | None = None,
        logprobs: TokenLogprobs | None = None,
    ) -> bool:
        """Take one token (-1: none) and why it was the last, if it was.

        Returns True when a stop string ended the answer and the engine does not know: abort it.
        """
        if self.finish_reason is not None:
            return False
        if token_id >= 0:
            self._token_ids.append(token_id)
            if self._logprobs is not None:
                assert logprobs is not None, (self.request.request_id, token_id)
                self._note(token_id, logprobs, self._logprobs)
            if self._detokenizer is not None and (finished is None or self._shows(finished)):
                text = self._detokenizer.push(token_id)
                if text:
                    self._release(text)
        if finished is None:
            return self.finish_reason is not None
        self._finish(finished)
        return False

    def push_prompt(self, told: PromptLogprobs) -> None:
        """Take the log probabilities of the next tokens of the prompt."""
        noted, num_top = self._prompt_logprobs, self.request.params.prompt_logprobs
        assert noted is not None and num_top is not None, self.request.request_id
        assert told.start == len(noted), (self.request.request_id, told.start, len(noted))
        token_ids = self._prompt_token_ids[told.start : told.start + len(told.rows.sampled)]
        for row, token_id in enumerate(token_ids):
            noted.append(self._entries(token_id, take_row(told.rows, row, num_top)))

    def fail(self, message: str) -> None:
        """End the answer with an error; what was shown stays."""
        self.finish_reason, self.error = "error", message

    def output(self, kind: RequestOutputKind = RequestOutputKind.CUMULATIVE) -> RequestOutput:
        """Return the answer so far, or what is new since the last call with DELTA."""
        token_ids, texts, logprobs = self._token_ids, self._texts, self._logprobs
        if kind is RequestOutputKind.DELTA:
            token_ids = token_ids[self._seen_tokens :]
            texts = texts[self._seen_texts :]
            logprobs = None if logprobs is None else logprobs[self._seen_tokens :]
            self._seen_tokens = len(self._token_ids)
            self._seen_texts = len(self._texts)
        answer = CompletionOutput(
            index=self.index,
            text="".join(texts),
            token_ids=tuple(token_ids),
            cumulative_logprob=None if logprobs is None else self._sum,
            logprobs=None if logprobs is None else tuple(logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            seed=self.request.seed,
        )
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._prompt_text,
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=self._whole_prompt(),
            outputs=(answer,),
            finished=self.finish_reason is not None,
            num_cached_tokens=self.num_cached_tokens,
            error=self.error,
            timeline=self.timeline if self.finish_reason is not None else None,
            vector=self.vector,
        )

    def more(self) -> MoreText | None:
        """Return what is new since the last delta where that is text alone, else None: see output.

        There is more to say of the first delta, of the last one and of log probabilities.
        """
        if self.finish_reason is not None or self._logprobs is not None or not self._seen_tokens:
            return None
        texts, num_tokens = self._texts, len(self._token_ids)
        told = MoreText("".join(texts[self._seen_texts :]), num_tokens - self._seen_tokens)
        self._seen_tokens, self._seen_texts = num_tokens, len(texts)
        return told

    def _shows(self, finished: Finished) -> bool:
        """Tell whether the last token has text: a stop token has none, unless asked for."""
        return finished.reason != "stop" or self.request.params.include_stop_str_in_output

    def _release(self, text: str) -> None:
        """Show new text, up to a stop string."""
        if self._matcher is not None:
            # As in vLLM: a stop string counts when a token past min_tokens completes it.
            armed = len(self._token_ids) > self.request.params.min_tokens
            text, stop = self._matcher.feed(text, armed=armed)
            if stop is not None:
                self.finish_reason, self.stop_reason = "stop", stop
        if text:
            self._texts.append(text)

    def _finish(self, finished: Finished) -> None:
        detokenizer = None if self.finish_reason is not None else self._detokenizer
        if detokenizer is not None and (text := detokenizer.flush()):
            self._release(text)
        if self.finish_reason is not None and finished.reason in ("stop", "length", "repetition"):
            return  # a stop string came first
        if self._matcher is not None and (text := self._matcher.flush()):
            self._texts.append(text)
        self.finish_reason = finished.reason
        self.stop_reason = finished.stop_reason
        self.error = finished.message

    def _note(
        self, token_id: int, logprobs: TokenLogprobs, noted: list[dict[int, Logprob]]
    ) -> None:
        """Add the token's log probabilities."""
        self._sum += logprobs.logprob
        noted.append(self._entries(token_id, logprobs))

    def _entries(self, token_id: int, logprobs: TokenLogprobs) -> dict[int, Logprob]:
        """Return a token's log probabilities: its own first, then the most likely."""
        entries = {token_id: self._logprob(token_id, logprobs.logprob, logprobs.rank)}
        for rank, (top_id, top) in enumerate(zip(logprobs.top_ids, logprobs.top, strict=True), 1):
            # Logits that are not finite have no likeliest token: -1.
            if top_id >= 0 and top_id not in entries:
                entries[top_id] = self._logprob(top_id, top, rank)
        return entries

    def _whole_prompt(self) -> tuple[dict[int, Logprob] | None, ...] | None:
        """Return the log probabilities of the prompt, once they are all there."""
        noted = self._prompt_logprobs
        whole = noted is not None and len(noted) == len(self._prompt_token_ids)
        return tuple(noted) if noted is not None and whole else None

    def _logprob(self, token_id: int, logprob: float, rank: int) -> Logprob:
        text = None if self._tokenizer is None else self._tokenizer.token_text(token_id)
        return Logprob(logprob, rank, text)
