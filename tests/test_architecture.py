"""Imports run downwards, so that each part can be read without those above it."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

TOP = Path(__file__).parents[1]
PACKAGE = TOP / "edgemllm"
LEVELS = (
    {"choices", "errors", "meter", "units", "__init__"},
    {"device"},
    {"media", "cache", "policies", "models"},
    {"planning"},
    {"session"},
    {"session_file"},
    {"launch", "screen"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, names in enumerate(LEVELS) for name in names}


def imports(path: Path) -> set[str]:
    """Parts of the package that a file imports at run time."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only and (node.module or "").startswith("edgemllm"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names if alias.name in RANK}
    return found


def test_imports_run_downwards() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        wrong += [f"{path.name} -> {other}" for other in imports(path) if RANK[other] > RANK[part]]
    assert not wrong


ANCESTORS = {"pyramidkv": {"snapkv"}, "meda": {"look_m"}}
"""Papers that build on another paper's method say so by importing it."""


def test_policies_and_families_do_not_import_their_siblings() -> None:
    for folder in ("policies", "models/families"):
        for path in (PACKAGE / folder).glob("*.py"):
            if path.name not in ("__init__.py",):
                text = path.read_text()
                others = {other.stem for other in path.parent.glob("*.py")} - {"__init__", "base", path.stem}
                others -= ANCESTORS.get(path.stem, set())
                assert not [other for other in others if f"edgemllm.{folder.replace('/', '.')}.{other} " in text], path


PAGES = [TOP / "README.md", *TOP.glob("docs/**/*.md"), *TOP.glob("edgemllm/assets/**/*.md"), *TOP.glob("lab/**/*.*")]


def test_scripts_that_are_named_as_commands_can_be_run() -> None:
    pages = [page.read_text() for page in PAGES if page.suffix in (".md", ".py")]
    named = {name for page in pages for name in re.findall(r"^(?: {4})?(scripts/[\w./]+)", page, re.MULTILINE)}
    assert "scripts/test" in named
    for name in named:
        assert os.access(TOP / name, os.X_OK), name
        assert (TOP / name).read_text().startswith("#!"), name


def test_lab_modules_that_are_named_as_commands_exist() -> None:
    pages = [page.read_text() for page in PAGES if page.suffix in (".md", ".py")]
    named = {name for page in pages for name in re.findall(r"python3? -m (lab[\w.]+\w)", page)}
    assert "lab.measure.ratios" in named
    for name in named:
        assert 'if __name__ == "__main__":' in (TOP / f"{name.replace('.', '/')}.py").read_text(), name
