"""Every command in README and docs is run by a test, or listed here with the reason why not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted(TOP.glob("docs/**/*.md"))]
START = re.compile(r"(?:[A-Z_]+=\S* )?(?:\$ )?((?:edgemllm|scripts/\w+|python -m lab[\w.]+|pip install|python) .*|scripts/\w+)$")


def documented() -> list[str]:
    """Commands in fenced and indented blocks, with continued lines joined and comments dropped."""
    found = []
    for page in PAGES:
        fenced, kept = False, []
        for line in page.read_text().splitlines():
            if line.startswith("```"):
                fenced = not fenced
            elif fenced or line.startswith("    "):
                kept.append(line.strip())
        for line in "\n".join(kept).replace("\\\n", "").splitlines():
            command = START.match(line.split("  #")[0].strip())
            if command:
                found.append(re.sub(r" +", " ", command[1].strip()))
    return sorted(set(found))

if __name__=="__main__":
    print("\n".join(documented()))
