"""From what a user gives to what the engine takes: prompts checked and tokenized, seeds drawn.

The edge where a prompt is refused: every fault is a ParamsError that says what was given and what
is allowed. Behind it, Request is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, TypeVar

import numpy as np
from msgspec.structs import replace

from ..errors import ParamsError
from ..grammar.grammars import Compiled, Grammars
from ..grammar.source import grammar_source, thought_grammar
from ..params import (
    BeamSearchParams,
    Params,
    PoolingParams,
    RequestOutputKind,
    SamplingParams,
    num_kept,
)
from ..request import BoundedThought, GrammarUse, IntArray, Request, ThinkingBudget
from .chat import ChatTemplate
from .ids import as_ids, check_unicode, wrong
from .pooled import CHARS_PER_TOKEN, PooledIds, PooledPrompts, TextPair
from .reasoning import Markers
from .tokenizer import Tokenizer

P = TypeVar("P", SamplingParams, BeamSearchParams)
SEED_BITS = 53
"""Drawn seeds are below 2**53: JSON readers that know only doubles keep them exact."""


class PromptDict(TypedDict, total=False):
    """A prompt as a dict, vLLM's keys; with both, the ids are the prompt and the text is shown."""

    prompt: str
    prompt_token_ids: Sequence[int]


Prompt = str | Sequence[int] | PromptDict | TextPair
"""A pair of texts is for vectors alone."""
ONE_VECTOR = SamplingParams(
    max_tokens=1,
    temperature=0.0,
    seed=0,
    ignore_eos=True,
    detokenize=False,
    output_kind=RequestOutputKind.FINAL_ONLY,
)
"""How a request for a vector is computed: nothing of its prompt is forgotten by a token."""


class Prepared(NamedTuple):
    """A request for the engine, and its prompt as text where there was one."""

    request: Request
    prompt_text: str | None
    parent_id: str | None = None
    """The request that it forks, if that still lives then."""
    grammar: Compiled | None = None
    """The request's, kept while it lives."""
    beams: BeamSearchParams | None = None
    """The search that the request begins."""


class FoundGrammar(NamedTuple):
    """A grammar and its text."""

    source: str
    compiled: Compiled


class ModelFacts(NamedTuple):
    """What prompts depend on."""

    vocab_size: int
    max_model_len: int
    """Tokens of prompt and answer together."""
    eos_token_ids: Sequence[int]


class RequestBuilder:
    """Builds requests for one model. `seed` decides all seeds that it draws."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        facts: ModelFacts,
        *,
        seed: int,
        max_logprobs: int,
        grammars: Grammars | None = None,
        markers: Markers | None = None,
        pooled: PooledPrompts | None = None,
    ) -> None:
        """markers: of thoughts, where the engine has some. pooled: takes prompts for vectors."""
        vocab_size = facts.vocab_size
        self._pooled = pooled
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_logprobs = vocab_size if max_logprobs < 0 else max_logprobs
        self._max_model_len = facts.max_model_len
        self._eos_token_ids = tuple(facts.eos_token_ids)
        self._grammars = Grammars() if grammars is None else grammars
        self._markers = markers
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def build(
        self,
        prompt: Prompt | PooledIds,
        params: Params | None,
        request_id: str,
        *,
        priority: int = 0,
        arrival_s: float = 0.0,
        cache_salt: str | None = None,
        tenant: str = "",
        grammar: FoundGrammar | None = None,
    ) -> Prepared:
        """Check and tokenize. Raises ParamsError that names the field."""
        beams, num_candidates, pool = None, 0, None
        if isinstance(params, PoolingParams):
            assert self._pooled is not None, prompt
            prompt, params = self._pooled.read(prompt, params), ONE_VECTOR
        elif self._pooled is not None and self._pooled.alone:
            raise ParamsError("This model does not generate: it makes vectors alone.", "model")
        if isinstance(params, BeamSearchParams):
            beams = self._with_logprobs(params)
            params = first_step(beams)
            num_candidates = min(self._vocab_size, max(beams.num_candidates, beams.logprobs or 0))
        params = SamplingParams() if params is None else params
        self._check(params, request_id, priority, cache_salt)
        params = self._with_logprobs(params)
        bad_word_ids = self._bad_words(params)
        if grammar is None and params.structured_outputs is not None:
            grammar = self.find_grammar(params)
        if not isinstance(tenant, str):
            raise wrong("tenant", tenant, "a text")
        if isinstance(prompt, PooledIds):
            token_ids, text, pool = prompt
        else:
            token_ids, text = self._read(prompt, num_kept(beams or params, self._max_model_len))
        if params.seed is None:
            seed = int(self._generator.integers(1 << SEED_BITS))
        else:
            seed = params.seed % 2**64
        request = Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            seed=seed,
            eos_token_ids=self._eos_token_ids,
            bad_word_ids=bad_word_ids,
            grammar=None if grammar is None else self._use(grammar, params),
            thinking=self._thinking(params) if grammar is None else None,
            priority=priority,
            arrival_s=arrival_s,
            cache_salt=cache_salt,
            tenant=tenant,
            num_candidates=num_candidates,
            keep=beams is not None,
            pool=pool,
        )
        compiled = None if grammar is None else grammar.compiled
        return Prepared(request, text, grammar=compiled, beams=beams)

    def find_grammar(self, params: SamplingParams) -> FoundGrammar:
        """Compile what params.structured_outputs asks, or find it; may take seconds, in any thread.

        ParamsError if it cannot be followed.
        """
        assert params.structured_outputs is not None, params
        special = self._grammars.vocabulary.special
        source = grammar_source(params.structured_outputs, special)
        thought = params.structured_outputs.thought
        if thought is not None and params.thinking_token_budget is not None:
            # Of our own making: nobody has to check it. It is kept for who follows it.
            self._grammars.resume(thought_grammar(thought, special))
        return FoundGrammar(source, self._grammars.compile(source))

    def _use(self, grammar: FoundGrammar, params: SamplingParams) -> GrammarUse:
        """Say how a sequence follows its grammar. A form without a thought has none to bound."""
        limit, form = self._thinking(params), params.structured_outputs
        assert form is not None, params
        if limit is None or form.thought is None:
            return GrammarUse(grammar.source)
        tokenizer, end = self._tokenizer, form.thought.end
        if tokenizer is not None:
            said = tokenizer.decode(limit.end, skip_special_tokens=False)
            if not said.endswith(end):
                # What the options say ends no thought that the form begins behind.
                ids = tokenizer.encode(end, add_special_tokens=False)
                limit = replace(limit, end=tuple(ids))
        source = thought_grammar(form.thought, self._grammars.vocabulary.special)
        bounded = BoundedThought(source, limit, is_open=not form.thought.start)
        return GrammarUse(grammar.source, thought=bounded)

    def _check(
        self, params: SamplingParams, request_id: str, priority: int, cache_salt: str | None
    ) -> None:
        if not isinstance(params, SamplingParams):
            raise wrong("params", params, "SamplingParams")
        if not isinstance(request_id, str) or not request_id:
            raise wrong("request_id", request_id, "a text that is not empty")
        int32 = isinstance(priority, int) and not isinstance(priority, bool)
        if not int32 or not -(2**31) <= priority < 2**31:
            raise wrong("priority", priority, f"an integer from {-(2**31)} to {2**31 - 1}")
        if cache_salt is not None and (not isinstance(cache_salt, str) or not cache_salt):
            raise wrong("cache_salt", cache_salt, "a text that is not empty")
        for token_id in params.stop_token_ids or ():
            if token_id >= self._vocab_size:
                raise wrong("stop_token_ids", token_id, f"from 0 to {self._vocab_size - 1}")
        for name in ("logit_bias", "allowed_token_ids"):
            for token_id in getattr(params, name) or ():
                if token_id >= self._vocab_size:
                    raise wrong(name, token_id, f"of tokens from 0 to {self._vocab_size - 1}")
        for name in ("stop", "bad_words"):
            if getattr(params, name) and self._tokenizer is None:
                given = getattr(params, name)
                raise wrong(name, given, "empty: there is no tokenizer to find it")

    def _with_logprobs(self, params: P) -> P:
        """Check the numbers of log probabilities; none is above the vocabulary afterwards."""
        numbers = {}
        for name in ("logprobs", "prompt_logprobs"):
            given = getattr(params, name, None)
            if given is None:
                continue
            count = self._vocab_size if given < 0 else given
            if count > self._max_logprobs:
                what = f" (all {self._vocab_size} tokens)" if given < 0 else ""
                raise ParamsError(
                    f"{name} is {given}{what}: this engine tells at most {self._max_logprobs} "
                    "(max_logprobs).",
                    name,
                )
            numbers[name] = min(count, self._vocab_size)
        changed = any(number != getattr(params, name) for name, number in numbers.items())
        return replace(params, **numbers) if changed else params

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Tokenize each bad word as it begins a text and, where that is as long, behind a space."""
        words: list[tuple[int, ...]] = []
        for text in params.bad_words or ():
            assert self._tokenizer is not None
            bare, spaced = (
                tuple(self._tokenizer.encode(space + text.lstrip(), add_special_tokens=False))
                for space in ("", " ")
            )
            if not bare:
                raise wrong("bad_words", text, "a text with at least one token")
            words.append(bare)
            if len(spaced) == len(bare) and spaced[0] != bare[0]:
                words.append(spaced)
        return tuple(words)

    def _thinking(self, params: SamplingParams) -> ThinkingBudget | None:
        budget, markers = params.thinking_token_budget, self._markers
        if budget is None:
            return None
        if markers is None:
            allowed = "left out: this engine has no reasoning_config"
            raise wrong("thinking_token_budget", budget, allowed)
        stops = {*self._eos_token_ids, *(params.stop_token_ids or ())}
        if params.min_tokens and stops & set(markers.end):
            # A token that must be drawn, and must not.
            allowed = "left out with min_tokens: the end of a thought has a stop token"
            raise wrong("thinking_token_budget", budget, allowed)
        return ThinkingBudget(budget, markers.start, markers.end)

    def _read(self, prompt: Any, last: int | None) -> tuple[IntArray, str | None]:
        """Return the prompt's ids, [prompt] int32, at most the last ones, and its text."""
        match prompt:
            case str():
                return self._encode(prompt, last), prompt
            case {"prompt_token_ids": ids, **others} if others.keys() <= {"prompt"}:
                text = others.get("prompt")
                if text is not None and not isinstance(text, str):
                    raise wrong("prompt", text, "a text beside prompt_token_ids")
                return self._take(ids, last), text
            case {"prompt": str(text), **others} if not others:
                return self._encode(text, last), text
            case Mapping():
                raise wrong(
                    "prompt", prompt, "an object with prompt (text) or prompt_token_ids, no more"
                )
            case _:
                return self._take(prompt, last), None

    def _encode(self, text: str, last: int | None) -> IntArray:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise wrong("prompt", text, "a list of token ids: there is no tokenizer")
        check_unicode(text)
        beginning = self._max_model_len * CHARS_PER_TOKEN
        if len(text) > beginning and last is None:
            # Refuses megabytes of text without tokenizing all of them.
            num_tokens = len(tokenizer.encode(text[:beginning]))
            if num_tokens > self._max_model_len + CHARS_PER_TOKEN:
                raise self._too_long(f"more than {num_tokens - CHARS_PER_TOKEN}")
        # Tokenizers may have ids that the model has not: checked like a user's.
        return self._take(tokenizer.encode(text), last)

    def _take(self, ids: Any, last: int | None) -> IntArray:
        """Check token ids and return them as an array."""
        array = as_ids(ids, self._vocab_size)
        if last is not None:
            array = array[-last:]
        if len(array) > self._max_model_len - 1:
            raise self._too_long(str(len(array)))
        return np.ascontiguousarray(array, dtype=np.int32)

    def _too_long(self, num_tokens: str) -> ParamsError:
        return ParamsError(
            f"The prompt has {num_tokens} tokens and the model length is {self._max_model_len}: "
            f"it must have at most {self._max_model_len - 1}, one token is left for the answer.",
            "prompt",
        )


def first_step(params: BeamSearchParams) -> SamplingParams:
    """Say how the one token of each sequence of a search is computed, and how it is shown."""
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        seed=0,
        ignore_eos=True,
        logprobs=0,
        include_stop_str_in_output=params.include_stop_str_in_output,
        skip_special_tokens=params.skip_special_tokens,
    )


def chat_prompt(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    **options: Any,
) -> PromptDict:
    """Return the prompt of a chat, tokenized without special tokens: the template has written them.

    `options` are those of ChatTemplate.render.
    """
    text = template.render(messages, **options)
    return {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}
