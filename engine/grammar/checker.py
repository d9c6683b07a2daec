"""A process of its own that compiles grammars first: one that is too much ends it, and no more.

Run as a file, over pipes; imports nothing of the package, since it must start fast. It reads the
vocabulary once, then a line of JSON for each grammar and answers with one. Time (of the processor)
and memory of a grammar are bounded by the system, so a hostile one cannot take more; the compiler
runs on a small stack, so what passes here has room anywhere.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import threading
from typing import Any, BinaryIO

import llguidance

MOST_SECONDS = 0.8
MOST_BYTES = 192 * 2**20
STACK_BYTES = 2**21
NUM_TRIED = 8
STRIDE = 7919
"""Tokens that are tried, so many allowed ones apart."""
HEADER = struct.Struct("<QQ")
"""Bytes of the JSON head of a vocabulary, and of its tokens."""


def make_limits() -> llguidance.LLParserLimits:
    """Return the bounds on what a grammar may take, compiled and in each step."""
    return llguidance.LLParserLimits(verbose_errors=False)


def compile_grammar(tokenizer: llguidance.LLTokenizer, source: str) -> llguidance.LLMatcher:
    """Compile; faults are in the matcher."""
    return llguidance.LLMatcher(tokenizer, source, log_level=0, limits=make_limits())


def find_fault(matcher: llguidance.LLMatcher) -> str:
    """Return what is wrong with a grammar, "" if an output can begin: a few tokens are tried."""
    for index in range(NUM_TRIED):
        if matcher.is_error() or matcher.is_stopped():
            break
        mask = matcher.compute_bitmask()
        held = [i for i, byte in enumerate(mask) if byte]
        if not held:
            break
        at = held[index * STRIDE % len(held)]
        matcher.consume_token(8 * at + (mask[at] & -mask[at]).bit_length() - 1)
    return str(matcher.get_error())


class _Tokens:
    """A vocabulary as llguidance takes it."""

    def __init__(self, head: dict[str, Any], data: bytes) -> None:
        self.eos_token_id = head["eos"][0]
        self.bos_token_id = None
        self.special_token_ids = head["special"]
        self.tokens = []
        start = 0
        for length in head["lengths"]:
            self.tokens.append(data[start : start + length])
            start += length

    def __call__(self, text: Any) -> list[int]:
        """Tokenize byte by byte where bytes are tokens: only forced tokens, unused, need more."""
        data = text.encode() if isinstance(text, str) else text
        by_bytes = {token: i for i, token in enumerate(self.tokens) if len(token) == 1}
        return [by_bytes[bytes((byte,))] for byte in data if bytes((byte,)) in by_bytes]


def read_tokenizer(head: dict[str, Any], data: bytes) -> llguidance.LLTokenizer:
    """Build the tree of tokens from what a vocabulary was packed into."""
    wrapper = llguidance.TokenizerWrapper(_Tokens(head, data))
    return llguidance.LLTokenizer(
        wrapper, n_vocab=len(head["lengths"]), eos_token=list(head["eos"])
    )


def check(tokenizer: llguidance.LLTokenizer, source: str) -> dict[str, Any]:
    """Compile one grammar and compute its first mask, bounded."""
    before = _resident()
    answer: dict[str, Any] = {"error": "the compiler failed", "bytes": 0}

    def work() -> None:
        try:
            matcher = compile_grammar(tokenizer, source)
            answer["error"] = find_fault(matcher.deep_copy())
            answer["bytes"] = max(0, _resident() - before)
        except MemoryError:
            os.abort()  # as the compiler does

    thread = threading.Thread(target=work)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    thread.start()
    thread.join()
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    return answer


def _resident() -> int:
    return _memory_pages(1) * resource.getpagesize()


def _memory_pages(column: int) -> int:
    """Return this process's pages: 0 all of its addresses, 1 what is in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[column])


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        sys.exit(0)
    return data


def main() -> None:
    """Serve the parent until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent may have to finish something
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    head_size, data_size = HEADER.unpack(_read(stdin, HEADER.size))
    head = json.loads(_read(stdin, head_size))
    tokenizer = read_tokenizer(head, _read(stdin, data_size))
    threading.stack_size(STACK_BYTES)
    check(tokenizer, "start: /a/")  # what every grammar shares is not counted
    used = _memory_pages(0) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in stdin:
        answer = check(tokenizer, json.loads(line)["source"])
        stdout.write(json.dumps(answer).encode() + b"\n")
        stdout.flush()


if __name__ == "__main__":
    main()
