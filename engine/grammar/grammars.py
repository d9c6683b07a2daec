"""Grammars: what requests ask, compiled once, checked in a process of its own before.

Owns the compiled grammars and the checkers. A compiled grammar lives as long as somebody holds it;
beyond that the latest ones are kept, within a bound of their memory. May be called from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from ..errors import EngineError, ParamsError
from ..structured import FIELD

NUM_CHECKERS = 2
CHECK_TIMEOUT_S = 20.0
"""Of wall time, beside the bound on the processor's: for a machine that is busy elsewhere."""
START_TIMEOUT_S = 120.0
CACHE_BYTES = 256 * 2**20
CACHE_GRAMMARS = 1024
LEAST_COST = 64 * 2**10
"""Bytes that a compiled grammar counts at least."""
MAX_SHOWN = 300
"""Characters of what the compiler says."""


class Vocabulary(NamedTuple):
    """The tokens of a model, as grammars see them."""

    tokens: list[bytes]
    """By id; empty where a token has no text."""
    special: Mapping[str, int]
    """Tokens that no text spells: only a grammar that names them allows them."""
    eos_token_ids: tuple[int, ...]
    """What ends an output."""


class Compiled:
    """A grammar, ready to be followed. Immutable: `start` gives what moves."""

    def __init__(self, matcher: Any, num_bytes: int) -> None:
        self._matcher = matcher
        self.num_bytes = max(LEAST_COST, num_bytes)

    def start(self) -> Any:
        """Return a matcher of its own, at the beginning of an output."""
        return self._matcher.deep_copy()


class Grammars:
    """Compiled grammars by their sources."""

    def __init__(self, load: Callable[[], Vocabulary] | None = None) -> None:
        """load: gives the vocabulary, on first use; None: `provide` will say."""
        self._load = load
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._vocabulary: Vocabulary | None = None
        self._alive: WeakValueDictionary[str, Compiled] = WeakValueDictionary()
        self._kept: OrderedDict[str, Compiled] = OrderedDict()
        self._num_kept_bytes = 0
        self._pending: dict[str, Future[Compiled]] = {}
        """What some thread compiles; others that ask for it wait."""
        self._checkers: queue.LifoQueue[Checker | None] = queue.LifoQueue()
        for _ in range(NUM_CHECKERS):
            self._checkers.put(None)
        self._is_closed = False

    def provide(self, load: Callable[[], Vocabulary]) -> None:
        """Say where the vocabulary comes from."""
        self._load = load

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary. ParamsError where there is none."""
        with self._lock:
            return self._read_vocabulary()

    def find(self, source: str) -> Compiled | None:
        """Return a grammar that is compiled already. Does not wait."""
        found = self._alive.get(source)
        if found is not None:
            with self._lock:
                if source in self._kept:
                    self._kept.move_to_end(source)
        return found

    def compile(self, source: str) -> Compiled:
        """Check and compile, or return what is there. May take seconds: not for an event loop.

        ParamsError says what is wrong with it. EngineError behind close.
        """
        found = self.find(source)
        if found is not None:
            return found
        self._ready()
        with self._lock:
            found, theirs = self._alive.get(source), self._pending.get(source)
            if found is None and theirs is None:
                mine = self._pending[source] = Future[Compiled]()
        if found is not None:
            return found
        if theirs is not None:
            return theirs.result()
        try:
            compiled = self._compile(source, self._check(source))
            mine.set_result(compiled)
            return compiled
        except BaseException as error:
            interrupted = ParamsError("structured_outputs: compiling was interrupted.", FIELD)
            mine.set_exception(error if isinstance(error, Exception) else interrupted)
            raise
        finally:
            with self._lock:
                del self._pending[source]

    def resume(self, source: str) -> Compiled:
        """Compile what was checked once, where nobody kept it."""
        found = self.find(source)
        if found is not None:
            return found
        self._ready()
        return self._compile(source, 0)

    def close(self) -> None:
        """End the checkers, once they have answered; whoever waits for one gets an EngineError."""
        self._is_closed = True
        for checker in [self._checkers.get() for _ in range(NUM_CHECKERS)]:
            if checker is not None:
                checker.close()
            self._checkers.put(None)

    def _read_vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            if self._load is None:
                raise ParamsError("structured_outputs need a tokenizer, and there is none.", FIELD)
            vocabulary = self._load()
            if not vocabulary.eos_token_ids:
                raise ParamsError(
                    "structured_outputs need a token that ends an output: the model has none.",
                    FIELD,
                )
            self._vocabulary = vocabulary
        return self._vocabulary

    def _ready(self) -> Vocabulary:
        """Build the tree of tokens, once."""
        from .checker import read_tokenizer

        with self._lock:
            vocabulary = self._read_vocabulary()
            if self._tokenizer is None:
                self._tokenizer = read_tokenizer(*_pack(vocabulary))
            return vocabulary

    def _check(self, source: str) -> int:
        """Let a checker compile it; return the bytes that it takes."""
        checker = self._checkers.get()
        try:
            if self._is_closed:
                raise EngineError("the engine is shutting down: no grammar is compiled.")
            if checker is not None and not checker.is_alive:
                checker.close()
                checker = None
            if checker is None:
                assert self._vocabulary is not None
                checker = Checker(self._vocabulary)
            answer = checker.ask(source)
        except BaseException as error:
            # Nobody may get an answer that is still to come.
            if checker is not None:
                checker.close()
            checker = None
            if isinstance(error, CheckerDied):
                raise ParamsError(f"structured_outputs: {error}", FIELD) from None
            raise
        finally:
            self._checkers.put(checker)
        _refuse(answer["error"])
        return int(answer["bytes"])

    def _compile(self, source: str, num_bytes: int) -> Compiled:
        from .checker import compile_grammar

        matcher = compile_grammar(self._tokenizer, source)
        _refuse(matcher.get_error())
        matcher.compute_bitmask()  # what copies share
        with self._lock:
            found = self._alive.get(source)
            if found is not None:
                return found
            compiled = self._alive[source] = Compiled(matcher, num_bytes)
            self._kept[source] = compiled
            self._num_kept_bytes += compiled.num_bytes
            while self._num_kept_bytes > CACHE_BYTES or len(self._kept) > CACHE_GRAMMARS:
                _, oldest = self._kept.popitem(last=False)
                self._num_kept_bytes -= oldest.num_bytes
            return compiled


def _refuse(fault: str) -> None:
    if fault:
        shown = " ".join(fault.split())
        if len(shown) > MAX_SHOWN:
            shown = shown[:MAX_SHOWN] + "..."
        raise ParamsError(f"structured_outputs cannot be followed: {shown}", FIELD)


def _pack(vocabulary: Vocabulary) -> tuple[dict[str, Any], bytes]:
    head = {
        "lengths": list(map(len, vocabulary.tokens)),
        "special": sorted(vocabulary.special.values()),
        "eos": vocabulary.eos_token_ids,
    }
    return head, b"".join(vocabulary.tokens)


class CheckerDied(Exception):
    """A grammar ended its checker; the text says how."""


class Checker:
    """One process of checker.py. One thread at a time asks it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from .checker import HEADER

        path = Path(__file__).with_name("checker.py")
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "RAYON_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        head, data = _pack(vocabulary)
        packed = json.dumps(head).encode()
        try:
            self._send(HEADER.pack(len(packed), len(data)) + packed + data)
        except CheckerDied:
            self.close()
            raise
        self._timeout_s = START_TIMEOUT_S

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, source: str) -> dict[str, Any]:
        """Let it check one grammar. Raises CheckerDied."""
        self._send(json.dumps({"source": source}).encode() + b"\n")
        line = self._receive(self._timeout_s)
        self._timeout_s = CHECK_TIMEOUT_S
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None

    def _receive(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise CheckerDied(f"compiling did not end within {timeout_s:g} s.")
        line: bytes = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        return line

    def _death(self) -> CheckerDied:
        from .checker import MOST_BYTES, MOST_SECONDS

        code = self._process.wait(CHECK_TIMEOUT_S)
        match -code:
            case 27:  # SIGPROF
                return CheckerDied(f"compiling takes more than {MOST_SECONDS:g} s.")
            case 6:  # SIGABRT: no memory
                return CheckerDied(f"compiling takes more than {MOST_BYTES >> 20} MiB.")
            case 11 | 7:  # SIGSEGV, SIGBUS: no stack
                return CheckerDied("the grammar is nested too deeply.")
            case _:
                return CheckerDied(f"the compiler ended with {code}.")
