"""Inputs of batches: whatever bytes they are, each line is right or is told with its number."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from quire.api.batch.lines import MAX_FAULTS, BadLine, read_line, scan, split
from quire.api.limits import Limits

URL = "/v1/completions"
URLS = (URL,)
MAX_LINE = 1024
LIMITS = Limits(max_body_bytes=MAX_LINE, max_batch_lines=12)
GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": URL, "body": {"prompt": "x"}}


def make_line(custom_id: Any = "a", **others: Any) -> bytes:
    return json.dumps({**GOOD, "custom_id": custom_id, **others}).encode()


def made(data: bytes) -> Path:
    """A file that is gone with the system's temporary folder: hypothesis has no tmp_path."""
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(data)
    return Path(file.name)


hostile = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b" \t", b"{}", b"[" * 900, b"null", b"\xff\xfe", b"\xef\xbb\xbf{}"]),
    st.sampled_from([b"a" * n for n in (MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE)]),
    st.text(max_size=3).map(make_line),
    st.fixed_dictionaries(
        {},
        optional={
            "custom_id": st.sampled_from(["a", "b", "", "x" * 513, 5, None]),
            "method": st.sampled_from(["POST", "GET", None]),
            "url": st.sampled_from([URL, "/v1/chat/completions", 7]),
            "body": st.sampled_from([{}, {"prompt": 1}, [], "{}", None]),
            "more": st.just(1),
        },
    ).map(lambda fields: json.dumps(fields).encode()),
)


@given(st.lists(hostile, max_size=16), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
@example([make_line()], b"\n", False)
def test_every_line_is_right_or_told(lines: list[bytes], end: bytes, ends: bool) -> None:
    data = end.join(lines) + (end if ends else b"")
    path = made(data)
    try:
        found = scan(path, URLS, LIMITS)
        taken = list(split(path, MAX_LINE))
    finally:
        path.unlink()
    # Lines as they are without any bound on memory.
    whole = [(number, line.rstrip(b"\r")) for number, line in enumerate(data.split(b"\n"), 1)]
    whole = [(number, line) for number, line in whole if line.strip()]
    assert [number for number, _ in taken] == [number for number, _ in whole]
    for (_, read), (_, line) in zip(taken, whole, strict=True):
        assert read == line or (len(line) > MAX_LINE and len(read) > MAX_LINE)
    if not whole:
        assert [fault.code for fault in found.faults] == ["empty_file"]
        return
    seen: set[str] = set()
    wrong: list[int] = []
    for count, (number, line) in enumerate(whole, 1):
        try:
            name = read_line(line, URLS).custom_id
            bad = len(line) > MAX_LINE or name in seen or count > 12
            if not bad:
                seen.add(name)
        except BadLine:
            bad = True
        if bad:
            wrong.append(number)
        if count > 12:
            break
    assert [fault.line for fault in found.faults] == wrong
    assert all(fault.message and fault.code for fault in found.faults)
    if not wrong:
        assert found.num_lines == len(seen)


@pytest.mark.parametrize(
    ("line", "code", "param", "words"),
    [
        (b"{", "invalid_json_line", None, "not valid JSON"),
        (b'"a"', "invalid_json_line", None, "must be a JSON object"),
        (make_line(extra=1), "unknown_field", "extra", "not a known field"),
        (b"{}", "missing_field", "custom_id", "must be given"),
        (make_line(5), "invalid_type", "custom_id", "expected `str`"),
        (make_line(""), "invalid_custom_id", "custom_id", "1 to 512"),
        (make_line("x" * 513), "invalid_custom_id", "custom_id", "513 characters"),
        (make_line(method="GET"), "invalid_method", "method", "must be POST"),
        (make_line(url="/v1/files"), "invalid_url", "url", f"must be {URL}"),
        (make_line(body=[1]), "invalid_body", "body", "a JSON object"),
    ],
)
def test_what_is_wrong_is_named(line: bytes, code: str, param: str | None, words: str) -> None:
    with pytest.raises(BadLine, match=".") as caught:
        read_line(line, URLS)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert words in str(caught.value)


def test_ids_that_come_twice_tell_where_the_first_was(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"\n".join([make_line("a"), b"", make_line("b"), make_line("a")]))
    (fault,) = scan(path, URLS, LIMITS).faults
    assert (fault.code, fault.line) == ("duplicate_custom_id", 4)
    assert "line 1 has it" in fault.message


def test_a_file_of_nonsense_tells_its_first_faults_only(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"x\n" * 5000)
    found = scan(path, URLS, Limits())
    assert [fault.line for fault in found.faults] == list(range(1, MAX_FAULTS + 1))
