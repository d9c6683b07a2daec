"""The engine's options, and the only place that reads environment variables.

Frozen; validated on construction; every field has vLLM's name where vLLM has one.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr

from .errors import ConfigError
from .parsing.choose import check_names

Backend = Literal["auto", "kernels", "reference"]
DeviceName = Literal["auto", "cpu", "cuda"]
DTypeName = Literal["auto", "float32", "bfloat16"]
LoadFormat = Literal["auto", "safetensors", "dummy"]
SumsName = Literal["auto", "pairs", "tiles"]
Policy = Literal["fcfs", "priority"]
GuessMethod = Literal["ngram", "suffix", "draft_model", "eagle3", "mtp"]
RunnerKind = Literal["auto", "generate", "pooling"]
PoolingType = Literal["LAST", "CLS", "MEAN", "MAX"]

DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"


class ReasoningConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model writes before and behind its thoughts: as texts, or as token ids."""

    reasoning_start_str: str = ""
    reasoning_end_str: str = ""
    reasoning_start_token_ids: tuple[int, ...] = ()
    reasoning_end_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        texts = bool(self.reasoning_start_str), bool(self.reasoning_end_str)
        ids = bool(self.reasoning_start_token_ids), bool(self.reasoning_end_token_ids)
        if (texts, ids) not in (((True, True), (False, False)), ((False, False), (True, True))):
            raise ConfigError(
                "reasoning_config must give reasoning_start_str and reasoning_end_str, or "
                "reasoning_start_token_ids and reasoning_end_token_ids."
            )


SEVERAL = 6
"""Tokens of a step up to which it is hardly its arithmetic that takes time."""


class GuessCosts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What guessing costs, in parts of a step in which one sequence decodes."""

    token: float = 0.05
    """Each guess that is verified, in a step of SEVERAL tokens at most,"""
    crowd: float = 0.05
    """and where there are more,"""
    step: float = 0.12
    """a step with guesses, beside these: on the device with the first guess of each row,"""
    next: float = 0.0
    """and on the device each further guess of all rows."""
    unit_s: float = 0.0
    """Seconds of that step; 0: nobody knows."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"costs: {name} is {value}: it must be a number from 0.")

    def of(self, num_tokens: int) -> float:
        """Return how long a step of num_tokens > 0 takes."""
        few = min(num_tokens, SEVERAL)
        return 1.0 + self.token * (few - 1) + self.crowd * (num_tokens - few)


class SpeculativeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who guesses tokens, and how many: no answer depends on it."""

    method: GuessMethod | None = None
    """ngram (the default): what followed the last time that prompt or answer ended alike.
    suffix: what mostly followed, in latest answers of the same tenant and cache salt too.
    draft_model (the default where a model is given): what a smaller model says. eagle3: a layer on
    top of the target's own. mtp: the one that the target's checkpoint has."""
    model: str | None = None
    """draft_model, eagle3: a checkpoint directory, or the name of one in the hub's local cache."""
    num_speculative_tokens: int = 4
    """Most guesses of a sequence in a step."""
    costs: GuessCosts | None = None
    """None: measured at the start."""
    prompt_lookup_min: int = 1
    """ngram: fewest tokens that must be alike,"""
    prompt_lookup_max: int = 5
    """and the most that are compared."""
    suffix_decoding_max_tree_depth: int = 24
    """suffix: most tokens that are compared and guessed together,"""
    suffix_decoding_max_cached_requests: int = 10000
    """answers that are kept, the latest; 0: none,"""
    suffix_decoding_max_spec_factor: float = 1.0
    """guesses at most for each token that is alike,"""
    suffix_decoding_min_token_prob: float = 0.1
    """and the least part of the places found that must go on as the guesses do."""

    def __post_init__(self) -> None:
        method = self.method or ("ngram" if self.model is None else "draft_model")
        if (method in ("draft_model", "eagle3")) != (self.model is not None):
            verb = "needs" if self.model is None else "takes no"
            raise ConfigError(f"speculative_config: the method {method} {verb} model.")
        force_setattr(self, "method", method)
        for name, low, high in (
            ("num_speculative_tokens", 1, 16),
            ("prompt_lookup_min", 1, 64),
            ("prompt_lookup_max", self.prompt_lookup_min, 64),
            ("suffix_decoding_max_tree_depth", 2, 64),
            ("suffix_decoding_max_cached_requests", 0, 2**20),
            ("suffix_decoding_max_spec_factor", 0, 64),
            ("suffix_decoding_min_token_prob", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"speculative_config: {name} is {value}: it must be from {low} to {high}."
                )


class PoolerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How vectors are made, where that is not as the checkpoint says: vLLM's names."""

    pooling_type: PoolingType | None = None
    normalize: bool | None = None
    default_prompt_name: str | None = None
    """Of sentence-transformers' prompts, what is written before the texts of requests that do not
    say; empty: nothing. None: as the checkpoint says."""


class EngineConfig(Struct, frozen=True, kw_only=True):
    """Everything that decides what an engine does. Raises ConfigError that names the option."""

    model: str = str(DEMO_MODEL)
    """A checkpoint directory, or the name of one in the hub's local cache."""
    tokenizer: str | None = None
    """Another directory for the tokenizer; None: the model's."""
    skip_tokenizer_init: bool = False
    """Token ids in, token ids out: no tokenizer is loaded."""
    runner: RunnerKind = "auto"
    """generate: tokens, and embeddings beside them. pooling: embeddings and scores alone. auto: as
    the checkpoint is made for."""
    pooler_config: PoolerConfig | None = None
    """A dict of its fields will do."""
    hf_overrides: dict[str, Any] = {}
    """Fields of the checkpoint's config.json that count instead of what stands there."""
    chat_template: str | None = None
    """A file with a chat template, or its text, instead of the checkpoint's own. One that knows the
    roles query and document writes the pairs of texts that are scored."""
    dtype: DTypeName = "auto"
    load_format: LoadFormat = "auto"
    device: DeviceName = "auto"
    """auto: an NVIDIA GPU where there is one and no option asks for what only a CPU does."""
    backend: Backend = "auto"
    """kernels (the default) or reference: pure PyTorch, on a CPU."""
    max_model_len: int | None = None
    """None: the checkpoint's, or less where the KV memory does not hold it."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    """Most tokens in a step. None: 2,048 on a CPU, 8,192 on a GPU."""
    target_itl_ms: float | None = None
    """The time between two tokens that prompts should not stretch: sets the tokens of a step
    below max_num_batched_tokens from what steps take. In AsyncEngine and the server only."""
    max_logprobs: int = 20
    """The most that a request may ask for as logprobs and prompt_logprobs; -1: no limit. On a GPU
    memory for so many is reserved."""
    block_size: int = 16
    num_kv_blocks: int | None = None
    """None: as many as kv_cache_bytes hold."""
    kv_cache_bytes: int | None = None
    """None: a quarter of the machine's free memory, at most 4 GiB; on a GPU what is left of
    gpu_memory_utilization."""
    gpu_memory_utilization: float = 0.9
    """The part of a GPU's memory that may be in use, whoever uses it."""
    enable_prefix_caching: bool = True
    scheduling_policy: Policy = "fcfs"
    tenant_weights: dict[str, float] = {}
    """Shares of tenants that wait for each other, above 0; 1 for those that are not named."""
    overlap: int | None = None
    """Steps in flight: 1 or 2. None: 2 on a GPU, which computes apart, 1 on a CPU."""
    enforce_eager: bool = False
    """Launch every kernel of a step on a GPU by itself, instead of replaying CUDA graphs."""
    linear_segments: int = 1
    """K segments of row-parallel matmuls (see the law)."""
    bfloat16_sums: SumsName = "auto"
    """The order in which products of bfloat16 are added, part of the law: what this processor does
    fastest, or always "pairs" or "tiles", so that machines of several kinds add alike. A GPU adds
    in an order of its own: auto only."""
    num_threads: int | None = None
    """CPU threads for computing; None: torch's choice."""
    reasoning_config: ReasoningConfig | None = None
    """The markers of a model that thinks (a dict of its fields will do), for
    thinking_token_budget; None: what reasoning_parser knows."""
    reasoning_parser: str | None = None
    """How the model's thoughts are told from its answers in a chat, by vLLM's names or "none".
    None: as its chat template shows."""
    tool_call_parser: str | None = None
    """How the model calls tools, likewise."""
    enable_auto_tool_choice: bool = True
    """Whether a chat's tools are called where the model decides so; else what it writes is text."""
    speculative_config: SpeculativeConfig | None = None
    """Speculative decoding (a dict of its fields will do); None: none."""
    seed: int = 0
    """Draws the seeds of requests that bring none, and dummy weights."""
    step_timeout_s: float = 600.0
    """A step that takes longer is given up: its requests end with an error, the executor is made
    anew. In AsyncEngine and the server only."""
    served_model_name: str | None = None
    record: str | None = None
    """A file for the engine's log, for `quire replay`: token ids of prompts and answers, no text.
    None: nothing is recorded."""
    record_text: bool = False
    """Write the texts of prompts and the stop strings into the log too."""
    record_bytes: int = 256 * 2**20
    """Most bytes of the log: the oldest quarter is dropped when the newest is full."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("runner", RunnerKind),
            ("dtype", DTypeName),
            ("load_format", LoadFormat),
            ("device", DeviceName),
            ("backend", Backend),
            ("bfloat16_sums", SumsName),
            ("scheduling_policy", Policy),
        ):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise ConfigError(f"{name} is {value!r}: it must be one of {get_args(kind)}.")
        _integer(self, "max_num_seqs", 1, 65536)
        _integer(self, "block_size", 1, 1024)
        _integer(self, "max_logprobs", -1, 2**31 - 1)
        if self.overlap is not None:
            _integer(self, "overlap", 1, 2)
        _integer(self, "linear_segments", 1, 64)
        _integer(self, "seed", 0, 2**63 - 1)
        if self.max_num_batched_tokens is not None:
            _integer(self, "max_num_batched_tokens", 1, 2**24)
        _integer(self, "record_bytes", 2**16, 2**62)
        for name in ("max_model_len", "num_kv_blocks", "kv_cache_bytes", "num_threads"):
            if getattr(self, name) is not None:
                _integer(self, name, 1, 2**62)
        for name in ("step_timeout_s", "target_itl_ms"):
            limit = getattr(self, name)
            number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if limit is not None and not (number and limit > 0):
                raise ConfigError(f"{name} is {limit!r}: it must be a number above 0.")
        for name, weight in self.tenant_weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (number and 0 < weight < math.inf):
                raise ConfigError(
                    f"tenant_weights says {weight!r} for {name!r}: it must be a number above 0."
                )
        check_names(self.tool_call_parser, self.reasoning_parser)
        _struct(self, "reasoning_config", ReasoningConfig)
        _struct(self, "speculative_config", SpeculativeConfig)
        _struct(self, "pooler_config", PoolerConfig)
        if self.record_text and (self.record is None or self.skip_tokenizer_init):
            raise ConfigError("record_text needs record, and a tokenizer.")
        part = self.gpu_memory_utilization
        if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1:
            raise ConfigError(
                f"gpu_memory_utilization is {part!r}: it must be a number above 0, at most 1."
            )
        force_setattr(self, "model", str(self.model))


def _struct(config: EngineConfig, name: str, kind: type[Struct]) -> None:
    """Make what was given as a dict a struct."""
    value = getattr(config, name)
    if isinstance(value, dict):
        try:
            value = msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{name}: {error}.") from None
        force_setattr(config, name, value)


def _integer(config: EngineConfig, name: str, low: int, high: int) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}: it must be an integer from {low} to {high}.")


def log_level() -> str:
    """Level of the logger `quire`, from QUIRE_LOG_LEVEL (default INFO)."""
    return os.environ.get("QUIRE_LOG_LEVEL", "INFO").upper()


def api_key_from_environment() -> str | None:
    """The key that --api-key gives, from QUIRE_API_KEY."""
    return os.environ.get("QUIRE_API_KEY") or None
