"""LLM: offline generation in the caller's thread, vLLM's interface."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, cast

from msgspec.structs import replace

from .build import build_engine
from .config import EngineConfig
from .core import EngineCore
from .errors import EngineError, ParamsError
from .front import Front
from .grammar.grammars import Grammars
from .params import BeamSearchParams, Params, PoolingParams, SamplingParams
from .pooling import (
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
    compare,
    pooled,
)
from .request import BeamSearchOutput, BeamSearchSequence, RequestOutput
from .sched.scheduler import Scheduler
from .text.pooled import TextPair
from .text.prepare import Prepared, Prompt
from .text.tokenizer import Tokenizer

Message = dict[str, Any]


class LLM:
    """A model in memory, ready to generate. Options are EngineConfig's fields.

    Raises ConfigError or CheckpointError when the model cannot be served. Not thread-safe.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        if model is not None:
            options["model"] = str(model)
        self.config = EngineConfig(**options)
        self._front = Front(build_engine(self.config), clock=datetime.now, timer=time.monotonic)

    def get_tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._front.tokenizer

    @property
    def max_model_len(self) -> int:
        """Most tokens, prompt and output together, that a request may have."""
        return self._front.max_model_len

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
        cache_salt: str | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt; outputs in the order of the prompts.

        A prompt is a text or a list of token ids; params are one for all or one for each. A bad
        prompt raises ParamsError before anything runs.
        """
        items = _as_prompts(prompts)
        params = _one_each(sampling_params, len(items), "sampling_params")
        priorities = [0] * len(items) if priority is None else priority
        return self._answer(
            self._prepare(items, params, _one_each(priorities, len(items), "priority"), cache_salt),
            use_tqdm=use_tqdm,
        )

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        *,
        use_tqdm: bool = False,
        concurrency_limit: int | None = None,
        priority: Sequence[int] | None = None,
        cache_salt: str | None = None,
    ) -> list[BeamSearchOutput]:
        """Search for the likeliest answers to every prompt; outputs in the order of the prompts.

        concurrency_limit: so many prompts at once. Raises as generate does, and EngineError where a
        search fails.
        """
        items = _as_prompts(prompts)
        priorities = [0] * len(items) if priority is None else priority
        each = _one_each(priorities, len(items), "priority")
        prepared = self._prepare(items, [params] * len(items), each, cache_salt)
        at_once = concurrency_limit or max(1, len(prepared))
        outputs: list[RequestOutput] = []
        for start in range(0, len(prepared), at_once):
            outputs += self._answer(prepared[start : start + at_once], use_tqdm=use_tqdm)
        return [self._as_beams(output) for output in outputs]

    def _as_beams(self, output: RequestOutput) -> BeamSearchOutput:
        if output.error is not None:
            raise EngineError(f"The search of {output.request_id} failed: {output.error}")
        tokenizer = self._front.text_tokenizer
        prompt, ids = output.prompt, output.prompt_token_ids
        if prompt is None and tokenizer is not None:
            prompt = tokenizer.decode(list(ids))
        return BeamSearchOutput(
            tuple(
                BeamSearchSequence(
                    tokens=(*ids, *one.token_ids),
                    logprobs=one.logprobs or (),
                    cum_logprob=one.cumulative_logprob or 0.0,
                    text=None if tokenizer is None else f"{prompt}{one.text}",
                    finish_reason=one.finish_reason,
                    stop_reason=one.stop_reason,
                )
                for one in output.outputs
            )
        )

    def _prepare(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[Params | None],
        priorities: Sequence[int],
        cache_salt: str | None,
    ) -> list[Prepared]:
        now_s = time.monotonic()
        return [
            self._front.prepare(prompt, one, priority=priority, cache_salt=cache_salt, now_s=now_s)
            for prompt, one, priority in zip(prompts, params, priorities, strict=True)
        ]

    def _answer(self, prepared: Sequence[Prepared], *, use_tqdm: bool) -> list[RequestOutput]:
        """Run prepared requests to their ends."""
        now_s = time.monotonic()
        try:
            states = [self._front.add(one, now_s) for one in prepared]
            self._run(self._front.num_open, use_tqdm=use_tqdm)
        except BaseException:
            self._abandon()
            raise
        return [state.output() for state in states]

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput]:
        """Return the vector of every prompt: embeddings, or a classifier's scores.

        A prompt is a text, token ids or a TextPair. Raises as generate does, and EngineError where
        one fails.
        """
        items = _as_prompts(prompts)
        params = _one_each(pooling_params or PoolingParams(), len(items), "pooling_params")
        prepared = self._prepare(items, params, [0] * len(items), None)
        outputs = self._answer(prepared, use_tqdm=use_tqdm)
        for output in outputs:
            if output.vector is None:
                raise EngineError(f"The vector of {output.request_id} failed: {output.error}")
        config = self._front.pooling
        return [pooled(output, one, config) for output, one in zip(outputs, params, strict=True)]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
        prompt_name: str | None = None,
    ) -> list[PoolingRequestOutput]:
        """Return the embedding of every prompt, as `outputs.embedding`. See encode.

        prompt_name: as PoolingParams has it, for all.
        """
        if self._front.pooling.labels is not None:
            raise ParamsError("The model classifies and does not embed: use classify.", "model")
        if prompt_name is not None:
            items = _as_prompts(prompts)
            each = _one_each(pooling_params or PoolingParams(), len(items), "pooling_params")
            prompts = items
            pooling_params = [replace(one, prompt_name=prompt_name) for one in each]
        return self.encode(prompts, pooling_params, use_tqdm=use_tqdm)

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput]:
        """Return a score for each label, for every prompt, as `outputs.probs`. See encode."""
        if self._front.pooling.labels is None:
            raise ParamsError("The model embeds and does not classify: use embed.", "model")
        return self.encode(prompts, pooling_params, use_tqdm=use_tqdm)

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
        instruction: str | None = None,
    ) -> list[ScoringRequestOutput]:
        """Score pairs of texts, one with many or as many with as many, as `outputs.score`.

        By a model that reads both, else by the cosine of their embeddings. instruction: what is
        asked about them, where the model's template takes it.
        """
        firsts = [data_1] if isinstance(data_1, str) else list(data_1)
        seconds = [data_2] if isinstance(data_2, str) else list(data_2)
        comparison = compare(firsts, seconds, self._front.pooling, instruction)
        outputs = self.encode(comparison.prompts, pooling_params, use_tqdm=use_tqdm)
        scores = comparison.scores([output.outputs.data for output in outputs])
        return [
            ScoringRequestOutput(
                request_id=outputs[second].request_id,
                outputs=ScoringOutput(score),
                prompt_token_ids=outputs[second].prompt_token_ids,
            )
            for score, (_, second) in zip(scores, comparison.pairs, strict=True)
        ]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several by the checkpoint's chat template."""
        if not messages:
            raise ParamsError("messages is empty: give at least one message.", "messages")
        conversations = [messages] if isinstance(messages[0], dict) else list(messages)
        prompts = [
            self._front.chat_input(
                conversation,  # type: ignore[arg-type]  # told apart by the first element
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def _run(self, num_requests: int, *, use_tqdm: bool) -> None:
        """Drive the core until every request has ended."""
        from tqdm import tqdm

        front, core = self._front, self._front.core
        with tqdm(total=num_requests, desc="requests", disable=not use_tqdm) as bar:
            num_output_tokens = 0
            started_s = time.monotonic()
            while core.has_unfinished:
                num_tokens = core.launch()
                before = front.num_open
                events = core.land()
                now_s = time.monotonic()
                front.deliver(events, now_s)
                front.observe_step(num_tokens)
                num_output_tokens += len(events.request_ids)
                if front.num_open < before:
                    rate = num_output_tokens / max(1e-9, now_s - started_s)
                    bar.set_postfix_str(f"{rate:.1f} tokens/s", refresh=False)
                    bar.update(before - front.num_open)

    def _abandon(self) -> None:
        """After an interruption: end all requests so that the next call finds the engine empty."""
        now_s = time.monotonic()
        for request_id in self._front.open_ids:
            self._front.abort(request_id, now_s)
        while self._front.core.oldest is not None:
            self._front.deliver(self._front.core.land(), now_s)

    @property
    def grammars(self) -> Grammars:
        """What compiles structured_outputs; `provide` gives it a vocabulary without a tokenizer."""
        return self._front.grammars

    @property
    def core(self) -> EngineCore:
        """Scheduler and executor, to drive by hand while no call of generate runs."""
        return self._front.core

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, to read its counters."""
        return self.core.scheduler

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False (and nothing done) while requests are running."""
        return self.core.reset_prefix_cache()

    def close(self) -> None:
        """Release the executor's thread and the memory."""
        self._front.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Tell one prompt (a text, token ids, a dict) from a list of them."""
    if isinstance(prompts, str | dict | TextPair):
        return [prompts]
    items = list(prompts)
    if items and isinstance(items[0], int):
        return [cast(list[int], items)]
    return cast(list[Prompt], items)


def _one_each(value: Any, count: int, name: str) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        if len(value) != count:
            raise ParamsError(f"{name} has {len(value)} entries for {count} prompts.", name)
        return value
    return [value] * count
