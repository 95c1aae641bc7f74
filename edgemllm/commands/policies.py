"""`edgemllm policies`: what there is to choose from; read without importing torch."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import Any

from edgemllm import policies as known
from edgemllm.cache.settings import allowed, kinds
from edgemllm.commands.events import headed, write


def show(name: str | None, json: bool) -> None:
    """Write every policy, or one of them with its settings."""
    if json:
        shown = [name] if name else known.names()
        found: list[dict[str, Any]] = [{"name": each, "summary": _first_line(each)} for each in shown]
        if name is not None:
            keys = ("key", "kind", "default", "text")
            found[0]["settings"] = [dict(zip(keys, each, strict=True)) for each in settings_of(known.find(name))]
        write(headed("policies", {"policies": found}))
        return
    if name is None:
        for each in known.names():
            print(f"{each:16}{_first_line(each)}")
        print("\nyour own:        --policy ./mine.py:Mine   settings: edgemllm policies NAME, then --set key=value")
        return
    cls = known.find(name)
    module = inspect.getmodule(cls)
    print(textwrap.dedent((module.__doc__ if module else "") or "").strip())
    print("\nsettings (--set key=value):")
    for key, kind, default, text in settings_of(cls):
        print(f"  {key} = {default!r}  ({kind})")
        print(textwrap.fill(text, 100, initial_indent="      ", subsequent_indent="      "))


def settings_of(cls: type[Any]) -> list[tuple[str, str, Any, str]]:
    """Return name, what it may be, default and docstring of every field, the policy's own first."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        texts.update(_field_docstrings(base))
    fields = dataclasses.fields(cls)
    own = [field for field in fields if field.name in inspect.get_annotations(cls)]
    rest = [field for field in fields if field not in own]
    return [(field.name, allowed(kinds(cls)[field.name]), field.default, texts.get(field.name, "")) for field in [*own, *rest]]


def _field_docstrings(cls: type[Any]) -> dict[str, str]:
    """Return the string literals below the fields, which Python itself throws away."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


def _first_line(name: str) -> str:
    """Return what a policy's module says it is; a policy of ours is read without importing it, since that takes torch."""
    path = Path(known.__path__[0]) / f"{name.replace('-', '_')}.py"
    module = None if path.is_file() else inspect.getmodule(known.find(name))
    text = ast.get_docstring(ast.parse(path.read_text())) if module is None else module.__doc__
    return (text or "").strip().partition("\n")[0].split(": ", 1)[-1]
