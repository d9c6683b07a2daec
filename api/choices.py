"""How answers are worded as OpenAI's choices, whole and in pieces.

Choices belong to one HTTP request and keep, for each, what was said already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from ..engine.request import Logprob, RequestOutput, Timeline
from .parsed import ParsedAnswers
from .schema import (
    ChatChoice,
    ChatLogprobs,
    ChatMessage,
    CompletionChoice,
    CompletionLogprobs,
    PromptRows,
    TokenLogprob,
    TopLogprob,
)

LEAST_LOGPROB = -9999.0
"""Written for minus infinity, which JSON cannot say (vLLM's number)."""

Rows = Sequence[dict[int, Logprob]]
"""Of the tokens of an answer."""


class Choices(Protocol):
    """How one kind of endpoint words its choices."""

    def pieces(
        self, index: int, output: RequestOutput
    ) -> list[CompletionChoice] | list[ChatChoice]:
        """What is new in an output of kind DELTA."""
        ...

    @property
    def tells_text(self) -> bool:
        """Whether `more` has all that there is to say of more text."""
        ...

    def more(self, index: int, text: str) -> CompletionChoice | ChatChoice | str:
        """What more text of a begun choice says; a string where that is text, or nothing."""
        ...

    def saying(self, index: int, text: str) -> CompletionChoice | ChatChoice:
        """A piece that says more text and nothing beside it."""
        ...

    def whole(self, index: int, output: RequestOutput) -> CompletionChoice | ChatChoice:
        """A finished output."""
        ...


def tell_ids(ids: tuple[int, ...], wanted: bool) -> tuple[int, ...] | UnsetType:
    """Token ids where the client asked for them."""
    return ids if wanted else UNSET


def tell_timeline(output: RequestOutput, wanted: bool) -> Timeline | UnsetType:
    """The story of an answer that has ended, where the client asked for it."""
    return output.timeline if wanted and output.timeline is not None else UNSET


def tell_prompt(output: RequestOutput, wanted: bool) -> PromptRows | UnsetType:
    """What is known of the prompt's tokens, where the client asked for it."""
    if not wanted or output.prompt_logprobs is None:
        return UNSET
    return [row and _finite_row(row) for row in output.prompt_logprobs]


def _finite_row(row: dict[int, Logprob]) -> dict[int, Logprob]:
    if all(entry.logprob >= LEAST_LOGPROB for entry in row.values()):
        return row
    return {
        token_id: replace(entry, logprob=finite(entry.logprob)) for token_id, entry in row.items()
    }


def token_name(token_id: int, text: str | None, as_id: bool) -> str:
    """How a token is shown beside its logprob."""
    return f"token_id:{token_id}" if as_id or text is None else text


def finite(logprob: float) -> float:
    """A logprob that JSON can say."""
    return max(logprob, LEAST_LOGPROB)


@dataclass(slots=True, eq=False)
class CompletionChoices:
    """Choices of /v1/completions, n for each prompt."""

    n: int = 1
    num_top: int | None = None
    """The request's `logprobs`; -1: all."""
    echoes: Sequence[str] = ()
    """Texts of the prompts, where the request says echo."""
    token_text: Callable[[int], str] | None = None
    """The text of a prompt's token, for echoes."""
    tells_prompt: bool = False
    """Whether the request has `prompt_logprobs`."""
    return_ids: bool = False
    as_ids: bool = False
    timeline: bool = False
    _offsets: dict[int, int] = field(default_factory=dict)
    """Where the next token of each begun choice starts in its text."""

    def pieces(self, index: int, output: RequestOutput) -> list[CompletionChoice]:
        """See Choices."""
        given = output.outputs[0]
        begins = index not in self._offsets
        choice = self._choice(index, output, begins)
        silent = not (choice.text or choice.logprobs or given.finish_reason or self.return_ids)
        if silent and choice.prompt_logprobs is UNSET:
            return []
        return [choice]

    @property
    def tells_text(self) -> bool:
        """See Choices."""
        return not self.return_ids

    def more(self, index: int, text: str) -> str:
        """See Choices."""
        return text

    def saying(self, index: int, text: str) -> CompletionChoice:
        """See Choices."""
        return CompletionChoice(index=index, text=text)

    def whole(self, index: int, output: RequestOutput) -> CompletionChoice:
        """See Choices."""
        return self._choice(index, output, True)

    def _choice(self, index: int, output: RequestOutput, begins: bool) -> CompletionChoice:
        given = output.outputs[0]
        echo = self.echoes[index // self.n] if self.echoes and begins else ""
        self._offsets.setdefault(index, 0)
        return CompletionChoice(
            index=index,
            text=echo + given.text,
            logprobs=self._logprobs(index, output, begins),
            prompt_logprobs=tell_prompt(output, self.tells_prompt and begins),
            finish_reason=given.finish_reason,
            stop_reason=given.stop_reason,
            seed=given.seed if given.finish_reason else UNSET,
            token_ids=tell_ids(given.token_ids, self.return_ids),
            prompt_token_ids=tell_ids(output.prompt_token_ids, self.return_ids and begins),
            timeline=tell_timeline(output, self.timeline),
        )

    def _logprobs(
        self, index: int, output: RequestOutput, begins: bool
    ) -> CompletionLogprobs | None:
        if self.num_top is None:
            return None
        logprobs = CompletionLogprobs([], [], [], [])
        if self.echoes and begins and output.prompt_logprobs is not None:
            self._add_first(index, output.prompt_token_ids[0], logprobs)
            for row in output.prompt_logprobs[1:]:
                self._add(index, row or {}, logprobs)
        for row in output.outputs[0].logprobs or ():
            self._add(index, row, logprobs)
        return logprobs if logprobs.tokens else None

    def _add_first(self, index: int, token_id: int, logprobs: CompletionLogprobs) -> None:
        """Add the first token of a prompt, of which nothing is known."""
        text = token_name(token_id, self.token_text and self.token_text(token_id), self.as_ids)
        self._place(index, text, logprobs)
        logprobs.token_logprobs.append(None)
        logprobs.top_logprobs.append(None)

    def _add(self, index: int, row: dict[int, Logprob], logprobs: CompletionLogprobs) -> None:
        own_id, own = next(iter(row.items()))
        names: dict[str, float] = {}
        for token_id, entry in row.items():
            # More may have been asked for the prompt than for the answer.
            if token_id != own_id and 0 <= (self.num_top or 0) < (entry.rank or 0):
                continue
            # Unlike tokens may have one text (pieces of a character): the likelier one stays.
            name = token_name(token_id, entry.decoded_token, self.as_ids)
            names[name] = max(names.get(name, LEAST_LOGPROB), finite(entry.logprob))
        self._place(index, token_name(own_id, own.decoded_token, self.as_ids), logprobs)
        logprobs.token_logprobs.append(finite(own.logprob))
        logprobs.top_logprobs.append(names)

    def _place(self, index: int, text: str, logprobs: CompletionLogprobs) -> None:
        logprobs.tokens.append(text)
        logprobs.text_offset.append(self._offsets[index])
        self._offsets[index] += len(text)


@dataclass(slots=True, eq=False)
class ChatChoices:
    """The choices of /v1/chat/completions."""

    num_top: int | None = None
    """The request's `top_logprobs`, None without `logprobs`; -1: all."""
    return_ids: bool = False
    as_ids: bool = False
    token_bytes: Callable[[int], bytes] | None = None
    """The bytes of a token, which may be part of a character."""
    timeline: bool = False
    parsed: ParsedAnswers | None = None
    """Where there is more in an answer than text."""
    _begun: set[int] = field(default_factory=set)

    def pieces(self, index: int, output: RequestOutput) -> list[ChatChoice]:
        """See Choices. The first piece says the role."""
        given = output.outputs[0]
        choices = []
        if index not in self._begun:
            self._begun.add(index)
            forced = self.parsed is not None and self.parsed.forced is not None
            role = ChatMessage(role="assistant", content=None if forced else "")
            ids = tell_ids(output.prompt_token_ids, self.return_ids)
            choices.append(ChatChoice(index=index, delta=role, prompt_token_ids=ids))
        told: ChatMessage | str = given.text
        if self.parsed is not None:
            told = self.parsed.delta(index, given.text, ends=given.finish_reason is not None)
        choice = self._choice(index, output)
        if told or choice.logprobs or given.finish_reason or self.return_ids:
            if isinstance(told, str):
                silent = self.parsed is not None and not told
                told = ChatMessage() if silent else ChatMessage(content=told)
            choices.append(replace(choice, delta=told))
        return choices

    @property
    def tells_text(self) -> bool:
        """See Choices."""
        return not self.return_ids

    def more(self, index: int, text: str) -> ChatChoice | str:
        """See Choices."""
        told = text if self.parsed is None else self.parsed.delta(index, text, ends=False)
        return told if isinstance(told, str) else ChatChoice(index=index, delta=told)

    def saying(self, index: int, text: str) -> ChatChoice:
        """See Choices."""
        return ChatChoice(index=index, delta=ChatMessage(content=text))

    def whole(self, index: int, output: RequestOutput) -> ChatChoice:
        """See Choices."""
        text = output.outputs[0].text
        message = ChatMessage(role="assistant", content=text)
        if self.parsed is not None:
            message = self.parsed.whole(index, text)
        return replace(
            self._choice(index, output),
            message=message,
            prompt_token_ids=tell_ids(output.prompt_token_ids, self.return_ids),
        )

    def _choice(self, index: int, output: RequestOutput) -> ChatChoice:
        given = output.outputs[0]
        reason: str | None = given.finish_reason
        if self.parsed is not None:
            reason = self.parsed.finish_reason(index, given.finish_reason)
        return ChatChoice(
            index=index,
            logprobs=self._logprobs(given.logprobs),
            finish_reason=reason,
            stop_reason=given.stop_reason,
            seed=given.seed if given.finish_reason else UNSET,
            token_ids=tell_ids(given.token_ids, self.return_ids),
            timeline=tell_timeline(output, self.timeline),
        )

    def _logprobs(self, rows: Rows | None) -> ChatLogprobs | None:
        if self.num_top is None or not rows:
            return None
        return ChatLogprobs([self._token(row) for row in rows])

    def _token(self, row: dict[int, Logprob]) -> TokenLogprob:
        named = [self._entry(token_id, entry) for token_id, entry in row.items()]
        drawn = named[0]
        # The row has the drawn token first, then the likeliest, of which it may be one.
        top = sorted(named, key=lambda entry: -entry.logprob)
        if self.num_top is not None and self.num_top >= 0:
            top = top[: self.num_top]
        return TokenLogprob(drawn.token, drawn.logprob, drawn.bytes, top)

    def _entry(self, token_id: int, entry: Logprob) -> TopLogprob:
        name = token_name(token_id, entry.decoded_token, self.as_ids)
        data = self.token_bytes(token_id) if self.token_bytes else name.encode()
        return TopLogprob(name, finite(entry.logprob), list(data))
