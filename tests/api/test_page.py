"""The files of the page: all that are there and no others, for everybody, and nothing foreign."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import aiohttp
import pytest
from quire.api.auth import OPEN_PATHS
from quire.api.web_files import FILE_PATHS, POLICY, TYPES, make_web_files
from yarl import URL

WEB = resources.files("quire.api").joinpath("web")
OWN = [name for name in TYPES if not name.startswith("vendor/")]
MAX_LINES = 500


def read(name: str) -> str:
    return WEB.joinpath(*name.split("/")).read_text(encoding="utf-8")


def names_of(folder: Any, prefix: str = "") -> set[str]:
    found = set()
    for one in folder.iterdir():
        found |= names_of(one, f"{prefix}{one.name}/") if one.is_dir() else {f"{prefix}{one.name}"}
    return found


def test_the_table_is_the_folder() -> None:
    """What nobody serves is the licence, and the page of the API, which is made elsewhere."""
    assert names_of(WEB) - set(TYPES) == {"docs.html", "vendor/uPlot.LICENSE"}
    assert set(TYPES) <= names_of(WEB)
    assert set(FILE_PATHS) < OPEN_PATHS


@pytest.mark.parametrize("name", OWN)
def test_files_are_small_and_fetch_nothing_from_elsewhere(name: str) -> None:
    text = read(name)
    assert len(text.splitlines()) <= MAX_LINES
    assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text


def test_what_files_name_is_there() -> None:
    """Modules, styles and icons, wherever they are asked for."""
    paths = set(make_web_files())
    for name in OWN:
        folder = PurePosixPath("/web") / name
        for found in re.findall(r'from "(\./[^"]+)"', read(name)):
            assert str(folder.parent / found) in paths, (name, found)
    for found in re.findall(r'(?:src|href)="(web/[^"]+)"', read("index.html")):
        assert f"/{found}" in paths, found


def test_ids_that_scripts_ask_for_are_in_the_page() -> None:
    ids = re.findall(r'\bid="([^"]+)"', read("index.html"))
    assert len(set(ids)) == len(ids)
    asked = {
        one
        for name in OWN
        if name.endswith(".js")
        for one in re.findall(r'(?:byId|bars|lines|number)\("([^"]+)"', read(name))
    }
    assert asked <= set(ids), asked - set(ids)


def test_the_vendored_library_is_the_version_that_is_said() -> None:
    (version,) = re.findall(
        r"uPlot \(v([\d.]+)\)",
        read("vendor/uPlot.esm.js").replace("https://github.com/leeoniya/uPlot", "uPlot"),
    )
    assert version == "1.6.32"
    assert "Permission is hereby granted" in read("vendor/uPlot.LICENSE")


@pytest.mark.parametrize("path", ["/", *FILE_PATHS])
async def test_everybody_gets_the_files(serve_fake: Any, path: str) -> None:
    """With keys too: they hold no secret, and a browser has no key to send for them."""
    fake = await serve_fake(api_keys=["one"])
    async with fake.session.get(fake.url + path) as response:
        assert response.status == 200
        body, headers = await response.read(), response.headers
    name = path.removeprefix("/web/") if path != "/" else "index.html"
    assert body.decode() == read(name)
    assert headers["Content-Type"] == f"{TYPES[name]}; charset=utf-8"
    assert headers["Content-Security-Policy"] == POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    async with fake.session.get(
        fake.url + path, headers={"If-None-Match": headers["ETag"]}
    ) as again:
        assert again.status == 304
        assert await again.read() == b""
    async with fake.session.get(fake.url + path, headers={"If-None-Match": '"other"'}) as other:
        assert other.status == 200


def test_the_policy_lets_nothing_foreign_or_inline_run() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules.values()) <= {"'none'", "'self'"}
    assert "<style" not in read("index.html")
    assert " style=" not in read("index.html")
    assert not re.findall(r"<script(?![^>]*\bsrc=)", read("index.html"))
    assert not re.findall(r"\son\w+=", read("index.html"))


@pytest.mark.parametrize(
    "path",
    [
        "/web/../auth.py",
        "/web/..%2fauth.py",
        "/web/%2e%2e/auth.py",
        "/web/vendor/../../auth.py",
        "/web//etc/passwd",
        "/web/docs.html",
        "/web/index.html",
        "/web/vendor",
        "/web/main.js%00.css",
        "/web/main.js/",
    ],
)
async def test_there_is_no_way_to_other_files(serve_fake: Any, path: str) -> None:
    fake = await serve_fake()
    url = URL(fake.url + path, encoded=True)
    async with fake.session.get(url) as response:
        assert response.status == 404, await response.text()
    # aiohttp's client may tidy a path before it is sent: this one does not.
    host, port = fake.url.removeprefix("http://").split(":")
    answer = await raw(host, int(port), path)
    assert answer.startswith(b"HTTP/1.1 404"), answer[:200]


async def raw(host: str, port: int, path: str) -> bytes:
    """Ask for a path as it is."""
    import asyncio

    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def test_the_page_takes_no_other_method(serve_fake: Any) -> None:
    fake = await serve_fake()
    session: aiohttp.ClientSession = fake.session
    for path in ("/", "/web/main.js"):
        async with session.post(fake.url + path) as response:
            assert response.status == 405
        async with session.head(fake.url + path) as response:
            assert response.status == 200


def luminance(colour: str) -> float:
    """WCAG 2, relative luminance of #rrggbb."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_in_both_themes(theme: int) -> None:
    """WCAG 2 asks for 4.5 to 1 of text, and 3 to 1 of what is drawn."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", read("base.css"))
    colours = {name: pair[theme] for name, *pair in found}
    for ink in ("ink", "soft", "accent", "bad", "good"):
        for paper in ("paper", "surface", "raised"):
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    assert contrast(colours["bad"], colours["bad-tint"]) >= 4.5
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    for state in ("owned", "shared", "prefill", "decode"):
        assert contrast(colours[state], colours["surface"]) >= 3, state
