"""Which formats a model writes, and the grammars that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal, NamedTuple, TypeVar

from ..errors import ConfigError
from .calls import Tools
from .formats import FORCED, NAMED, REASONING_FORMATS, TOOL_FORMATS
from .machine import AnswerParser, Grammar, Place
from .states import Exit, ReasoningFormat, State, ToolFormat
from .tags import SPACE, TagSet

NONE = "none"
Expects = Literal["text", "calls", "some call", "named call"]
"""What an answer may be: calls as the model writes them, or calls that a grammar forces."""
ThoughtAt = Literal["ahead", "open", "behind"]
"""Of where an answer begins. ahead: it may begin one; open: it begins inside of one."""
Format = TypeVar("Format", ToolFormat, ReasoningFormat)


def check_names(tool_call_parser: str | None, reasoning_parser: str | None) -> None:
    """Raise ConfigError for a parser that does not exist."""
    _check("tool_call_parser", tool_call_parser, TOOL_FORMATS)
    _check("reasoning_parser", reasoning_parser, REASONING_FORMATS)


def _check(option: str, name: str | None, formats: Collection[str]) -> None:
    if name is not None and name != NONE and name not in formats:
        allowed = ", ".join((*sorted(formats), NONE))
        raise ConfigError(f"{option} is {name!r:.80}: it must be one of {allowed}.")


def choose_format(
    name: str | None, formats: Mapping[str, Format], templates: str
) -> tuple[str, Format] | None:
    """Return a format by its name, or else the first whose telltales the templates have."""
    if name is not None:
        return None if name == NONE else (name, formats[name])
    for known, one in formats.items():
        if one.telltales and all(text in templates for text in one.telltales):
            return known, one
    return None


class Key(NamedTuple):
    """What a grammar depends on."""

    expects: Expects
    thinks: bool
    opened: bool
    hides: bool


class Parsers:
    """The formats of one model. Owns the grammars made of them, each made on first use."""

    def __init__(
        self,
        tools: ToolFormat | None = None,
        reasoning: ReasoningFormat | None = None,
        special_tokens: Iterable[str] = (),
    ) -> None:
        """special_tokens: their texts."""
        self.tools, self.reasoning = tools, reasoning
        self._special = frozenset(filter(None, special_tokens))
        self._grammars: dict[Key, Grammar] = {}

    def reads(self, expects: Expects, *, thinks: bool = True) -> bool:
        """Tell whether there is anything to take apart in such answers."""
        calls = expects == "calls" and self.tools is not None
        return calls or expects in ("some call", "named call") or (thinks and bool(self.reasoning))

    def needs_special(self, expects: Expects, *, thinks: bool = True) -> bool:
        """Tell whether tags of such answers are special tokens, so that text must have these."""
        grammar = self._grammar(Key(expects, thinks, False, False))
        tags = {tag for place in grammar.places.values() for tag in place.exits}
        return not tags.isdisjoint(self._special)

    def start(
        self,
        expects: Expects,
        tools: Tools | None = None,
        *,
        named: str | None = None,
        thinks: bool = True,
        opened: bool = False,
        hides: bool = False,
    ) -> AnswerParser:
        """Begin to read an answer.

        thinks: it may have thoughts; opened: it begins inside of one; hides: special tokens that
        are no tags are dropped from the text.
        """
        grammar = self._grammar(Key(expects, thinks, opened, hides))
        return AnswerParser(grammar, tools, named=named)

    def thought_at(self, prompt: str, message: str | None = None) -> ThoughtAt:
        """Tell where the thought of an answer to a prompt is.

        message: the last one, where the answer continues it.
        """
        form = self.reasoning
        if form is None or form.messages is not None:
            return "behind"
        if message:
            started, ended = message.rfind(form.start), message.rfind(form.end)
            opened = started > ended or (form.opened and ended < 0)
            return "open" if opened else "behind"
        tail = prompt.rstrip(SPACE)
        if tail.endswith(form.end):
            return "behind"
        return "open" if form.opened or tail.endswith(form.start) else "ahead"

    def _grammar(self, key: Key) -> Grammar:
        if key not in self._grammars:
            self._grammars[key] = self._make(key)
        return self._grammars[key]

    def _make(self, key: Key) -> Grammar:
        formats: Mapping[Expects, ToolFormat | None] = {
            "calls": self.tools,
            "some call": FORCED,
            "named call": NAMED,
        }
        reasoning = self.reasoning if key.thinks else None
        tools = formats.get(key.expects)
        messages = tools is not None and "header" in tools.states
        if reasoning is not None and reasoning.messages is not None:
            messages = True
            if tools is None:
                tools = ToolFormat(states=reasoning.messages)
        if messages and tools is not None and "header" in tools.states:
            states, start = dict(tools.states), "start"
        else:
            tools = tools or ToolFormat(states={})
            plain = reasoning if reasoning is None or reasoning.messages is None else None
            states, start = compose(tools, plain, opened=key.opened)
        openers = frozenset(one.tag for one in (*(tools.first), *(tools.content)))
        if not key.hides:
            return Grammar(ready(states), start, openers=openers)
        places = ready(states)
        tags = {tag for place in places.values() for tag in place.exits}
        return Grammar(places, start, TagSet(self._special), self._special - tags, openers)


def compose(
    tools: ToolFormat, reasoning: ReasoningFormat | None, *, opened: bool
) -> tuple[dict[str, State], str]:
    """Put the states of calls and of thoughts together; return them and the first one's name."""
    states = {"content": State(role="content", exits=tools.content), **tools.states}
    heads = (*tools.first, *tools.content)
    behind = "content"
    if "first" in states:
        behind = "first"
    elif heads:
        behind = "first"
        states["first"] = State(role="layout", exits=heads)
    if reasoning is None:
        return states, behind
    also = tuple(one for one in reasoning.also if one.to in states)
    begin = (Exit(reasoning.start, "thought"), *heads)
    states["begin"] = State(role="layout", exits=begin, otherwise=behind)
    # The model may write the start again that the prompt ends with.
    states["opened"] = State(
        role="layout", exits=(Exit(reasoning.start, "thought"),), otherwise="thought"
    )
    states["thought"] = State(role="reasoning", exits=(Exit(reasoning.end, behind), *also))
    return states, "opened" if opened else "begin"


def ready(states: Mapping[str, State]) -> dict[str, Place]:
    """Make the states' tags ready."""
    return {
        name: Place(state, TagSet(one.tag for one in state.exits), {e.tag: e for e in state.exits})
        for name, state in states.items()
    }


def choose_parsers(
    tool_call_parser: str | None,
    reasoning_parser: str | None,
    *,
    templates: Iterable[str],
    special_tokens: Iterable[str],
    tell: Callable[[str, str], None],
) -> Parsers:
    """Return the parsers of a model: by vLLM's names, or else as its chat templates show.

    tell(what, name) is called for each. ConfigError for a name that does not exist.
    """
    check_names(tool_call_parser, reasoning_parser)
    text = "\n".join(templates)
    tools = choose_format(tool_call_parser, TOOL_FORMATS, text)
    reasoning = choose_format(reasoning_parser, REASONING_FORMATS, text)
    for what, found in (("tool calls", tools), ("reasoning", reasoning)):
        if found is not None:
            tell(what, found[0])
    return Parsers(tools and tools[1], reasoning and reasoning[1], special_tokens)
