"""From RequestOutputs to OpenAI's responses, whole and in pieces.

A Reply belongs to one HTTP request and keeps what its pieces share: usage, and what stands around
their texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from ..engine.request import CompletionOutput, MoreText, RequestOutput
from .choices import Choices, tell_prompt
from .errors import ApiError, Failure
from .mould import Mould
from .schema import (
    ChatChoice,
    CompletionChoice,
    ErrorBody,
    PromptTokensDetails,
    Response,
    Usage,
)
from .sse import EVENTS, Wire
from .state import FINGERPRINT

TellMore = Callable[[int, MoreText], bytes]
"""Returns what is written of the index-th answer, nothing where that is silent."""


class WholeTeller(Protocol):
    """What one request is told at once, in the words of its endpoint."""

    @property
    def response_id(self) -> str: ...
    @property
    def model(self) -> str: ...

    @property
    def n(self) -> int:
        """Answers that are told of each prompt."""
        ...

    def keep_best(self, output: RequestOutput) -> RequestOutput:
        """Keep the n best answers of an output."""
        ...

    def whole(self, outputs: Sequence[RequestOutput]) -> Struct:
        """The response for finished outputs of all answers, in order."""
        ...


class Teller(WholeTeller, Protocol):
    """What one request is told, at once or as a stream."""

    @property
    def wire(self) -> Wire:
        """How its stream is written."""
        ...

    def chunks(self, index: int, output: RequestOutput) -> Sequence[Struct]:
        """Events for an output of kind DELTA of the index-th answer."""
        ...

    @property
    def more(self) -> TellMore | None:
        """What writes more text of an answer that `chunks` has begun; None: that needs outputs."""
        ...

    def end(self) -> Sequence[Struct]:
        """The last events of a stream that came to its end."""
        ...

    def failed(self, error: ApiError, request_id: str) -> Sequence[Struct]:
        """The last events of one that did not."""
        ...


@dataclass(slots=True, eq=False)
class Reply:
    """A Teller of choices."""

    response_id: str
    model: str
    created: int
    choices: Choices
    object: str
    """OpenAI's name of the whole response."""
    chunk_object: str
    n: int = 1
    """Choices of each prompt."""
    ranked: bool = False
    """Whether its answers come best first."""
    include_usage: bool = False
    running_usage: bool = False
    """Usage so far in every chunk."""
    wire: Wire = EVENTS
    prompt_alone: bool = False
    """Whether the answers are hidden: the client wants its prompt, and a step draws a token."""
    tells_prompt: bool = False
    """Whether the response says what is known of the prompt; else its choices may."""
    _prompt_tokens: dict[int, int] = field(default_factory=dict)
    _cached_tokens: dict[int, int] = field(default_factory=dict)
    _num_output_tokens: int = 0
    _moulds: dict[int, Mould[Response]] = field(default_factory=dict)

    def keep_best(self, output: RequestOutput) -> RequestOutput:
        """Keep the n best answers, or else the likeliest, by log probability a token.

        All of them count as usage.
        """
        answers = output.outputs
        if len(answers) <= self.n or any(one.finish_reason == "error" for one in answers):
            return output

        def likelihood(one: CompletionOutput) -> float:
            return (one.cumulative_logprob or 0.0) / max(1, len(one.token_ids))

        ranked = answers if self.ranked else sorted(answers, key=likelihood, reverse=True)
        self._num_output_tokens += sum(len(one.token_ids) for one in ranked[self.n :])
        kept = [replace(one, index=index) for index, one in enumerate(ranked[: self.n])]
        return replace(output, outputs=tuple(kept))

    def chunks(self, index: int, output: RequestOutput) -> list[Response]:
        """Chunks for an output of kind DELTA of the index-th choice."""
        output = self._shown(output)
        begins = not self._prompt_tokens
        self._count(index, output)
        usage = self._usage() if self.running_usage else self._no_usage
        chunks = [
            self._response(self.chunk_object, [piece], usage)
            for piece in self.choices.pieces(index, output)
        ]
        if begins and self.tells_prompt:
            chunks[0] = replace(chunks[0], prompt_logprobs=tell_prompt(output, True))
        return chunks

    @property
    def more(self) -> TellMore | None:
        """See Teller. Most of a stream's chunks are this: they are cast, and not made."""
        alone = self.choices.tells_text and not (self.running_usage or self.prompt_alone)
        return self._more if alone else None

    def _more(self, index: int, told: MoreText) -> bytes:
        self._num_output_tokens += told.num_tokens
        piece = self.choices.more(index, told.text)
        if isinstance(piece, str):
            return self._mould(index).cast(piece) if piece else b""
        return self.wire.write(self._response(self.chunk_object, [piece], self._no_usage))

    def _mould(self, index: int) -> Mould[Response]:
        """Return what the chunks are cast in that say more text of a choice."""
        mould = self._moulds.get(index)
        if mould is None:

            def say(text: str) -> Response:
                choice = self.choices.saying(index, text)
                return self._response(self.chunk_object, [choice], self._no_usage)

            mould = self._moulds[index] = Mould(say, self.wire.write)
        return mould

    @property
    def _no_usage(self) -> UnsetType | None:
        """What chunks that do not tell usage have in its place."""
        return None if self.include_usage else UNSET

    def end(self) -> list[Response]:
        """The last chunk: usage, where the client asked for it."""
        if not self.include_usage:
            return []
        return [self._response(self.chunk_object, [], self._usage())]

    def failed(self, error: ApiError, request_id: str) -> list[Failure]:
        """See Teller."""
        return [error.body(ErrorBody, request_id)]

    def whole(self, outputs: Sequence[RequestOutput]) -> Response:
        """The response for finished outputs of all choices, in order."""
        outputs = [self._shown(output) for output in outputs]
        for index, output in enumerate(outputs):
            self._count(index, output)
        choices = [self.choices.whole(index, output) for index, output in enumerate(outputs)]
        response = self._response(self.object, choices, self._usage())
        return replace(response, prompt_logprobs=tell_prompt(outputs[0], self.tells_prompt))

    def _shown(self, output: RequestOutput) -> RequestOutput:
        """Hide an answer that nobody asked for."""
        given = output.outputs[0]
        if not self.prompt_alone or given.finish_reason == "error":
            return output
        hidden = CompletionOutput(
            index=given.index,
            text="",
            token_ids=(),
            finish_reason=given.finish_reason and "length",
            seed=given.seed,
        )
        return replace(output, outputs=(hidden,))

    def _count(self, index: int, output: RequestOutput) -> None:
        # Choices of one prompt share it.
        self._prompt_tokens[index // self.n] = len(output.prompt_token_ids)
        self._cached_tokens[index // self.n] = output.num_cached_tokens
        self._num_output_tokens += len(output.outputs[0].token_ids)

    def _usage(self) -> Usage:
        num_prompt = sum(self._prompt_tokens.values())
        num_output = self._num_output_tokens
        cached = PromptTokensDetails(sum(self._cached_tokens.values()))
        return Usage(num_prompt, num_output, num_prompt + num_output, cached)

    def _response(
        self,
        name: str,
        choices: Sequence[CompletionChoice | ChatChoice],
        usage: Usage | UnsetType | None,
    ) -> Response:
        return Response(
            id=self.response_id,
            object=name,
            created=self.created,
            model=self.model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
            usage=usage,
        )
