"""What the import contracts cannot say: sizes, owners of libraries, packaging, start-up cost."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("reference", "kernels", "engine", "api", "fuzz", "benchmarks", "demo")
SOURCES = [ROOT / "__init__.py"]
for folder in (*FOLDERS, "tests"):
    SOURCES.extend(sorted((ROOT / folder).rglob("*.py")))

OWNERS = {
    "numba": ("kernels/cpu/", "tests/", "benchmarks/"),
    "llvmlite": ("kernels/cpu/",),
    "triton": ("kernels/gpu/", "tests/", "fuzz/interpreter.py", "benchmarks/"),
    "asyncio": ("engine/async_engine.py", "engine/waking.py", "api/", "tests/", "benchmarks/"),
    "aiohttp": ("api/", "tests/", "benchmarks/"),
    "opentelemetry": ("api/tracing.py", "tests/"),
    "pickle": (),
}


def imported_roots(tree: ast.AST) -> set[str]:
    """Top-level names of all absolute imports, wherever they stand in the file."""
    roots: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            roots.add(node.module.split(".")[0])
    return roots


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    name = path.relative_to(ROOT).as_posix()
    assert len(text.splitlines()) <= 500, "a file has at most 500 lines"
    if text.strip():
        assert ast.get_docstring(tree), "a module opens with a docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 70, f"{node.name} has {length} lines, at most 70"
    for library in sorted(imported_roots(tree) & set(OWNERS)):
        assert name.startswith(OWNERS[library] or ("nowhere",)), f"{library} is not for {name}"
    assert "weights_only=False" not in text or name == "tests/test_architecture.py"


def test_every_package_is_listed() -> None:
    """A folder with an __init__.py that pyproject.toml forgets would be missing from the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {"quire"} | {
        ".".join(("quire", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == found


def modules_after(code: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter that ran code."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import quire",
        "from quire import SamplingParams, EngineConfig",
        "import quire.api.cli",
    ],
)
def test_import_pays_for_nothing_heavy(code: str) -> None:
    """`import quire` and `quire --help` stay fast because they load none of these."""
    heavy = {"torch", "numba", "transformers", "aiohttp", "triton", "tokenizers", "jinja2"}
    assert not modules_after(code) & heavy


def test_serving_never_imports_transformers() -> None:
    """Starting must not pay seconds for it; only sentencepiece checkpoints need it, lazily."""
    names = modules_after("import quire.engine.llm, quire.engine.async_engine, quire.api.app")
    assert not names & {"transformers", "triton", "sentencepiece", "opentelemetry"}


def test_the_symlink_for_type_checkers_points_home() -> None:
    assert (ROOT / ".typing" / "quire").resolve() == ROOT
