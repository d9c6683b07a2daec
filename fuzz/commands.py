"""What a machine was told to do, as lines of JSON that can be done again.

A rule under @noted adds its name, its arguments and what it drew to the machine's commands. After
a failure these are the shrunk example's, since Hypothesis runs that last. They are kept under
fuzz/corpus, one command a line behind a heading, and tests/engine/test_corpus.py does them again:
without Hypothesis, so that they mean the same with every version of it. What makes no sense any
more when it is done again (a request that has ended meanwhile) is left out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast, get_type_hints

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import INITIALIZE_RULE_MARKER, RULE_MARKER, RuleBasedStateMachine
from msgspec import Struct


class Heading(Struct, frozen=True, omit_defaults=True):
    """The first line of a file."""

    machine: str
    note: str = ""
    """What failed when it was written, or what it is kept for."""
    command: str = ""
    """Of quire.fuzz.run, that found it."""


class Command(Struct, omit_defaults=True):
    """One call of a rule."""

    do: str
    """The rule's name."""
    given: dict[str, Any] = {}
    """Its arguments, defaults of structs left out."""
    drawn: list[Any] = []
    """What it drew itself, in order."""


class StaleError(Exception):
    """A command cannot be done as it was."""


class NotedMachine(RuleBasedStateMachine):
    """A machine whose rules are noted."""

    newest: ClassVar[list[Command]] = []
    """The commands of the newest machine of its class."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[Command] = []
        self.is_inside = False
        """Whether a rule runs: what it calls is not noted."""
        type(self).newest = self.commands


class NotedData:
    """Hypothesis' data, with what is drawn written down."""

    def __init__(self, data: st.DataObject, drawn: list[Any]) -> None:
        self._data, self._drawn = data, drawn

    def draw(self, strategy: st.SearchStrategy[Any], label: str | None = None) -> Any:
        """See DataObject."""
        value = self._data.draw(strategy, label=label)
        self._drawn.append(plain(value))
        return value


class DrawnData:
    """What was drawn, in place of Hypothesis' data."""

    def __init__(self, drawn: Iterable[Any]) -> None:
        self._drawn = iter(drawn)

    def draw(self, strategy: st.SearchStrategy[Any], label: str | None = None) -> Any:
        """See DataObject. StaleError where what was drawn is not to be had any more."""
        del label
        try:
            value = next(self._drawn)
        except StopIteration:
            raise StaleError from None
        elements = getattr(strategy, "elements", None)
        if elements is None:
            return value
        for element in elements:
            if plain(element) == value:
                return element
        raise StaleError


def noted(function: Callable[..., None]) -> Callable[..., None]:
    """Note each call of a rule; to be written below @rule or @initialize."""

    @functools.wraps(function)
    def do(self: NotedMachine, *args: Any, **given: Any) -> None:
        if self.is_inside:
            function(self, *args, **given)
            return
        command = Command(function.__name__)
        command.given = {name: plain(value) for name, value in given.items() if name != "data"}
        self.commands.append(command)
        if "data" in given and not isinstance(given["data"], DrawnData):
            given["data"] = NotedData(given["data"], command.drawn)
        self.is_inside = True
        try:
            function(self, *args, **given)
        finally:
            self.is_inside = False

    return do


def plain(value: Any) -> Any:
    """Bring a value into what JSON has; structs as objects without their defaults."""
    if isinstance(value, Struct):
        fields = msgspec.structs.fields(value)
        pairs = [(one, getattr(value, one.name)) for one in fields]
        return {one.name: plain(x) for one, x in pairs if x != _default(one)}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def _default(field: Any) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def write(path: Path, heading: Heading, commands: Iterable[Command]) -> None:
    """Write a file of commands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [msgspec.json.encode(one) for one in (heading, *commands)]
    path.write_bytes(b"\n".join(lines) + b"\n")


def read(path: Path) -> tuple[Heading, list[Command]]:
    """Read a file of commands."""
    first, *rest = path.read_bytes().splitlines()
    heading = msgspec.json.decode(first, type=Heading)
    return heading, [msgspec.json.decode(line, type=Command) for line in rest]


def repeat(machine: type[NotedMachine], commands: Iterable[Command]) -> NotedMachine:
    """Do commands again on a new machine and end it; raises what the machine raises."""
    made = machine()
    for command in commands:
        rule = _rule(machine, command.do)
        if rule is None or not all(condition(made) for condition in rule.preconditions):
            continue
        hints = get_type_hints(inspect.unwrap(rule.function))
        given = {name: msgspec.convert(value, hints[name]) for name, value in command.given.items()}
        if "data" in hints:
            given["data"] = DrawnData(command.drawn)
        try:
            rule.function(made, **given)
        except StaleError:
            continue
        for invariant in made.invariants:
            invariant.function(made)
    made.teardown()
    return made


def _rule(machine: type[NotedMachine], name: str) -> Any:
    """Give Hypothesis' description of a rule; None: there is none of that name."""
    function = cast(Any, getattr(machine, name, None))
    marked = (getattr(function, marker, None) for marker in (RULE_MARKER, INITIALIZE_RULE_MARKER))
    return next(filter(None, marked), None)


def files(folder: Path) -> Iterator[Path]:
    """List the files of commands in a folder."""
    yield from sorted(folder.glob("*.jsonl"))
