"""What lies beside a tokenizer: tokenizer_config.json, special tokens and chat templates.

Reads files and knows their formats; encodes nothing. A broken file is a CheckpointError.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import CheckpointError, ConfigError

CONFIG_FILE = "tokenizer_config.json"


class AddedText(msgspec.Struct, frozen=True):
    """A token that tokenizer_config.json adds to the vocabulary."""

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class TokenizerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of tokenizer_config.json (and the template files) that Quire honours."""

    special_tokens: dict[str, str] = {}
    """bos_token, eos_token, ... -> its text; a chat template sees them under these names."""
    more_special_tokens: tuple[str, ...] = ()
    added_tokens: dict[int, AddedText] = {}
    add_bos_token: bool | None = None
    """Counts where the tokenizer's own post-processor adds nothing."""
    add_eos_token: bool | None = None
    chat_templates: dict[str, str] = {}
    tokenizer_class: str = ""
    pattern: str | None = None
    """Of a tiktoken vocabulary."""

    @property
    def chat_template(self) -> str | None:
        """The template for chats without tools, or the only one."""
        if len(self.chat_templates) == 1:
            return next(iter(self.chat_templates.values()))
        return self.chat_templates.get("default")


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read the folder's tokenizer_config.json and chat templates; absent files are empty."""
    path = folder / CONFIG_FILE
    config = read_json(path) if path.is_file() else {}
    more = config.get("additional_special_tokens") or config.get("extra_special_tokens") or ()
    return TokenizerConfig(
        special_tokens={
            name: text
            for name, value in config.items()
            if name.endswith("_token") and (text := _text(value)) is not None
        },
        more_special_tokens=tuple(
            text
            for value in (more.values() if isinstance(more, dict) else more)
            if (text := _text(value)) is not None
        ),
        added_tokens=_added_tokens(config.get("added_tokens_decoder") or {}, path),
        add_bos_token=_flag(config, "add_bos_token"),
        add_eos_token=_flag(config, "add_eos_token"),
        chat_templates=_chat_templates(folder, config),
        tokenizer_class=str(config.get("tokenizer_class") or ""),
        pattern=_text(config.get("pat_str")),
    )


def read_text(path: Path) -> str:
    """Read a UTF-8 file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    try:
        value = msgspec.json.decode(read_text(path))
    except (msgspec.DecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}: it must be a JSON object.")
    return value


def _text(value: Any) -> str | None:
    """Return the text of a token, which may be written out as an object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _flag(config: Mapping[str, Any], name: str) -> bool | None:
    value = config.get(name)
    return value if isinstance(value, bool) else None


def _added_tokens(entries: Any, path: Path) -> dict[int, AddedText]:
    try:
        return msgspec.convert(entries, dict[int, AddedText], strict=False)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: added_tokens_decoder: {error}") from error


def read_template(given: str) -> str:
    """Return the text of a template that is given by its file's name, or itself. ConfigError."""
    if "{" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"chat_template is {given!r}: it must be a file that can be read, or a template, which "
            f"has braces: {error}."
        ) from error


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Collect the templates by name; files of their own go before tokenizer_config.json."""
    templates: dict[str, str] = {}
    inline = config.get("chat_template")
    if isinstance(inline, str):
        templates["default"] = inline
    elif isinstance(inline, list):
        for entry in inline:
            name, template = _named_template(entry, folder / CONFIG_FILE)
            templates[name] = template
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = read_text(path)
    if (path := folder / "chat_template.json").is_file():
        value = read_json(path).get("chat_template")
        if not isinstance(value, str):
            raise CheckpointError(f"{path} has no text under chat_template.")
        templates["default"] = value
    if (path := folder / "chat_template.jinja").is_file():
        templates["default"] = read_text(path)
    return templates


def _named_template(entry: Any, path: Path) -> tuple[str, str]:
    match entry:
        case {"name": str(name), "template": str(template)}:
            return name, template
        case _:
            raise CheckpointError(f"{path}: chat_template: {entry!r:.80} has no name and template.")
