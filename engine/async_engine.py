"""AsyncEngine: the engine inside an asyncio application.

Everything but the computing happens in the caller's loop, so nothing needs a lock; the executor's
thread computes with the GIL released. One task drives the core; each open request has one function
that is called when there is something to read. A slow reader costs nothing: what it has not read
waits in its output state, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any

from .build import build_engine
from .config import EngineConfig
from .errors import EngineError
from .front import Front
from .live import LiveView
from .metrics import EngineMetrics
from .params import BeamSearchParams, Params, PoolingParams, RequestOutputKind, SamplingParams
from .parsing.choose import Parsers
from .plan import StepPlan
from .pooling import PoolingRequestOutput, pooled
from .reading import Growing, Reading
from .request import RequestOutput
from .text.pooled import PooledIds, TextPair
from .text.prepare import Prepared, Prompt, PromptDict
from .text.tokenizer import Tokenizer
from .timeline import Timelines
from .vectors import PoolingConfig
from .waking import Waking

logger = logging.getLogger("quire")

LONG_PROMPT_CHARS = 4096
"""A longer text is tokenized in a thread (its work releases the GIL): 1 ms is about 4,096 chars."""
NUM_COMPILING = 16
"""Grammars that are compiled, or wait for it, at the same time. Each may take seconds, in a thread
that nothing else needs."""


class AsyncEngine:
    """An async context manager: `async with AsyncEngine(model=...) as engine`.

    Options are EngineConfig's fields. All methods belong to the loop that started it.
    """

    def __init__(self, config: EngineConfig | None = None, **options: Any) -> None:
        self.config = config if config is not None else EngineConfig(**options)
        self._front: Front | None = None
        self._live: LiveView | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._readers = Waking()
        self._idle = asyncio.Event()
        self._idle.set()
        self._resting = asyncio.Event()
        """Set when nothing is in flight and nothing can be launched."""
        self._accepting = False
        self._sleeping = False
        self._closed_executor = False
        self._turning = asyncio.Lock()
        self._turns: set[asyncio.Task[None]] = set()
        """Falls into sleep and wakings that are not done; they go on when nobody waits for them."""
        self._error: BaseException | None = None
        self._compiling = ThreadPoolExecutor(NUM_COMPILING, "quire-compile")

    async def start(self) -> None:
        """Load the model and begin to serve. ConfigError or CheckpointError if it cannot."""
        assert self._front is None, "the engine was started already"
        self._front = await asyncio.to_thread(
            lambda: Front(build_engine(self.config), clock=datetime.now, timer=time.monotonic)
        )
        front = self._front
        self._live = LiveView(front.core, front.config, front.metrics, time.monotonic)
        self._accepting = True
        self._task = asyncio.create_task(self._drive(self._front), name="quire-engine")

    async def stop(self, drain_timeout_s: float = 0.0) -> None:
        """Refuse new requests, let the running ones finish up to a time, end the rest."""
        self._accepting = False
        front = self._front
        if front is None or self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_timeout_s)
        for turn in self._turns:
            turn.cancel()
        for request_id in front.open_ids:
            await self.abort(request_id)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await asyncio.to_thread(front.close)

    async def __aenter__(self) -> AsyncEngine:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def front(self) -> Front:
        """The started engine. EngineError before start."""
        if self._front is None:
            raise EngineError("the engine is not started: use `async with` or await start().")
        return self._front

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.front.tokenizer

    @property
    def parsers(self) -> Parsers:
        """What takes the model's answers apart."""
        return self.front.parsers

    @property
    def pooling(self) -> PoolingConfig:
        """How it makes vectors."""
        return self.front.pooling

    @property
    def auto_tools(self) -> bool:
        """Whether the model may call tools by itself."""
        return self.config.enable_auto_tool_choice

    @property
    def metrics(self) -> EngineMetrics:
        """Prometheus metrics of this engine."""
        return self.front.metrics

    @property
    def timelines(self) -> Timelines:
        """The stories of its requests."""
        return self.front.timelines

    @property
    def live(self) -> LiveView:
        """What it does now, for those who watch."""
        assert self._live is not None, "the engine is not started"
        return self._live

    @property
    def model_name(self) -> str:
        """The name that the model is served under."""
        return self.front.model_name

    @property
    def max_model_len(self) -> int:
        """Most tokens, prompt and output together, that a request may have."""
        return self.front.max_model_len

    @property
    def num_unfinished(self) -> int:
        """Answers that have not ended."""
        return self.front.num_open if self._front else 0

    @property
    def num_waiting(self) -> int:
        """Answers that were asked for and wait for their turn, preempted ones too, but for the
        background's."""
        return self._front.num_waiting if self._front else 0

    @property
    def is_running(self) -> bool:
        """Whether new requests are accepted."""
        return self._accepting and not self._sleeping and not self.errored

    @property
    def is_sleeping(self) -> bool:
        """Whether sleep() was called, and wake_up() not since."""
        return self._sleeping

    @property
    def errored(self) -> bool:
        """Whether the driving task died; every request was told."""
        return self._error is not None

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Render a conversation by the chat template. See Front.chat_prompt."""
        return self.front.chat_prompt(messages, **options)

    def chat_input(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> PromptDict:
        """Render and tokenize a conversation: a prompt for generate."""
        return self.front.chat_input(messages, **options)

    async def prepare(
        self,
        prompt: Prompt | Prepared,
        params: Params | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
    ) -> Prepared:
        """Check and tokenize; ParamsError now instead of in the stream. Give it to generate().

        What takes time (a long text, a grammar) is done in a thread.
        """
        front, now_s = self.front, time.monotonic()
        given: Prompt | Prepared | PooledIds = prompt
        if isinstance(params, PoolingParams):
            if sum(len(part) for part in prompt if isinstance(part, str)) > LONG_PROMPT_CHARS:
                given = await asyncio.to_thread(front.pooled.read, prompt, params)
        elif isinstance(prompt, str) and len(prompt) > LONG_PROMPT_CHARS:
            ids = await asyncio.to_thread(front.tokenizer.encode, prompt)
            given = {"prompt": prompt, "prompt_token_ids": ids}
        grammar = None
        if isinstance(params, SamplingParams) and params.structured_outputs is not None:
            loop = asyncio.get_running_loop()
            grammar = await loop.run_in_executor(self._compiling, front.find_grammar, params)
        return front.prepare(
            given,
            params,
            request_id,
            priority=priority,
            cache_salt=cache_salt,
            tenant=tenant,
            grammar=grammar,
            now_s=now_s,
        )

    async def generate(
        self,
        prompt: Prompt | Prepared,
        params: Params | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
        on_added: Callable[[], None] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Stream a request's output; the last one has `finished`. Closing the stream aborts it.

        What each output tells is params.output_kind; a beam search has but one, at its end.
        tenant: whose request it is; tenants wait in turn. on_added: called when it counts in
        num_waiting or runs.
        ParamsError for bad input, EngineError when the engine does not accept requests. A request
        that the engine could not finish ends with finish_reason "error" and `error` set.
        """
        now_s, news = time.monotonic(), asyncio.Event()
        prepared = await self.prepare(
            prompt, params, request_id, priority=priority, cache_salt=cache_salt, tenant=tenant
        )
        reading = self.read(prepared, news.set, on_added=on_added, now_s=now_s)
        try:
            while True:
                await news.wait()
                news.clear()
                output = reading.take()
                if output is None:
                    continue
                yield output
                if output.finished:
                    return
        finally:
            reading.close()

    def read(
        self,
        prepared: Prepared,
        call: Callable[[], None],
        *,
        on_added: Callable[[], None] | None = None,
        now_s: float | None = None,
    ) -> Reading:
        """Begin a request whose outputs are taken where `call`, which must not raise, is called.

        It is called soon after there is something new, and once however much that is. See generate
        for on_added and for what is raised. now_s: when the request came; None: now.
        """
        if not self.is_running:
            raise EngineError("the engine is shutting down, sleeps or has failed: no new requests.")
        name, kind = prepared.request.request_id, prepared.request.params.output_kind
        state = self.front.add(prepared, time.monotonic() if now_s is None else now_s)
        if on_added is not None:
            on_added()

        def call_at_end() -> None:
            if state.finished:
                call()

        self._readers.enter(name, call_at_end if kind is RequestOutputKind.FINAL_ONLY else call)
        self._idle.clear()
        self._wake.set()
        return Reading(state, kind, partial(self._leave, name))

    def _leave(self, name: str, state: Growing) -> None:
        self._readers.leave(name)
        if not self._readers:
            self._idle.set()
        if not state.finished:
            self.front.abort(name, time.monotonic())

    async def beam_search(
        self,
        prompt: Prompt | Prepared,
        request_id: str | None,
        params: BeamSearchParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
    ) -> AsyncGenerator[RequestOutput, None]:
        """Search for the likeliest answers: one output, the best answer first. See generate."""
        options: dict[str, Any] = {"cache_salt": cache_salt, "tenant": tenant}
        stream = self.generate(prompt, params, request_id, priority=priority, **options)
        async with contextlib.aclosing(stream) as outputs:
            async for output in outputs:
                yield output

    async def encode(
        self,
        prompt: Prompt | TextPair | Prepared,
        params: PoolingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
        on_added: Callable[[], None] | None = None,
    ) -> PoolingRequestOutput:
        """Return the vector of a prompt: an embedding, or a classifier's scores.

        A prompt is a text, token ids or a TextPair. Cancelling it aborts the request. Options and
        errors are those of generate; EngineError also where the request failed.
        """
        params = PoolingParams() if params is None else params
        options: dict[str, Any] = {"cache_salt": cache_salt, "tenant": tenant}
        stream = self.generate(
            prompt, params, request_id, priority=priority, on_added=on_added, **options
        )
        async with contextlib.aclosing(stream) as outputs:
            async for output in outputs:
                if output.finished:
                    return self._pooled(output, params)
        raise AssertionError("a stream without an end")

    def _pooled(self, output: RequestOutput, params: PoolingParams) -> PoolingRequestOutput:
        if output.vector is None:
            reason = output.error or output.outputs[0].finish_reason
            raise EngineError(f"the vector of {output.request_id} was not made: {reason}")
        return pooled(output, params, self.pooling)

    def fork(
        self,
        request_id: str,
        params: SamplingParams | None = None,
        new_request_id: str | None = None,
    ) -> Prepared:
        """Prepare a branch of a request that is being answered: give it to generate().

        Its prompt is all that the other has so far, whose blocks it shares. params: None for the
        other's, with a seed of its own. ParamsError if the other has ended.
        """
        return self.front.fork(request_id, params, new_request_id, now_s=time.monotonic())

    async def abort(self, request_id: str) -> None:
        """End a request; its stream gets what it has with finish_reason "abort"."""
        self._readers.tell(self.front.abort(request_id, time.monotonic()))

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False (and nothing happens) while a request is running."""
        return self.front.core.reset_prefix_cache()

    async def sleep(self) -> None:
        """Take no new request, let those that were begun end, then give back the KV memory.

        The weights stay. Goes on when it is cancelled.
        """
        self._sleeping = True
        await self._turn(self._fall_asleep())

    async def wake_up(self) -> None:
        """Take requests again, with KV memory made anew. EngineError, and it sleeps on, if not."""
        await self._turn(self._awake())

    async def _turn(self, work: Coroutine[None, None, None]) -> None:
        turn = asyncio.create_task(work)
        self._turns.add(turn)
        turn.add_done_callback(self._turns.discard)
        await asyncio.shield(turn)

    async def _fall_asleep(self) -> None:
        async with self._turning:
            self._sleeping = True
            core = self.front.core
            # Not until streams are closed: a client may be slow to read what has ended here.
            while core.has_unfinished and not self.errored:
                self._resting.clear()
                await self._resting.wait()
            if self.errored:
                raise EngineError("the engine has failed: there is nothing to put to sleep.")
            if not self._closed_executor:
                executor = core.rest()
                self._closed_executor = True
                await asyncio.to_thread(executor.close)

    async def _awake(self) -> None:
        async with self._turning:
            if self._closed_executor:
                try:
                    executor = await asyncio.to_thread(self.front.renew_executor)
                except Exception as error:
                    logger.exception("the engine cannot wake up")
                    message = f"the engine cannot wake up: {type(error).__name__}: {error}"
                    raise EngineError(message) from error
                self.front.core.resume(executor)
                self._closed_executor = False
            self._sleeping = False

    async def _drive(self, front: Front) -> None:
        """Launch, wait, land, for as long as the engine lives."""
        core, pacer = front.core, front.pacer
        try:
            while True:
                if pacer is not None:
                    core.set_budget(pacer.budget(core.scheduler.num_running))
                num_tokens = core.launch()
                oldest = core.oldest
                if oldest is None:
                    front.observe_step(0)
                    self._resting.set()
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                # wait() and not the future itself: its exception is land()'s to handle, and a
                # cancelled driver must not cancel a step that the device is computing.
                landed, _ = await asyncio.wait(
                    [asyncio.wrap_future(oldest)], timeout=self.config.step_timeout_s
                )
                if not landed:
                    await self._recover(front)
                    continue
                landed.pop().exception()  # asyncio complains of what nobody asked for
                self._readers.tell(front.deliver(core.land(), time.monotonic()))
                front.observe_step(num_tokens)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            logger.exception("the engine stopped")
            self._error = error
            self._resting.set()
            message = f"the engine stopped: {type(error).__name__}: {error}"
            self._readers.tell(front.fail_all(message, time.monotonic()))
            raise

    async def _recover(self, front: Front) -> None:
        """Give up a step that does not end: tell its requests, go on with another executor.

        What hangs is left behind with its memory; if there is no room for another, the engine ends.
        """
        core, plan = front.core, front.core.oldest_plan
        assert plan is not None
        message = f"step {plan.step} did not end within {self.config.step_timeout_s:g} s"
        logger.error("%s\n%s\n%s", message, describe(plan), stacks())
        events = core.abandon(message)
        logger.error("ended with it: %s", ", ".join(events.request_ids) or "nobody")
        self._readers.tell(front.deliver(events, time.monotonic()))
        core.resume(await asyncio.to_thread(front.renew_executor))
        logger.error("the executor was made anew")


def describe(plan: StepPlan) -> str:
    """Tell a step's batch for the log: what each row computes."""
    rows = zip(plan.slots.tolist(), plan.starts.tolist(), plan.num_tokens.tolist(), strict=True)
    lines = [f"  slot {slot}: tokens {start} to {start + num - 1}" for slot, start, num in rows]
    return f"{len(lines)} rows, {plan.num_scheduled_tokens} tokens:\n" + "\n".join(lines)


def stacks() -> str:
    """Tell where every thread is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
    )
