"""What a load on a server may be: options of `quire bench`, read without what sends it."""

from __future__ import annotations

import argparse
from pathlib import Path

ENDPOINTS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """What a load may be."""
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="of the server, with /v1 or without")
    add("--endpoint", choices=tuple(ENDPOINTS), default="completions")
    add("--model", help="not given: the server's first one")
    add("--api-key")
    add("--num-prompts", type=int, default=100, metavar="N")
    add("--concurrency", type=int, default=16, metavar="N", help="most requests at once (16)")
    add("--request-rate", type=float, metavar="R", help="a second, Poisson; not given: at once")
    add("--input-len", type=int, default=64, metavar="N", help="words of a prompt (64)")
    add("--shared-len", type=int, default=0, metavar="N", help="words that all begin with (0)")
    add("--output-len", type=int, default=64, metavar="N", help="tokens of an answer (64)")
    add("--temperature", type=float, default=0.0)
    add(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for answers of full length, by vLLM's field: --no-ignore-eos for other servers",
    )
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    add("--plot", type=Path, metavar="FILE", help="write a picture of them, SVG")
