"""Imports run downwards, so that each part can be read without those above it."""

from __future__ import annotations

import ast
import graphlib
import os
import re
from pathlib import Path

TOP = Path(__file__).parents[1]
PACKAGE = TOP / "edgemllm"
LEVELS = (
    "choices", "errors", "lazy", "meter", "units", "version", "media", "device", "loops", "cache", "policies", "models",
    "planning", "session", "archive", "session_file", "launch", "limit", "screen", "api", "batch", "commands", "harness",
    "cli", "__main__", "__init__",
)  # fmt: skip
"""From the bottom up: each imports only what stands before it."""
FILES = {
    ".".join(("edgemllm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
HEART = (
    "cache/chunk", "cache/slots", "cache/rope", "cache/layer", "cache/policy", "cache/managed_layer", "cache/kv_cache",
    "cache/attention", "policies/streaming_llm", "policies/inf_mllm",
)  # fmt: skip


def statements(module: str) -> list[tuple[ast.stmt, bool]]:
    """Every import of our own package in a module, and whether it stands inside a function."""
    tree = ast.parse(FILES[module].read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(inner) for function in functions for inner in ast.walk(function)}
    own = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edgemllm")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "edgemllm" for alias in node.names))
    ]
    return [(node, id(node) in inside) for node in own]


def imports(module: str) -> set[str]:
    """The modules that a module imports: at run time, for type checkers, and inside functions."""
    named: set[str] = set()
    for node, _ in statements(module):
        if isinstance(node, ast.ImportFrom):
            each = ((f"{node.module}.{alias.name}", node.module or "") for alias in node.names)
            named |= {full if full in FILES else parent for full, parent in each}
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    return {name for name in named if name in FILES and name != module}


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_imports_run_downwards() -> None:
    rank = {name: number for number, name in enumerate(LEVELS)}
    wrong = [f"{module} -> {other}" for module in FILES for other in imports(module) if rank[part(other)] > rank[part(module)]]
    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    graphlib.TopologicalSorter({module: imports(module) for module in FILES}).prepare()  # raises CycleError


def test_late_imports_are_the_exception() -> None:
    """Only what must start without the heavy libraries, or without an extra, imports our own package inside functions."""
    late = [(module, ast.unparse(node)) for module in FILES for node, inside in statements(module) if inside]
    assert len(late) <= 33, late


def test_functions_are_short() -> None:
    for path in [*PACKAGE.rglob("*.py"), *TOP.glob("lab/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"


def test_the_heart_is_read_in_an_evening() -> None:
    """The reading order of CONTRIBUTING, added up."""
    assert sum(len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in HEART) <= 1230
    order = re.sub(r"\s+", " ", (TOP / "CONTRIBUTING.md").read_text())
    places = [order.find(f"`{name}.py`") for name in HEART]
    assert min(places) >= 0, "CONTRIBUTING leaves one out"
    assert places == sorted(places)


ANCESTORS = {
    "pyramidkv": {"snapkv"}, "meda": {"look_m"},
    "cosmos3_edge": {"qwen_vl"}, "lfm": {"qwen_vl", "text"}, "minicpmv": {"qwen3_5"}, "qwen3_5": {"qwen_vl"},
    "gemma4": {"gemma3"},
    "smollm3": {"text"},
}  # fmt: skip
"""Papers and models that build on another's method say so by importing it."""


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
