"""From an EngineConfig to a running core: the only module that knows every concrete class."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from .config import EngineConfig
from .core import EngineCore
from .device.memory import bytes_per_block, default_cache_bytes, num_blocks_within
from .device.runner import ModelRunner
from .errors import CheckpointError, ConfigError
from .executor.inline import InlineExecutor
from .models.loader import load_model
from .models.registry import ModelConfig, read_model_config
from .opset import choose_ops, choose_sums
from .sched.scheduler import Scheduler, SchedulerLimits

logger = logging.getLogger("quire")

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken")


@dataclass(frozen=True, slots=True, eq=False)
class EngineParts:
    """What the front needs of a built engine."""

    config: EngineConfig
    core: EngineCore
    tokenizer_path: Path
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]


def build_engine(config: EngineConfig) -> EngineParts:
    """Load the model and compose scheduler, runner and executor.

    Raises ConfigError or CheckpointError. Compiles or loads every kernel before it returns.
    """
    path = resolve_model(config.model)
    sums = choose_sums(config.bfloat16_sums)
    logger.info("Products of bfloat16 are added in %s", sums)
    model_config = read_model_config(path, config.dtype, config.linear_segments, sums)
    block_size = config.block_size
    num_blocks, max_model_len = plan_memory(config, model_config)
    ops = choose_ops("cpu", config.backend)
    with torch.inference_mode():
        model = load_model(model_config, ops, config.load_format, seed=config.seed)
    runner = ModelRunner(
        model,
        ops,
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
    )
    runner.warm_up()
    limits = SchedulerLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=num_blocks,
        enable_prefix_caching=config.enable_prefix_caching,
        policy=config.scheduling_policy,
        overlap=config.overlap,
    )
    executor = InlineExecutor(runner, config.num_threads)
    return EngineParts(
        config=config,
        core=EngineCore(Scheduler(limits), executor, overlap=config.overlap),
        tokenizer_path=resolve_model(config.tokenizer) if config.tokenizer else path,
        vocab_size=model_config.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=model_config.eos_token_ids,
    )


def plan_memory(config: EngineConfig, model: ModelConfig) -> tuple[int, int]:
    """Return (KV blocks, model length) that the options and the machine allow.

    The default takes no more than max_num_seqs sequences of the model length can use, and shortens
    a model length that nobody asked for where the memory does not hold one such sequence.
    """
    longest = config.max_model_len or model.max_model_len
    if longest > model.max_model_len:
        raise ConfigError(
            f"max_model_len is {longest}: the model was made for at most "
            f"{model.max_model_len} tokens."
        )
    per_sequence = -(-longest // config.block_size)
    num_blocks = config.num_kv_blocks
    if num_blocks is None:
        cache_bytes = config.kv_cache_bytes or default_cache_bytes()
        num_blocks = num_blocks_within(model.decoder, config.block_size, cache_bytes)
        num_blocks = min(num_blocks, per_sequence * config.max_num_seqs)
    if num_blocks < per_sequence:
        held = num_blocks * config.block_size
        if config.max_model_len is not None or held < 2:
            raise ConfigError(
                f"the KV memory holds {held} tokens, and one sequence of max_model_len "
                f"{longest} needs "
                f"{per_sequence} blocks of {config.block_size}: lower max_model_len or raise "
                "num_kv_blocks or kv_cache_bytes."
            )
        logger.warning("max_model_len is lowered from %d to %d: KV memory", longest, held)
        longest = held
    logger.info(
        "KV memory: %d blocks of %d tokens, %.1f MiB",
        num_blocks,
        config.block_size,
        num_blocks * bytes_per_block(model.decoder, config.block_size) / 2**20,
    )
    return num_blocks, longest


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
