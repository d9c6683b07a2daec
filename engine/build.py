"""From an EngineConfig to a running core: the only module that knows every concrete class."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec.structs import replace

from ..reference.decoder import DecoderConfig
from ..reference.encoder import EncoderConfig
from ..reference.ops import Ops
from .config import EngineConfig, GuessCosts
from .core import EngineCore
from .device import check
from .device.check_cases import Shape
from .device.gpu_memory import StepSizes, measure
from .device.guesser import HeadMaker
from .device.memory import bytes_per_block, default_cache_bytes
from .device.runner import Decoding, ModelRunner
from .errors import CheckpointError, ConfigError
from .executor.base import Executor
from .executor.inline import InlineExecutor
from .grammar.grammars import Grammars
from .guess_costs import measure_costs
from .guesses import Guesses, make_drafter, read_guesses
from .models.encoder import Model
from .models.loader import load_model
from .models.pooled_loader import load_pooled
from .models.registry import ModelConfig, read_model_config, refuse_words
from .opset import Device, choose_device, choose_ops, choose_sums, refuse_shape
from .sched.scheduler import Scheduler, SchedulerLimits
from .text.tokenizer import load_tokenizer
from .vectors import PoolingConfig

logger = logging.getLogger("quire")

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken")


@dataclass(frozen=True, slots=True, eq=False)
class EngineParts:
    """What the front needs of a built engine."""

    config: EngineConfig
    core: EngineCore
    renew_executor: Callable[[], Executor]
    """Make another executor for the same model, when one hangs or was closed."""
    tokenizer_path: Path
    vocab_size: int
    max_model_len: int
    """Tokens of a sequence: of the prompt alone, where it does not generate."""
    eos_token_ids: tuple[int, ...]
    grammars: Grammars
    pooling: PoolingConfig
    max_pooled_len: int
    """Tokens of a prompt whose vector is wanted."""


def build_engine(config: EngineConfig) -> EngineParts:
    """Load the model and compose scheduler, runner and executor.

    Raises ConfigError or CheckpointError. Compiles or loads every kernel that a CPU needs before it
    returns; on a GPU, all but what a number of rows needs that no step has had.
    """
    loaded = load_runner(config)
    config, limits = loaded.config, loaded.limits
    executor = InlineExecutor(loaded.runner, config.num_threads)
    # Not the runner itself: an executor that is closed shall give back its memory.
    renew = loaded.runner.renewal()
    return EngineParts(
        config=config,
        core=EngineCore(make_scheduler(config, limits), executor, overlap=limits.overlap),
        renew_executor=lambda: InlineExecutor(renew(), config.num_threads),
        tokenizer_path=resolve_model(config.tokenizer or config.model),
        vocab_size=loaded.model_config.vocab_size,
        max_model_len=config.max_model_len or limits.max_model_len,
        eos_token_ids=loaded.model_config.eos_token_ids,
        grammars=loaded.grammars,
        pooling=loaded.model_config.pooling,
        max_pooled_len=limits.max_model_len - 1,
    )


class LoadedRunner(NamedTuple):
    """The data plane, ready, and what it allows the control plane."""

    runner: ModelRunner
    config: EngineConfig
    """With a number or a name wherever the machine decided."""
    model_config: ModelConfig
    limits: SchedulerLimits
    grammars: Grammars
    """The runner's, without a vocabulary, which only text knows."""


def load_runner(
    config: EngineConfig,
    wrap: Callable[[Ops], Ops] | None = None,
    *,
    guesses_on_device: bool = True,
) -> LoadedRunner:
    """Load the model into a runner. wrap: put around the operations, to watch them.

    guesses_on_device: load what guesses there, where the options say so.

    Raises as build_engine does.
    """
    path = resolve_model(config.model)
    device = choose_device(config.device, config.backend, config.bfloat16_sums)
    asked, config = config.max_num_batched_tokens, fill_defaults(config, device)
    sums = choose_sums(config.bfloat16_sums, device)
    if device == "cpu":
        logger.info("Products of bfloat16 are added in %s", sums)
    model_config = read_model_config(
        path,
        config.dtype,
        config.linear_segments,
        sums,
        runner=config.runner,
        pooler=config.pooler_config,
        overrides=config.hf_overrides,
        token_id=refuse_words if config.skip_tokenizer_init else partial(_token_id, config),
    )
    config = fit_to_model(config, model_config, asked)
    ops = choose_ops(device, config.backend)
    ops = wrap(ops) if wrap is not None else ops
    guesses = None
    if guesses_on_device:
        guesses = read_guesses(
            config.speculative_config, model_config, resolve_model, config.load_format
        )
    if device == "cpu":
        made = make_cpu_runner(config, model_config, ops, guesses)
    else:
        gpu = torch.device("cuda", torch.cuda.current_device())
        made = make_gpu_runner(config, model_config, ops, gpu, guesses)
    runner, num_blocks, max_model_len = made
    config = replace(config, num_kv_blocks=num_blocks, max_model_len=max_model_len)
    speculative = config.speculative_config
    if speculative is not None and speculative.costs is None:
        costs = measure_costs(runner, on_device=guesses is not None)
        logger.info("Guesses cost, in steps of one token: %s", costs)
        config = replace(config, speculative_config=replace(speculative, costs=costs))
    grammars = Grammars()
    runner.follow(grammars)
    limits = make_limits(config)
    if not model_config.generates:
        # A vector counts as a token that nobody computes any further.
        longest, whole = limits.max_model_len + 1, model_config.takes_whole_prompts
        limits = replace(limits, max_model_len=longest, whole_prompts=whole)
    return LoadedRunner(runner, config, model_config, limits, grammars)


def make_limits(config: EngineConfig) -> SchedulerLimits:
    """Return what the scheduler may use, of options that were all decided."""
    overlap, max_num_batched_tokens = config.overlap, config.max_num_batched_tokens
    num_blocks, max_model_len = config.num_kv_blocks, config.max_model_len
    speculative = config.speculative_config
    assert overlap and max_num_batched_tokens and num_blocks and max_model_len, config
    return SchedulerLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=num_blocks,
        enable_prefix_caching=config.enable_prefix_caching,
        policy=config.scheduling_policy,
        overlap=overlap,
        num_drafts=_num_drafts(config),
        guess_costs=GuessCosts() if speculative is None else speculative.costs or GuessCosts(),
        tenant_weights=config.tenant_weights,
    )


def _num_drafts(config: EngineConfig) -> int:
    """Return the most guesses of a row."""
    speculative = config.speculative_config
    return 0 if speculative is None else speculative.num_speculative_tokens


def make_scheduler(config: EngineConfig, limits: SchedulerLimits) -> Scheduler:
    """Compose the control plane, with who guesses for it."""
    wanted = config.speculative_config
    return Scheduler(limits, drafter=None if wanted is None else make_drafter(wanted))


def fill_defaults(config: EngineConfig, device: Device) -> EngineConfig:
    """Return config with a number or a name where the device decides."""
    on_cpu = device == "cpu"
    return replace(
        config,
        device=device,
        bfloat16_sums=choose_sums(config.bfloat16_sums) if on_cpu else "auto",
        overlap=config.overlap or (1 if on_cpu else 2),
        max_num_batched_tokens=config.max_num_batched_tokens or (2048 if on_cpu else 8192),
    )


def fit_to_model(config: EngineConfig, model: ModelConfig, asked: int | None) -> EngineConfig:
    """Return config as a model that does not generate needs it. ConfigError where it cannot be.

    asked: for max_num_batched_tokens.
    """
    if model.generates:
        return config
    for name in ("speculative_config", "target_itl_ms", "record"):
        if getattr(config, name) is not None:
            raise ConfigError(f"{name} is for models that generate: {config.model} does not.")
    if not model.takes_whole_prompts:
        return config
    longest = longest_model_len(config, model)
    if asked is not None and asked < longest:
        raise ConfigError(
            f"max_num_batched_tokens is {asked}: {config.model} computes a prompt in one step, so "
            f"it must be at least the model length, {longest}."
        )
    budget = max(longest, config.max_num_batched_tokens or 0)
    return replace(config, enable_prefix_caching=False, max_num_batched_tokens=budget)


class MadeRunner(NamedTuple):
    """A runner that is ready, and what its memory holds."""

    runner: ModelRunner
    num_blocks: int
    max_model_len: int


def make_cpu_runner(
    config: EngineConfig, model_config: ModelConfig, ops: Ops, guesses: Guesses | None = None
) -> MadeRunner:
    """Plan the memory, load the model, compile."""
    block_bytes = _block_bytes(config, model_config, guesses)
    num_blocks, max_model_len = plan_memory(
        config, model_config, default_cache_bytes(), block_bytes
    )
    model, head = _load(config, model_config, ops, torch.device("cpu"), guesses)
    config = replace(config, num_kv_blocks=num_blocks, max_model_len=max_model_len)
    return MadeRunner(_make_runner(config, model, head, "exact"), num_blocks, max_model_len)


def make_gpu_runner(
    config: EngineConfig,
    model_config: ModelConfig,
    ops: Ops,
    device: torch.device,
    guesses: Guesses | None = None,
) -> MadeRunner:
    """Check the kernels, load the model, measure the memory, capture the largest graph.

    Everything before the KV memory, which takes what is left, is measured by running it.
    """
    assert config.max_num_batched_tokens is not None, "fill_defaults comes first"
    clock = _StartClock()
    reason = refuse_shape(ops, model_config.shape.head_dim)
    if reason is not None:
        raise ConfigError(f"{config.model}: {reason} Or give --device cpu.")
    check.demand_sound(ops, device, _shape_of(model_config.shape, config.block_size))
    clock.note("check of the kernels")
    try:
        model, make_head = _load(config, model_config, ops, device, guesses)
        clock.note("weights")
        sizes = StepSizes(
            config.block_size,
            config.max_num_seqs,
            config.max_num_batched_tokens,
            longest_model_len(config, model_config),
            config.max_logprobs,
            _num_drafts(config),
        )
        with_graphs = model_config.generates and not config.enforce_eager
        budget = measure(
            model,
            sizes,
            make_head,
            utilization=config.gpu_memory_utilization,
            with_graphs=with_graphs,
        )
        clock.note("kernels, and the measuring of steps")
        block_bytes = _block_bytes(config, model_config, guesses)
        num_blocks, max_model_len = plan_memory(config, model_config, budget.kv, block_bytes)
        kv_bytes = num_blocks * block_bytes
        logger.info("%s\n%s", torch.cuda.get_device_name(device), budget.table(kv_bytes))
        if kv_bytes > budget.most_kv:
            raise ConfigError(
                f"{num_blocks} KV blocks take {kv_bytes / 2**30:.2f} GiB, and "
                f"{max(0, budget.most_kv) / 2**30:.2f} GiB are left: lower num_kv_blocks."
            )
        config = replace(config, num_kv_blocks=num_blocks, max_model_len=max_model_len)
        runner = _make_runner(config, model, make_head, "graphs" if with_graphs else "exact")
        clock.note("KV memory")
        before = torch.cuda.memory_reserved(device)
        if runner.capture_largest():
            graph_bytes = torch.cuda.memory_reserved(device) - before
            clock.note(f"first CUDA graphs, {graph_bytes / 2**20:.0f} MiB")
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU's memory does not hold the model and one step: {error} Lower "
            "max_num_batched_tokens or max_num_seqs, or free memory that others use."
        ) from error
    clock.log()
    return MadeRunner(runner, num_blocks, max_model_len)


def _load(
    config: EngineConfig,
    model_config: ModelConfig,
    ops: Ops,
    device: torch.device,
    guesses: Guesses | None,
) -> tuple[Model, HeadMaker | None]:
    """Load the weights of the model, and of what guesses for it."""
    with torch.inference_mode():
        if not model_config.generates:
            kind, seed = config.load_format, config.seed
            return load_pooled(model_config, ops, kind, seed=seed, device=device), None
        model = load_model(model_config, ops, config.load_format, seed=config.seed, device=device)
        return model, None if guesses is None else guesses.load(model, ops)


def _make_runner(
    config: EngineConfig, model: Model, make_head: HeadMaker | None, decoding: Decoding
) -> ModelRunner:
    """Allocate the memory of a config without gaps, and compile."""
    assert config.num_kv_blocks and config.max_model_len, config
    runner = ModelRunner(
        model,
        num_blocks=config.num_kv_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len + (model.pooler is not None),
        num_drafts=_num_drafts(config),
        decoding=decoding,
    )
    runner.warm_up()
    if make_head is not None:
        runner.guess_by(make_head)
    return runner


def _shape_of(model: DecoderConfig | EncoderConfig, block_size: int) -> Shape:
    """Return what the model's kernels are made for, so that checking compiles nothing in vain."""
    return Shape(model.dtype, model.head_dim, model.num_heads // model.num_kv_heads, block_size)


class _StartClock:
    """How long each part of a start took, for the log."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._parts: list[str] = []

    def note(self, part: str) -> None:
        """End a part."""
        now = time.perf_counter()
        self._parts.append(f"{part} {now - self._last:.2f} s")
        self._last = now

    def log(self) -> None:
        """Write one line."""
        logger.info("Start: %s", "; ".join(self._parts))


def longest_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """Return the model length that the options ask for."""
    longest = config.max_model_len or model.max_model_len
    if longest > model.max_model_len:
        raise ConfigError(
            f"max_model_len is {longest}: the model was made for at most "
            f"{model.max_model_len} tokens."
        )
    return longest


def _block_bytes(config: EngineConfig, model: ModelConfig, guesses: Guesses | None) -> int:
    shapes = () if guesses is None else (guesses.shape,)
    return bytes_per_block(config.block_size, model.shape, *shapes)


def plan_memory(
    config: EngineConfig, model: ModelConfig, free_bytes: int, block_bytes: int
) -> tuple[int, int]:
    """Return (KV blocks, model length) that the options and free_bytes of memory allow.

    The default takes no more than max_num_seqs sequences of the model length can use, and shortens
    a model length that nobody asked for where the memory does not hold one such sequence.
    """
    longest = longest_model_len(config, model)
    per_sequence = -(-longest // config.block_size)
    num_blocks = config.num_kv_blocks
    if num_blocks is None:
        cache_bytes = config.kv_cache_bytes or max(0, free_bytes)
        num_blocks = min(cache_bytes // block_bytes, per_sequence * config.max_num_seqs)
    if num_blocks < per_sequence:
        held = num_blocks * config.block_size
        if config.max_model_len is not None or held < 2:
            raise ConfigError(
                f"the KV memory holds {held} tokens, and one sequence of max_model_len "
                f"{longest} needs "
                f"{per_sequence} blocks of {config.block_size}: lower max_model_len or raise "
                "num_kv_blocks or kv_cache_bytes, or on a GPU gpu_memory_utilization."
            )
        logger.warning("max_model_len is lowered from %d to %d: KV memory", longest, held)
        longest = held
    logger.info(
        "KV memory: %d blocks of %d tokens, %.1f MiB",
        num_blocks,
        config.block_size,
        num_blocks * block_bytes / 2**20,
    )
    return num_blocks, longest


def _token_id(config: EngineConfig, word: str) -> int:
    """Find the one token that a word is. ConfigError where it is none or several."""
    tokenizer = load_tokenizer(resolve_model(config.tokenizer or config.model))
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(f"a class is the word {word!r}: it has {len(ids)} tokens, and needs one.")
    return ids[0]


def resolve_model(name: str) -> Path:
    """Return the folder of a checkpoint: a directory, or a hub name (fetched once, then cached)."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{name!r} is not a directory: give a checkpoint's folder or a hub name (owner/model)."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{name!r} is neither a directory nor a model that the hub or its cache has: {reason}"
        ) from error
