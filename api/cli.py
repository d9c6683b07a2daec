"""The command line: `quire serve`, `run`, `run-batch`, `bench`, `check`, `replay`, `--version`.

Prints for people; everything heavy is imported inside the commands, so that --help is fast. Exit
codes: 2 for options that make no sense, 1 for a model or a port that cannot be had, each with one
line; 1 too where a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from collections.abc import Sequence
from functools import partial
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import msgspec

from .. import __version__
from ..engine.config import DeviceName, EngineConfig, api_key_from_environment, log_level
from ..engine.errors import ConfigError, QuireError
from .cli_values import read_bytes, read_count, read_object, read_port, read_seconds, read_weights
from .load_options import add_load_options

if TYPE_CHECKING:
    from .state import Engine

DEMO_NAME = "demo"

HELP = {
    "tokenizer": "directory of another tokenizer",
    "skip_tokenizer_init": "serve token ids only",
    "runner": "generate: tokens, and embeddings beside; pooling: vectors alone; auto: as the "
    "checkpoint is made for",
    "pooler_config": "how vectors are made, as JSON: "
    '{"pooling_type": "LAST", "CLS", "MEAN" or "MAX", "normalize": true}',
    "hf_overrides": "fields of config.json to change, as JSON",
    "chat_template": "file or text of a chat template, instead of the checkpoint's",
    "dtype": "of weights, activations and KV cache",
    "load_format": "dummy: random weights of the config's shape",
    "device": "where to compute; auto: a GPU where there is one",
    "backend": "reference: everything in pure PyTorch, on a CPU",
    "max_model_len": "most tokens of a request, prompt and answer together",
    "max_num_seqs": "most requests in a step",
    "max_num_batched_tokens": "most tokens in a step; not given: 8192 on a GPU, 2048 on a CPU",
    "target_itl_ms": "time between tokens to keep: chunks of prompts are cut to it",
    "max_logprobs": "most logprobs and prompt_logprobs of a request; -1: no limit",
    "block_size": "tokens in a KV block",
    "num_kv_blocks": "KV blocks",
    "kv_cache_bytes": "memory for KV blocks, as 2GiB or a number",
    "gpu_memory_utilization": "part of a GPU's memory that may be in use",
    "enable_prefix_caching": "keep the KV of prompts for others that begin alike",
    "scheduling_policy": "who runs first",
    "tenant_weights": "shares of those who wait for each other, as JSON: for `serve` by API key, "
    'or by `user` where there are no keys: {"key": 2}',
    "overlap": "steps in flight, 1 or 2; not given: 2 on a GPU, 1 on a CPU",
    "enforce_eager": "no CUDA graphs",
    "linear_segments": "segments in which row-parallel matmuls sum",
    "bfloat16_sums": "order in which products of bfloat16 are added (auto: the processor's)",
    "num_threads": "CPU threads that compute",
    "reasoning_config": "what the model writes before and behind its thoughts, as JSON: "
    '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}',
    "reasoning_parser": "how the model writes its thoughts, by vLLM's names of parsers, or none; "
    "not given: as its chat template shows",
    "tool_call_parser": "how the model calls tools, likewise",
    "enable_auto_tool_choice": "let the model decide whether it calls tools",
    "speculative_config": "who guesses tokens, as JSON, which changes no answer: "
    '{"method": "ngram" or "suffix", "num_speculative_tokens": 4}',
    "seed": "draws the seeds of requests that bring none",
    "step_timeout_s": "seconds after which a step that does not end is given up",
    "served_model_name": "name of the model in the API",
    "record": "write the engine's log to this file, for quire replay",
    "record_text": "write texts of prompts and stop strings to the log too",
    "record_bytes": "most bytes of the log, as 256MiB or a number",
}
"""One line for each field of EngineConfig but `model`."""

LIMITS_HELP = {
    "max_queued_requests": "most answers that wait for their turn: 429 above; not given: no limit",
    "max_body_bytes": "most bytes of a request, as 32MiB or a number",
    "max_header_bytes": "most bytes of a request's line and of each header",
    "max_nesting": "most lists and objects inside each other in a request",
    "max_answers": "most prompts of a request times n",
    "stream_buffer_bytes": "most bytes that wait for a client to read its response",
    "response_store_bytes": "most bytes of responses kept for requests that name them; 0: none",
    "max_background_responses": "most responses that are made in the background",
    "max_file_bytes": "most bytes of a file for batches",
    "file_store_bytes": "most bytes of all files",
    "max_batch_lines": "most requests of a batch",
    "max_batches": "most batches that have not ended",
    "max_batch_in_flight": "requests of batches that are answered at once; not given: half of "
    "--max-num-seqs",
    "slow_reader_timeout_s": "seconds after which a client that reads nothing is cut; 0: never",
    "sse_heartbeat_s": "seconds of silence after which a stream gets a comment; 0: none",
}
"""One line for each field of Limits that is an option."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        _set_up_logging()
        config = _engine_config(options)
    except ConfigError as error:
        options.parser.error(str(error))
    try:
        result: int = options.command(config, options)
        return result
    except QuireError as error:
        print(f"quire: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The options of all commands."""
    parser = argparse.ArgumentParser(
        prog="quire", description="Serve language models from paged memory.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"quire {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a model over HTTP", allow_abbrev=False)
    serve.set_defaults(command=_serve, parser=serve)
    group = serve.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to serve on (127.0.0.1)")
    group.add_argument("--port", type=read_port, default=8000, help="0 takes a free one (8000)")
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="ask for this key on every path but /health and the page at /; repeatable; "
        "also QUIRE_API_KEY",
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="more keys, one a line, # for comments; read again on SIGHUP",
    )
    group.add_argument(
        "--ssl-certfile", metavar="FILE", help="serve over TLS; read again on SIGHUP"
    )
    group.add_argument("--ssl-keyfile", metavar="FILE", help="the key of the certificate")
    group.add_argument(
        "--allowed-origins",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web page that may call from a browser, or *; repeatable",
    )
    group.add_argument(
        "--drain-timeout",
        type=read_seconds,
        default=30.0,
        metavar="SECONDS",
        help="for running requests after SIGTERM; a second signal ends it (30)",
    )
    group.add_argument(
        "--files-dir",
        metavar="DIR",
        help="keep files and batches there, for the next server too; not given: only for this one",
    )
    group.add_argument(
        "--share-prefix-cache",
        action="store_true",
        help="let requests with different API keys find each other's cached prefixes",
    )
    group.add_argument(
        "--access-log",
        choices=("json", "text", "off"),
        default="off",
        help="one line on stdout for each request: who, what, how long, how many tokens (off)",
    )
    group.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="send a trace of each generation there by OTLP over HTTP; needs quire[tracing]",
    )
    _add_limits(serve)
    _add_engine_options(serve)
    _add_other_commands(commands)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """An option for each limit that has a line of help."""
    from .limits import Limits

    group = parser.add_argument_group("limits")
    defaults = Limits()
    for name, text in LIMITS_HELP.items():
        default = getattr(defaults, name)
        kind: Any = float if name.endswith("_s") else int
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=read_bytes if name.endswith("_bytes") else kind,
            default=default,
            metavar="N",
            help=text if default is None else f"{text} ({default})",
        )


def _add_other_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """All but `serve`."""
    run = commands.add_parser("run", help="chat in the terminal", allow_abbrev=False)
    run.set_defaults(command=_run, parser=run)
    group = run.add_argument_group("chat")
    group.add_argument("--system", help="what the model is told first")
    group.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (0.7)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer")
    _add_engine_options(run)

    batch = commands.add_parser(
        "run-batch", help="answer the requests of a file", allow_abbrev=False
    )
    batch.set_defaults(command=_run_batch, parser=batch)
    group = batch.add_argument_group("batch")
    file: dict[str, Any] = {"required": True, "metavar": "FILE"}
    group.add_argument(
        "-i", "--input-file", **file, help="a request a line, as OpenAI's batches; - is stdin"
    )
    group.add_argument("-o", "--output-file", **file, help="for their answers; - is stdout")
    group.add_argument(
        "--resume", action="store_true", help="go on with what an earlier run has answered"
    )
    group.add_argument(
        "--max-batch-in-flight",
        type=read_count,
        metavar="N",
        help="requests that are answered at once; not given: twice --max-num-seqs",
    )
    batch.add_argument("--model", metavar="MODEL", help="as for serve; not given: the demo")
    _add_field_options(batch)

    load = commands.add_parser(
        "bench", help="load on a running server, and what it takes", allow_abbrev=False
    )
    load.set_defaults(command=_bench, parser=load)
    add_load_options(load)

    check = commands.add_parser(
        "check", help="compare a device's operations with the reference", allow_abbrev=False
    )
    check.set_defaults(command=_check, parser=check)
    check.add_argument(
        "--device", choices=get_args(DeviceName), default="auto", help=HELP["device"] + " (auto)"
    )
    replay = commands.add_parser(
        "replay", help="run a recorded log again and compare", allow_abbrev=False
    )
    replay.set_defaults(command=_replay, parser=replay)
    replay.add_argument("file", metavar="FILE", help="what --record wrote")
    replay.add_argument("--request", metavar="ID", help="run this request alone")
    replay.add_argument("--model", metavar="MODEL", help="where the model is now")
    _add_field_options(replay)


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    """The model and an option for every field of EngineConfig."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a checkpoint directory, or a model's name in the hub's local cache; "
        "nothing: the bundled demo",
    )
    _add_field_options(parser)


def _add_field_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of EngineConfig; what is not given is left to its default."""
    group = parser.add_argument_group("engine")
    for field in msgspec.structs.fields(EngineConfig):
        if field.name == "model":
            continue
        kind = field.type
        if isinstance(kind, UnionType):
            kind = next(one for one in get_args(kind) if one is not type(None))
        text = HELP[field.name]
        if field.default is not None:
            text += f" ({field.default})"
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            settings["choices"] = get_args(kind)
        elif kind == dict[str, float]:
            settings.update(type=read_weights, metavar="JSON")
        elif get_origin(kind) is dict or (
            isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        ):
            settings.update(type=partial(read_object, kind), metavar="JSON")
        else:
            settings["type"] = read_bytes if field.name.endswith("_bytes") else kind
            settings["metavar"] = "NAME" if kind is str else "N"
        group.add_argument("--" + field.name.replace("_", "-"), **settings)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of EngineConfig that the command line names."""
    return {
        field: getattr(options, field)
        for field in EngineConfig.__struct_fields__
        if getattr(options, field, None) is not None
    }


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    given = _given(options)
    if "model" not in given:
        given.setdefault("served_model_name", DEMO_NAME)
    return EngineConfig(**given)


def _set_up_logging() -> None:
    """Log to stderr, as QUIRE_LOG_LEVEL says. ConfigError for a level that does not exist."""
    logger = logging.getLogger("quire")
    level = log_level()
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(
            f"QUIRE_LOG_LEVEL is {level!r}: it must be DEBUG, INFO, WARNING or ERROR."
        )
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)


def _serve(config: EngineConfig, options: argparse.Namespace) -> int:
    from pathlib import Path

    from .auth import read_keys
    from .limits import Limits
    from .server import ServerOptions, serve

    environment_key = api_key_from_environment()
    keys = [*options.api_key, *([environment_key] if environment_key else [])]
    if not all(key.strip() for key in keys):
        options.parser.error("--api-key is empty: it must have at least one character.")
    of_file = [] if options.api_key_file is None else read_keys(Path(options.api_key_file))
    if config.tenant_weights:
        config = _name_tenants(config, [*keys, *of_file])
    try:
        limits = Limits(**{name: getattr(options, name) for name in LIMITS_HELP})
    except ConfigError as error:
        options.parser.error(str(error))
    if options.access_log != "off":
        _set_up_access_log()
    server_options = ServerOptions(
        host=options.host,
        port=options.port,
        api_keys=keys,
        api_key_file=options.api_key_file,
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        allowed_origins=options.allowed_origins,
        share_prefix_cache=options.share_prefix_cache,
        drain_timeout_s=options.drain_timeout,
        files_dir=options.files_dir,
        access_log=options.access_log,
        otlp_traces_endpoint=options.otlp_traces_endpoint,
        limits=limits,
    )
    asks_key = bool(keys or of_file)

    def announce(url: str, engine: Engine) -> None:
        print(greeting(url, engine.model_name, asks_key=asks_key), flush=True)

    # Until there is something to drain (the server then takes the signal over) Ctrl-C just ends it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(serve(config, server_options, announce))
    return 0


def _set_up_access_log() -> None:
    """Write the access log's lines to stdout, as they are."""
    from .access_log import LOGGER_NAME

    access = logging.getLogger(LOGGER_NAME)
    access.setLevel(logging.INFO)
    access.propagate = False
    if not access.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        access.addHandler(handler)


def _name_tenants(config: EngineConfig, keys: list[str]) -> EngineConfig:
    """Put the names that the server gives to tenants into the weights. ConfigError."""
    from .auth import name_of

    wrong = sum(name not in keys for name in config.tenant_weights) if keys else 0
    if wrong:
        raise ConfigError(f"tenant_weights has {wrong} names that are none of the API keys.")
    kind: Literal["key", "user"] = "key" if keys else "user"
    weights = {name_of(kind, name): weight for name, weight in config.tenant_weights.items()}
    return msgspec.structs.replace(config, tenant_weights=weights)


def greeting(url: str, model_name: str, *, asks_key: bool) -> str:
    """What is printed once the server listens: its address and a line to try."""
    body = {
        "model": model_name,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 100,
    }
    data = json.dumps(body).replace("'", "'\\''")
    key = ' -H "Authorization: Bearer $QUIRE_API_KEY"' if asks_key else ""
    return (
        f"Quire {__version__} serves {model_name} at {url}\n"
        f"Try: curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{data}'"
    )


def _run(config: EngineConfig, options: argparse.Namespace) -> int:
    from ..engine.params import SamplingParams
    from .terminal import chat

    try:
        params = SamplingParams(temperature=options.temperature, max_tokens=options.max_tokens)
    except QuireError as error:
        options.parser.error(str(error))
    return chat(config, params, options.system)


def _run_batch(config: EngineConfig, options: argparse.Namespace) -> int:
    from .batch.offline import Job, run_batch

    job = Job(options.input_file, options.output_file, options.resume, options.max_batch_in_flight)
    return run_batch(config, job)


def _bench(config: EngineConfig, options: argparse.Namespace) -> int:
    del config
    from .load import bench

    return bench(options)


def _check(config: EngineConfig, options: argparse.Namespace) -> int:
    import torch

    from ..engine.device.check import SHAPES, run_checks
    from ..engine.opset import choose_device, choose_ops, choose_sums

    device = choose_device(config.device)
    sums = choose_sums("auto", device)
    name = torch.cuda.get_device_name() if device == "cuda" else "this CPU"
    print(f"Operations on {name}, against the reference, bit for bit:", flush=True)
    shapes = [shape._replace(sums=sums) for shape in SHAPES]
    num_wrong = 0
    for verdict in run_checks(choose_ops(device, "auto"), torch.device(device), shapes):
        print(verdict, flush=True)
        num_wrong += verdict.fault is not None
    print(f"{num_wrong} wrong" if num_wrong else "All are equal.")
    return 1 if num_wrong else 0


def _replay(config: EngineConfig, options: argparse.Namespace) -> int:
    from .replaying import replay_file

    return replay_file(options.file, _given(options), options.request)


if __name__ == "__main__":
    sys.exit(main())
