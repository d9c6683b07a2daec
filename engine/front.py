"""The side of the engine that users face: prompts in, RequestOutputs out, around one EngineCore.

Front owns the open requests' output states and their times. LLM and AsyncEngine both stand on it
and add only their way of waiting. It does not wait itself and it does not read a clock: times are
arguments.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from .. import __version__
from .beams import BeamSearch
from .branches import Branches, branches_of
from .build import EngineParts
from .errors import ConfigError, ParamsError
from .grammar.grammars import Compiled
from .metrics import EngineMetrics
from .pacing import Pacer
from .params import BeamSearchParams, Params, SamplingParams
from .request import BACKGROUND, Finished, PromptLogprobs, Request, TokenEvents
from .searches import Searches
from .text.chat import ChatTemplate
from .text.output import OutputState, take_row
from .text.pooled import PooledIds, PooledPrompts, pair_template
from .text.prepare import (
    FoundGrammar,
    ModelFacts,
    Prepared,
    Prompt,
    PromptDict,
    RequestBuilder,
    chat_prompt,
)
from .text.reasoning import markers_of, parsers_of
from .text.tokenizer import Tokenizer, load_tokenizer
from .text.vocabulary import read_vocabulary
from .timeline import Timelines
from .trace import Recorder

logger = logging.getLogger("quire")


@dataclass(slots=True, eq=False)
class Open:
    """One request that has not been told its end."""

    state: OutputState | BeamSearch
    arrival_s: float
    name: str
    """The request's id as its owner knows it: one for all its answers."""
    later: list[Request] = field(default_factory=list)
    """Other answers' sequences, which fork this one as soon as its prompt is computed."""
    last_token_s: float | None = None
    grammar: Compiled | None = None
    """Held, so that nobody compiles it again."""


class Front:
    """Prepare, add, deliver, abort. Not thread-safe."""

    def __init__(
        self, parts: EngineParts, *, clock: Callable[[], datetime], timer: Callable[[], float]
    ) -> None:
        """clock tells chat templates the date; timer: seconds, as now_s everywhere here."""
        config = parts.config
        self.core = parts.core
        self.grammars = parts.grammars
        self.renew_executor = parts.renew_executor
        self.config = config
        self.max_model_len = parts.max_model_len
        self.model_name = config.served_model_name or config.model
        self._tokenizer = (
            None
            if config.skip_tokenizer_init
            else load_tokenizer(parts.tokenizer_path, config.chat_template)
        )
        self._chat_template: ChatTemplate | None = None
        self.parsers = parsers_of(config, self._tokenizer)
        self.pooling = parts.pooling
        self._clock = clock
        self.metrics = EngineMetrics(self.model_name)
        self.pooled = PooledPrompts(
            self._tokenizer,
            parts.pooling,
            parts.vocab_size,
            parts.max_pooled_len,
            pair_template(self._tokenizer, parts.pooling.pair_template, clock),
        )
        self._builder = RequestBuilder(
            self._tokenizer,
            ModelFacts(parts.vocab_size, parts.max_model_len, parts.eos_token_ids),
            seed=config.seed,
            max_logprobs=config.max_logprobs,
            grammars=parts.grammars,
            markers=markers_of(config, self.parsers, self._tokenizer, parts.vocab_size),
            pooled=self.pooled,
        )
        if self._tokenizer is not None:
            parts.grammars.provide(
                partial(read_vocabulary, self._tokenizer, parts.vocab_size, parts.eos_token_ids)
            )
        self.timelines = Timelines(timer)
        self.core.watch(self.timelines)
        self.pacer: Pacer | None = None
        if config.target_itl_ms is not None:
            assert config.max_num_batched_tokens is not None
            target_s = config.target_itl_ms / 1e3
            self.pacer = Pacer(target_s, config.max_num_batched_tokens, timer)
            self.core.watch(self.pacer)
        if config.record is not None:
            decode = self._whole_text if config.record_text else None
            self.core.watch(Recorder(Path(config.record), config, __version__, decode))
        self._open: dict[str, Open] = {}
        """By the id of each sequence; a search by its request's."""
        self._searches = Searches(self.core)
        self._members: dict[str, list[str]] = {}
        """Sequences that are open, by the request's id, where it has several answers."""
        self._ids = itertools.count()
        self._seen = self.core.scheduler.stats

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. ConfigError under skip_tokenizer_init."""
        if self._tokenizer is None:
            raise ConfigError("this needs a tokenizer, and skip_tokenizer_init is set.")
        return self._tokenizer

    @property
    def text_tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer, None under skip_tokenizer_init."""
        return self._tokenizer

    @property
    def num_open(self) -> int:
        """Answers that were asked for and have not ended."""
        return len(self._open)

    @property
    def num_waiting(self) -> int:
        """Answers that wait for a place in a step, or for the first of their request, but for the
        background's."""
        opened = [self._open[name] for name in self._members if name in self._open]
        later = sum(one.priority < BACKGROUND for each in opened for one in each.later)
        return self.core.scheduler.num_waiting - self.core.scheduler.num_background + later

    @property
    def open_ids(self) -> list[str]:
        """Ids of their requests, oldest first."""
        return list(dict.fromkeys(entry.name for entry in self._open.values()))

    def prepare(
        self,
        prompt: Prompt | PooledIds | Prepared,
        params: Params | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
        grammar: FoundGrammar | None = None,
        now_s: float = 0.0,
    ) -> Prepared:
        """Check and tokenize a prompt. ParamsError says what is wrong with it.

        grammar: what find_grammar gave; None: it is compiled here, where there is one.
        """
        if isinstance(prompt, Prepared):
            return prompt
        name = f"request-{next(self._ids)}" if request_id is None else request_id
        return self._builder.build(
            prompt,
            params,
            name,
            priority=priority,
            arrival_s=now_s,
            cache_salt=cache_salt,
            tenant=tenant,
            grammar=grammar,
        )

    def fork(
        self,
        request_id: str,
        params: SamplingParams | None = None,
        new_request_id: str | None = None,
        *,
        now_s: float = 0.0,
    ) -> Prepared:
        """Prepare a request that continues all that an open one has so far, from its blocks.

        params: None for the other's, with a seed of its own. ParamsError if it is not open.
        """
        entry = self._open.get(request_id)
        if entry is None:
            raise ParamsError(f"The request to fork, {request_id!r}, is not open.", "request_id")
        state, parent = entry.state, entry.state.request
        if isinstance(state, BeamSearch):
            message = f"{request_id!r} is a beam search: it has no one answer to fork."
            raise ParamsError(message, "request_id")
        prepared = self.prepare(
            state.known_token_ids,
            replace(parent.params, seed=None) if params is None else params,
            new_request_id,
            priority=parent.priority,
            cache_salt=parent.cache_salt,
            tenant=parent.tenant,
            now_s=now_s,
        )
        request = prepared.request
        own, theirs = request.grammar, parent.grammar
        if own is not None and theirs is not None and own.source == theirs.source:
            num_read = theirs.num_read + entry.state.num_output_tokens
            request = replace(request, grammar=replace(own, num_read=num_read))
        return prepared._replace(request=request, parent_id=request_id)

    def find_grammar(self, params: SamplingParams) -> FoundGrammar:
        """Compile the grammar of a request, which takes time: in any thread, for `prepare`."""
        return self._builder.find_grammar(params)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Render a conversation by the checkpoint's template; tokenize it without special tokens.

        Options are ChatTemplate.render's. ParamsError if the template refuses.
        """
        return self._template().render(messages, **options)

    def chat_input(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> PromptDict:
        """Render and tokenize a conversation: a prompt for `prepare`."""
        return chat_prompt(self._template(), self.tokenizer, messages, **options)

    def _whole_text(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)

    def _template(self) -> ChatTemplate:
        """Return the checkpoint's chat template, read on first use."""
        if self._chat_template is None:
            self._chat_template = ChatTemplate.from_tokenizer(self.tokenizer, clock=self._clock)
        return self._chat_template

    def add(self, prepared: Prepared, now_s: float) -> OutputState | Branches | BeamSearch:
        """Queue a prepared request. ParamsError if its id is open or it can never fit."""
        name, members = prepared.request.request_id, branches_of(prepared.request)
        for one in members:
            if one.request_id in self._open:
                raise ParamsError(
                    f"request_id {one.request_id!r} is in use by a request that has not ended.",
                    "request_id",
                )
        if prepared.beams is not None:
            return self._search(prepared, prepared.beams, now_s)
        states = [
            OutputState(one, prepared.prompt_text, self._tokenizer, index)
            for index, one in enumerate(members)
        ]
        if prepared.parent_id in self._open:
            self.core.fork(prepared.parent_id, members[0])
        else:
            self.core.add(members[0])
        for one, state in zip(members, states, strict=True):
            self._open[one.request_id] = Open(state, now_s, name, grammar=prepared.grammar)
        if len(members) == 1:
            return states[0]
        self._open[name].later = members[1:]
        self._members[name] = [one.request_id for one in members]
        return Branches(states)

    def _search(self, prepared: Prepared, params: BeamSearchParams, now_s: float) -> BeamSearch:
        """Begin a beam search."""
        request = prepared.request
        name, max_len = request.request_id, self.max_model_len
        if params.max_tokens is not None:
            max_len = min(max_len, len(request.prompt_token_ids) + params.max_tokens)
        search = BeamSearch(
            request,
            params,
            prompt_text=prepared.prompt_text,
            tokenizer=self._tokenizer,
            max_len=max_len,
        )
        self._searches.begin(search)
        self._open[name] = Open(search, now_s, name)
        return search

    def abort(self, request_id: str, now_s: float) -> list[str]:
        """End a request, with all its answers; return [request_id] if it was open."""
        touched: list[str] = []
        entry = self._open.get(request_id)
        if entry is not None and isinstance(entry.state, BeamSearch):
            self._searches.end(entry.state)
            entry.state.abort()
            self._close(request_id, entry, now_s)
            return [request_id]
        for name in self._members.get(request_id, [request_id])[::-1]:
            events = self.core.abort(name)
            if events is not None:
                touched += self.deliver(events, now_s)
            elif name in self._open:
                # Its turn to fork has not come.
                entry = self._open[name]
                assert isinstance(entry.state, OutputState)
                entry.state.push(-1, Finished(0, "abort"))
                self._close(name, entry, now_s)
                touched.append(entry.name)
        return touched[:1]

    def _fork(self, entry: Open) -> None:
        """Let the other answers begin, from the prompt's blocks if they are still there."""
        later, entry.later = entry.later, []
        for child in later:
            if child.request_id not in self._open:
                continue
            if entry.state.finished:
                self.core.add(child)
            else:
                self.core.fork(entry.state.request.request_id, child)

    def close(self) -> None:
        """Wait for what is in flight and release the device. Nothing more may be asked."""
        self.core.close()
        self.grammars.close()

    def fail_all(self, message: str, now_s: float) -> list[str]:
        """End every open request with an error: the engine is dead and is not asked."""
        entries = dict(self._open)
        for request_id, entry in entries.items():
            entry.state.fail(message)
            self._close(request_id, entry, now_s)
        return [entry.name for entry in entries.values()]

    def deliver(self, events: TokenEvents, now_s: float) -> list[str]:
        """Push a step's tokens into the output states; return the ids that have something new.

        A stop string ends its request here; the scheduler is told, and what it says of it is
        dropped.
        """
        ends: dict[int, Finished] = {end.index: end for end in events.finished}
        plain = events.logprobs is None and events.vectors is None
        tokens, cached = events.token_ids.tolist(), events.num_cached_tokens.tolist()
        touched: list[str] = []
        first: list[float] = []
        before: list[float] = []
        for told in events.prompts:
            touched += self._push_prompt(told, now_s)
        searching, opened = bool(self._searches), self._open
        for index, request_id in enumerate(events.request_ids):
            end = ends.get(index)
            if searching and request_id in self._searches:
                self._take(request_id, events, index, end)
                continue
            entry = opened.get(request_id)
            if entry is None:
                continue
            state, token = entry.state, tokens[index]
            assert isinstance(state, OutputState), request_id
            if entry.last_token_s is None:
                state.num_cached_tokens = cached[index]
            if token >= 0:
                self._time(entry, request_id, now_s, first, before)
            try:
                stopped = state.push(token, end) if plain else _push(state, events, index, end)
            except Exception as error:
                # Its detokenizer or its stop strings: that ends this answer alone.
                logger.exception("the answer to request %s failed", request_id)
                state.fail(f"{type(error).__name__}: {error}")
                stopped = True
            if stopped and end is None:
                self.core.abort(request_id)
            if entry.later:
                self._fork(entry)
            if stopped or end is not None:
                self._close(request_id, entry, now_s)
            touched.append(entry.name)
        for search in self._searches.move():
            name = search.request.request_id
            entry = self._open[name]
            self._time(entry, name, now_s, first, before)
            if search.finished:
                self._close(name, entry, now_s)
                touched.append(name)
        self.metrics.observe_tokens(first, before, now_s)
        return touched

    def _time(
        self, entry: Open, request_id: str, now_s: float, first: list[float], before: list[float]
    ) -> None:
        """Note how long a first token has taken, or when the one before another came."""
        if entry.last_token_s is None:
            first.append(now_s - entry.arrival_s)
            self.timelines.first_token(request_id)
        else:
            before.append(entry.last_token_s)
        entry.last_token_s = now_s

    def _take(self, request_id: str, events: TokenEvents, index: int, end: Finished | None) -> None:
        """Give a search what came of one of its sequences."""
        row = None
        if events.logprobs is not None and events.token_ids[index] >= 0:
            entry = self._open.get(request_id)
            if entry is not None:
                entry.state.num_cached_tokens = int(events.num_cached_tokens[index])
            row = take_row(events.logprobs, index, self._searches.num_candidates(request_id))
        self._searches.take(request_id, row, end)

    def _push_prompt(self, told: PromptLogprobs, now_s: float) -> list[str]:
        """Give an answer what is known of its prompt; return its id if that failed: it ends."""
        entry = self._open.get(told.request_id)
        if entry is None:
            return []
        assert isinstance(entry.state, OutputState), told.request_id
        try:
            entry.state.push_prompt(told)
        except Exception as error:
            logger.exception("the prompt of request %s failed", told.request_id)
            entry.state.fail(f"{type(error).__name__}: {error}")
            self.core.abort(told.request_id)
            self._fork(entry)
            self._close(told.request_id, entry, now_s)
            return [entry.name]
        return []

    def _close(self, request_id: str, entry: Open, now_s: float) -> None:
        del self._open[request_id]
        members = self._members.get(entry.name)
        if members is not None:
            members.remove(request_id)
            if not members:
                del self._members[entry.name]
        story = self.timelines.story(request_id)
        reason, num_outputs = entry.state.finish_reason or "abort", entry.state.num_output_tokens
        if isinstance(entry.state, BeamSearch):
            # Its answers grow together.
            num_outputs = entry.state.num_steps
        self.timelines.end(request_id, reason, num_outputs)
        queue_s = None
        if story is not None:
            entry.state.timeline = story.tell()
            if story.admitted_s is not None:
                queue_s = story.admitted_s - story.queued_s
        request = entry.state.request
        self.metrics.observe_finished(
            reason,
            tenant=request.tenant,
            queue_seconds=queue_s,
            prompt_tokens=len(request.prompt_token_ids),
            output_tokens=entry.state.num_output_tokens,
            e2e_seconds=now_s - entry.arrival_s,
        )

    def observe_step(self, num_tokens: int) -> None:
        """Bring the scheduler's numbers into the metrics."""
        scheduler = self.core.scheduler
        stats, seen = scheduler.stats, self._seen
        self._seen = stats
        used = scheduler.num_blocks - scheduler.num_free_blocks
        self.metrics.set_state(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            kv_usage=used / max(1, scheduler.num_blocks),
        )
        if num_tokens:
            self.metrics.observe_step(num_tokens)
        self.metrics.add_prefix(
            stats.prefix_queries - seen.prefix_queries, stats.prefix_hits - seen.prefix_hits
        )
        self.metrics.add_preemptions(stats.num_preemptions - seen.num_preemptions)
        self.metrics.set_guesses(
            stats.num_drafts, stats.num_draft_tokens, stats.accepted_at, stats.saved_s
        )


def _push(state: OutputState, events: TokenEvents, index: int, end: Finished | None) -> bool:
    """Give an answer its token with what is told beside it; return what OutputState.push does."""
    token, logprobs = int(events.token_ids[index]), None
    num_logprobs = state.request.params.logprobs
    if events.logprobs is not None and num_logprobs is not None:
        logprobs = take_row(events.logprobs, index, num_logprobs)
    if state.request.pool is not None and events.vectors is not None and token >= 0:
        state.vector, token = events.vectors[index], -1
    return state.push(token, end, logprobs)
