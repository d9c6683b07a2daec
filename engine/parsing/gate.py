"""What is passed on of a text: space beside tags is layout, and so are special tokens. Pure."""

from __future__ import annotations

from .tags import SPACE, TagSet


class Gate:
    """One kind of an answer's text. Space at its ends, where tags are, is left out.

    Between two pieces with tags between them is the space that was before the tags, or else the one
    behind them.
    """

    __slots__ = ("_beside", "_separator", "_shown", "_skips", "_space")

    def __init__(self, separator: str = "") -> None:
        """separator: stands between pieces that have no space between them."""
        self._separator = separator
        self._space = ""
        self._shown = self._beside = self._skips = False

    def push(self, text: str) -> str:
        """Take text; return what may be shown."""
        if self._skips:
            text = text.lstrip(SPACE)
        body = text.rstrip(SPACE)
        if not body:
            self._space += text
            return ""
        said = self._space + body
        self._space = text[len(body) :]
        self._shown, self._beside, self._skips = True, False, False
        return said

    def tag(self) -> None:
        """Note that a tag stands here."""
        if not self._shown:
            self._space = ""
        elif not self._space:
            self._space = self._separator
        self._beside = True
        self._skips = bool(self._space) or not self._shown

    def finish(self) -> str:
        """Return the space at the end, where no tag is beside it."""
        return "" if self._beside else self._space


class SpecialFilter:
    """Drops special tokens from text that comes in pieces, but for those that are tags."""

    __slots__ = ("_held", "_hidden", "_special")

    def __init__(self, special: TagSet, hidden: frozenset[str]) -> None:
        self._special, self._hidden = special, hidden
        self._held = ""

    def push(self, text: str, *, final: bool = False) -> str:
        """Take text; return what can be read of it."""
        self._held += text
        said: list[str] = []
        while True:
            found = self._special.find(self._held, final=final)
            size = found.place + len(found.tag or "")
            kept = found.place if found.tag in self._hidden else size
            said.append(self._held[:kept])
            self._held = self._held[size:]
            if not found.tag:
                return "".join(said)

    def finish(self) -> str:
        """Return the rest."""
        return self.push("", final=True)
