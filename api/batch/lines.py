"""The lines of a batch's input: read one at a time, checked before any is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..decode import shorten, show
from ..limits import Limits
from .schema import Fault, Line

MAX_CUSTOM_ID_CHARS = 512
MAX_FAULTS = 100
"""That are told."""


class BadLine(Exception):
    """A line that cannot be asked."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class Scan(NamedTuple):
    """What a whole input holds."""

    num_lines: int
    """Those that ask something."""
    faults: list[Fault]
    """The first ones; none: every line may be asked."""


def split(path: Path, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank with their numbers, from 1, without their ends.

    Of a line that is too long only a beginning, which is too long too.
    """
    with path.open("rb") as file:
        number = 0
        while data := file.readline(max_line_bytes + 2):
            number += 1
            end = data
            while not end.endswith(b"\n") and (end := file.readline(max_line_bytes)):
                pass
            data = data.rstrip(b"\r\n")
            if data.strip():
                yield number, data


def read_line(data: bytes, urls: Sequence[str]) -> Line:
    """Decode a line and check all but what its body says. BadLine where it cannot be asked."""
    try:
        line = msgspec.json.decode(data, type=Line)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine("invalid_json_line", f"The line is not valid JSON: {error}.") from error
    length = len(line.custom_id)
    if not 0 < length <= MAX_CUSTOM_ID_CHARS:
        raise BadLine(
            "invalid_custom_id",
            f"custom_id has {length} characters: 1 to {MAX_CUSTOM_ID_CHARS} are allowed.",
            "custom_id",
        )
    if line.method != "POST":
        message = f"method is {show(line.method)}: it must be POST."
        raise BadLine("invalid_method", message, "method")
    if line.url not in urls:
        message = f"url is {show(line.url)}: it must be {' or '.join(urls)}."
        raise BadLine("invalid_url", message, "url")
    if not bytes(line.body).startswith(b"{"):
        raise BadLine("invalid_body", "body must be a JSON object.", "body")
    return line


def scan(path: Path, urls: Sequence[str], limits: Limits) -> Scan:
    """Read a whole input. Holds the ids of its lines, and one line at a time."""
    faults: list[Fault] = []
    seen: dict[str, int] = {}
    num_lines = 0
    for number, data in split(path, limits.max_body_bytes):
        num_lines += 1
        try:
            if num_lines > limits.max_batch_lines:
                most = limits.max_batch_lines
                raise BadLine("too_many_lines", f"At most {most} lines may ask something.")
            if len(data) > limits.max_body_bytes:
                most = limits.max_body_bytes
                raise BadLine("line_too_long", f"At most {most} bytes of a line are allowed.")
            name = read_line(data, urls).custom_id
            if name in seen:
                message = f"custom_id is {show(name)}: line {seen[name]} has it already."
                raise BadLine("duplicate_custom_id", message, "custom_id")
            seen[name] = number
        except BadLine as error:
            faults.append(
                Fault(code=error.code, message=str(error), param=error.param, line=number)
            )
            if len(faults) == MAX_FAULTS or error.code == "too_many_lines":
                break
    if not num_lines:
        faults.append(Fault(code="empty_file", message="The file has no line that asks anything."))
    return Scan(num_lines, faults)


def _misfit(message: str) -> BadLine:
    """Say what is wrong with a line in words of the line and not of the decoder."""
    found = re.search(r"(missing required|unknown) field `(.*)`", message, re.DOTALL)
    if found is not None:
        name, unknown = shorten(found[2]), found[1] == "unknown"
        wrong = "is not a known field" if unknown else "is missing: it must be given"
        return BadLine("unknown_field" if unknown else "missing_field", f"{name} {wrong}.", name)
    expected, _, place = message.partition(" - at `$.")
    if not place:
        return BadLine("invalid_json_line", f"The line must be a JSON object: {expected}.")
    name = place.rstrip("`")
    return BadLine("invalid_type", f"{name}: {expected[:1].lower()}{expected[1:]}.", name)
