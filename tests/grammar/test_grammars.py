"""Compiled grammars: shared, bounded, compiled once; and checkers that may die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from quire.engine.errors import EngineError, ParamsError
from quire.engine.grammar import grammars as module
from quire.engine.grammar.grammars import LEAST_COST, Checker, Grammars, Vocabulary
from quire.fuzz.schema_suite import accepts, byte_vocabulary

NUM_THREADS = 6
ENDLESS = "start: x x\nx: /a+/"
"""A mask of it computes what must come, which has no end."""


@pytest.fixture
def fresh() -> Iterator[Grammars]:
    """Grammars of a test's own."""
    made = Grammars(byte_vocabulary)
    yield made
    made.close()


@pytest.fixture
def checkers(monkeypatch: pytest.MonkeyPatch) -> list[Checker]:
    """All checkers that are started from here on."""
    started: list[Checker] = []
    begin = Checker.__init__

    def note(self: Checker, vocabulary: Vocabulary) -> None:
        begin(self, vocabulary)
        started.append(self)

    monkeypatch.setattr(Checker, "__init__", note)
    return started


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What checkers are asked from here on."""
    sources: list[str] = []
    ask = Checker.ask

    def note(self: Checker, source: str) -> dict[str, Any]:
        sources.append(source)
        return ask(self, source)

    monkeypatch.setattr(Checker, "ask", note)
    return sources


def source_of(number: int) -> str:
    return f'start: "{number}"'


def in_threads(call: Callable[[int], Any], count: int = NUM_THREADS) -> list[Any]:
    """Call at the same time; give results, or what was raised."""

    def caught(number: int) -> Any:
        try:
            return call(number)
        except ParamsError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(caught, range(count)))


def test_a_grammar_is_compiled_once_while_it_is_held(fresh: Grammars, asked: list[str]) -> None:
    assert fresh.find(source_of(1)) is None
    first = fresh.compile(source_of(1))
    assert fresh.compile(source_of(1)) is first and fresh.find(source_of(1)) is first
    assert fresh.resume(source_of(1)) is first and asked == [source_of(1)]
    assert fresh.compile(source_of(2)) is not first
    assert accepts(first, "1") and not accepts(first, "2")


def test_what_was_checked_once_is_resumed_without_a_checker(
    fresh: Grammars, asked: list[str], checkers: list[Checker]
) -> None:
    made = fresh.resume(source_of(1))
    assert accepts(made, "1") and fresh.compile(source_of(1)) is made
    assert not asked and not checkers
    with pytest.raises(ParamsError, match="unknown name"):
        fresh.resume("start: x")


def test_the_latest_are_kept_within_a_number(
    fresh: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was not used longest goes first; what somebody holds is found all the same."""
    monkeypatch.setattr(module, "CACHE_GRAMMARS", 3)
    held = fresh.compile(source_of(0))
    for number in (1, 2, 3):
        fresh.compile(source_of(number))
    assert fresh.find(source_of(0)) is held
    fresh.compile(source_of(1))
    fresh.compile(source_of(4))
    kept = [number for number in range(5) if fresh.find(source_of(number)) is not None]
    assert kept == [0, 1, 3, 4]
    del held
    assert fresh.find(source_of(0)) is None


def test_the_latest_are_kept_within_their_memory(
    fresh: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each counts what its checker saw, and something at least; one that is too large is not
    kept."""
    sizes = {source_of(0): 0, source_of(1): 2 * LEAST_COST, source_of(2): 9 * LEAST_COST}
    monkeypatch.setattr(
        Checker, "ask", lambda _, source: {"error": "", "bytes": sizes.get(source, 0)}
    )
    monkeypatch.setattr(module, "CACHE_BYTES", 4 * LEAST_COST)

    def kept() -> list[int]:
        return [number for number in range(6) if fresh.find(source_of(number)) is not None]

    fresh.compile(source_of(0))
    fresh.compile(source_of(1))
    assert kept() == [0, 1]
    fresh.compile(source_of(3))
    assert kept() == [0, 1, 3], "exactly as much as may be"
    fresh.compile(source_of(4))
    assert kept() == [1, 3, 4]
    fresh.compile(source_of(2))
    assert kept() == []
    fresh.compile(source_of(0))
    assert kept() == [0], "its bytes are counted no longer"


def test_a_checker_tells_the_memory_of_a_grammar(fresh: Grammars) -> None:
    words = " | ".join(f'"{index * 7919}"' for index in range(30_000))
    large = fresh.compile(f"start: WORD\nWORD: {words}")
    assert 2**20 < large.num_bytes < 2**27
    assert fresh.compile(source_of(1)).num_bytes < 2**20


@pytest.mark.parametrize("source", [source_of(1), "start: x"])
def test_the_same_grammar_at_the_same_time_is_compiled_once(
    source: str, fresh: Grammars, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All threads have looked for it in vain before the first gets an answer."""
    looked = threading.Barrier(NUM_THREADS)
    find = fresh.find

    def meet(source: str) -> Any:
        found = find(source)
        looked.wait(20)
        return found

    monkeypatch.setattr(fresh, "find", meet)
    ended = in_threads(lambda _: fresh.compile(source))
    assert asked == [source]
    assert len({id(one) for one in ended}) == 1 or source == "start: x"
    assert all(isinstance(one, ParamsError) == (source == "start: x") for one in ended)
    monkeypatch.undo()
    assert not fresh._pending


def test_closing_ends_all_checkers_and_nobody_starts_another(
    fresh: Grammars, checkers: list[Checker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two, since two different grammars were checked at the same time. What is compiled stays."""
    both, ask = threading.Barrier(2), Checker.ask

    def meet(self: Checker, source: str) -> dict[str, Any]:
        both.wait(20)
        return ask(self, source)

    monkeypatch.setattr(Checker, "ask", meet)
    made = in_threads(lambda number: fresh.compile(source_of(number)), 4)
    monkeypatch.setattr(Checker, "ask", ask)
    assert len(checkers) == 2 and all(one.is_alive for one in checkers)
    fresh.close()
    fresh.close()
    for one in checkers:
        with pytest.raises(ProcessLookupError):
            os.kill(one._process.pid, 0)
    with pytest.raises(EngineError, match="shutting down"):
        fresh.compile(source_of(9))
    assert len(checkers) == 2 and fresh.compile(source_of(3)) is made[3]
    assert accepts(fresh.resume(source_of(9)), "9")


def test_a_grammar_that_takes_too_long_is_refused_alone(
    fresh: Grammars, checkers: list[Checker]
) -> None:
    """Others are checked meanwhile, and after it."""
    ended = in_threads(lambda number: fresh.compile(source_of(number) if number else ENDLESS))
    assert isinstance(ended[0], ParamsError)
    assert "compiling takes more than 0.8 s" in str(ended[0])
    assert all(accepts(one, str(number)) for number, one in enumerate(ended) if number)
    assert fresh.compile(source_of(99)) and len(checkers) <= 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("start: " + "(" * 100_000 + '"a"' + ")" * 100_000, "too deeply nested"),
        # Its compiler's stack ends.
        (
            "start: r0\n" + "".join(f"r{n}: r{n + 1}*\n" for n in range(9000)) + 'r9000: "a"',
            "the grammar is nested too deeply",
        ),
        (
            'start: %json {"allOf": ['
            + ", ".join(f'{{"type": "string", "pattern": ".*{n}x.*"}}' for n in range(60))
            + "]}",
            "takes more than (192 MiB|0.8 s)",
        ),
        ("start: x", "unknown name"),
        ("", "Empty grammar"),
    ],
)
def test_what_cannot_be_compiled_is_refused_and_the_next_is_not(
    fresh: Grammars, source: str, words: str
) -> None:
    with pytest.raises(ParamsError, match=words) as caught:
        fresh.compile(source)
    assert caught.value.param == "structured_outputs" and len(str(caught.value)) < 400
    assert accepts(fresh.compile(source_of(1)), "1")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_checker_that_dies_while_it_is_asked_fails_that_grammar_alone(
    fresh: Grammars,
    checkers: list[Checker],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    send = Checker._send

    def send_and_kill(self: Checker, data: bytes) -> None:
        if b"victim" in data:
            os.kill(self._process.pid, number)
            self._process.wait()
        send(self, data)

    fresh.compile(source_of(0))
    monkeypatch.setattr(Checker, "_send", send_and_kill)
    with pytest.raises(ParamsError, match="nested too deeply|the compiler ended with -"):
        fresh.compile('start: "victim"')
    assert accepts(fresh.compile(source_of(1)), "1") and len(checkers) == 2


def test_a_checker_that_died_idle_fails_nobody(fresh: Grammars, checkers: list[Checker]) -> None:
    """Killed from outside, when the system had no memory left."""
    fresh.compile(source_of(0))
    checkers[0]._process.kill()
    checkers[0]._process.wait()
    assert accepts(fresh.compile(source_of(1)), "1") and len(checkers) == 2


def test_an_answer_that_nobody_waited_for_is_not_the_next_ones(
    fresh: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl+C while a grammar compiles: its answer comes, and must not be taken for another's."""
    fresh.compile(source_of(0))

    def interrupt(self: Checker, timeout_s: float) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checker, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fresh.compile(source_of(1))
    with pytest.raises(ParamsError, match="unknown name"):
        fresh.compile("start: x")
    assert accepts(fresh.compile(source_of(1)), "1")


def test_a_checker_that_does_not_answer_is_given_up(
    fresh: Grammars, checkers: list[Checker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, it uses no time of the processor; the clock on the wall ends it."""
    fresh.compile(source_of(0))
    os.kill(checkers[0]._process.pid, signal.SIGSTOP)
    checkers[0]._timeout_s = 0.1
    with pytest.raises(ParamsError, match=r"did not end within 0\.1 s"):
        fresh.compile(source_of(1))
    assert not checkers[0].is_alive
    assert accepts(fresh.compile(source_of(1)), "1")


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (None, "need a tokenizer, and there is none"),
        (lambda: byte_vocabulary()._replace(eos_token_ids=()), "need a token that ends an output"),
    ],
)
def test_a_model_without_a_vocabulary_or_an_end_follows_nothing(load: Any, words: str) -> None:
    made = Grammars(load)
    for call in (made.compile, made.resume, lambda _: made.vocabulary):
        with pytest.raises(ParamsError, match=words) as caught:
            call(source_of(1))
        assert caught.value.param == "structured_outputs"
    made.provide(byte_vocabulary)
    assert accepts(made.resume(source_of(1)), "1")


def test_the_vocabulary_is_loaded_once_and_only_when_it_is_needed(fresh: Grammars) -> None:
    loads: list[int] = []

    def load() -> Vocabulary:
        loads.append(1)
        return byte_vocabulary()

    made = Grammars(load)
    assert not loads
    in_threads(lambda number: made.resume(source_of(number)))
    assert made.vocabulary.eos_token_ids == (256,) and len(loads) == 1
