"""The files of the page at /: which there are, and what is told of them to a browser.

The table is all that can be asked for: no path is made of what a client sends.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from importlib import resources

from aiohttp import web

INDEX = "index.html"
SCRIPT, STYLE = "text/javascript", "text/css"
TYPES: dict[str, str] = {
    INDEX: "text/html",
    "icon.svg": "image/svg+xml",
    "base.css": STYLE,
    "chat.css": STYLE,
    "engine.css": STYLE,
    "theme.js": SCRIPT,
    "main.js": SCRIPT,
    "dom.js": SCRIPT,
    "client.js": SCRIPT,
    "events.js": SCRIPT,
    "form.js": SCRIPT,
    "examples.js": SCRIPT,
    "chat.js": SCRIPT,
    "answer.js": SCRIPT,
    "tokens.js": SCRIPT,
    "engine.js": SCRIPT,
    "history.js": SCRIPT,
    "blocks.js": SCRIPT,
    "charts.js": SCRIPT,
    "vendor/uPlot.esm.js": SCRIPT,
    "vendor/uPlot.min.css": STYLE,
}
FOLDER = "/web/"
FILE_PATHS = tuple(FOLDER + name for name in TYPES if name != INDEX)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing of elsewhere, nothing inline: what a model says cannot become a script."""


class WebFile:
    """One file, read when somebody first asks for it."""

    def __init__(self, name: str) -> None:
        """KeyError where there is none."""
        self._type, self._name = TYPES[name], name

    @cached_property
    def body(self) -> bytes:
        """Its bytes."""
        return resources.files(__package__).joinpath("web", *self._name.split("/")).read_bytes()

    @cached_property
    def tag(self) -> str:
        """What changes with them."""
        return hashlib.sha256(self.body).hexdigest()[:32]

    @cached_property
    def headers(self) -> dict[str, str]:
        """What is told with it. A browser keeps it and asks whether it has changed."""
        return {
            "Content-Type": f"{self._type}; charset=utf-8",
            "Content-Security-Policy": POLICY,
            "Cache-Control": "no-cache",
            "ETag": f'"{self.tag}"',
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }


WEB_FILES: web.AppKey[dict[str, WebFile]] = web.AppKey("web_files", dict[str, WebFile])


def make_web_files() -> dict[str, WebFile]:
    """All files by their paths; the page itself is /."""
    return {"/" if name == INDEX else FOLDER + name: WebFile(name) for name in TYPES}
