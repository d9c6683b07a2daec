"""Copies of the package with one change, to see whether what should find it does."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("reference", "kernels", "engine", "fuzz", "tests")


def plant(file: str, old: str, new: str, folder: Path) -> Path | None:
    """Copy the package into a folder and change every `old` in a file; None where there is none."""
    home = folder / "quire"
    home.mkdir()
    for name in COPIED:
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, home / name)
    path = home / file
    text = path.read_text()
    if old not in text:
        return None
    path.write_text(text.replace(old, new))
    return home
