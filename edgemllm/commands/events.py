"""JSON on standard output: one object at the end (`--json`), or one object per event as it happens (`--jsonl`)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

SCHEMA = "edgemllm/1"


class Events:
    """Writes what a command reports; without `--json` and `--jsonl` nothing. `t` counts seconds from here."""

    def __init__(self, command: str, json: bool = False, jsonl: bool = False) -> None:
        self.command, self.json, self.jsonl = command, json, jsonl
        self._began = time.monotonic()

    @property
    def text(self) -> bool:
        """Return whether standard output is for people."""
        return not (self.json or self.jsonl)

    def event(self, name: str, **fields: Any) -> None:
        """Write one line of `--jsonl`."""
        if self.jsonl:
            seconds = round(time.monotonic() - self._began, 3)
            write({"schema": SCHEMA, "event": name, "t": seconds, **fields})

    def close(self, code: int, result: Mapping[str, Any]) -> None:
        """Write the one object of `--json`, or the last event of `--jsonl`, which carries the exit code."""
        if self.json:
            write(headed(self.command, result))
        elif self.jsonl:
            write({"schema": SCHEMA, "event": "end", "exit_code": code})


def headed(command: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object of `--json` for the result of a command."""
    return {"schema": SCHEMA, "command": command, **result}


def write(fields: Mapping[str, Any]) -> None:
    """Write one object on a line of its own, at once: whoever reads may be waiting for it."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
