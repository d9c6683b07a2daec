"""What is known of one request beside its answer: for headers, errors, the log and traces.

An Account is made by the outermost middleware, or for a line of a batch; who makes it alone
releases its ticket; routes add to it.
It never holds a key, a prompt or an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from ..engine.request import RequestOutput, Timeline

if TYPE_CHECKING:
    from .admission import Ticket


@dataclass(slots=True, eq=False)
class Account:
    """One request."""

    request_id: str
    """The client's X-Request-Id, or one of our own."""
    started_s: float
    ticket: Ticket | None = None
    """Its place in the queue, where it generates."""
    background: bool = False
    """It is done when nobody else waits, and takes nobody's place in the queue."""
    tenant: str = ""
    """The name of its key, where keys are asked for, else of its user."""
    model: str | None = None
    """Where it generates: what was asked,"""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    response_id: str | None = None
    """and what the answer is called."""
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    """Of each prompt."""
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    timelines: dict[int, Timeline] = field(default_factory=dict)
    """Of each prompt that has been answered."""

    @property
    def num_prompt_tokens(self) -> int | None:
        """None where nothing was generated."""
        return sum(self.prompt_tokens.values()) if self.prompt_tokens else None

    def note(self, batch: Iterable[tuple[int, RequestOutput]]) -> None:
        """Count what was generated: (place of the prompt, what is new of its answers)."""
        for place, output in batch:
            if place not in self.prompt_tokens:
                self.prompt_tokens[place] = len(output.prompt_token_ids)
                self.num_cached_tokens += output.num_cached_tokens
            for one in output.outputs:
                self.num_output_tokens += len(one.token_ids)
                if one.finish_reason is not None:
                    self.finish_reasons.append(one.finish_reason)
            if output.timeline is not None:
                self.timelines[place] = output.timeline


ACCOUNT: web.RequestKey[Account] = web.RequestKey("account", Account)


def set_account(request: web.Request, account: Account) -> None:
    """Give a request its account, once."""
    assert ACCOUNT not in request, "a request has one account"
    request[ACCOUNT] = account


def find_account(request: web.BaseRequest) -> Account | None:
    """Return the account of a request; None for bytes that were no HTTP."""
    return request.get(ACCOUNT)


def account_of(request: web.BaseRequest) -> Account:
    """Return the account of a request that has reached a route."""
    account = find_account(request)
    assert account is not None, "the outermost middleware gives every request its account"
    return account
