"""Configuration files: option values that neither the command line nor the environment gives."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from edgemllm.errors import UsageError, nearest, opening


def config_files() -> list[Path]:
    """Return `./edgemllm.toml` and the user's, where they exist; the first of them wins."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [path for path in (Path("edgemllm.toml"), home / "edgemllm" / "config.toml") if path.is_file()]


def defaults_from_files(commands: dict[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Return the option values of the configuration files for every command, as click's `default_map`.

    `commands` maps a command to its option names. Top-level keys count for every command that has the option, a table
    `[chat]` for that one. Raises UsageError for an unknown key.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in commands}
    known = {option for options in commands.values() for option in options}
    for path in reversed(config_files()):
        for key, value in _read(path).items():
            if isinstance(value, dict) and key in commands:
                for inner, setting in value.items():
                    _known(inner, commands[key], path)
                    found[key][inner.replace("-", "_")] = setting
                continue
            _known(key, known, path)
            for name, options in commands.items():
                if key.replace("-", "_") in options:
                    found[name][key.replace("-", "_")] = value
    return found


def written(command: str, name: str) -> tuple[Path | None, Any]:
    """Return the configuration file that an option's value comes from, and that value; (None, None) where there is none."""
    for path in config_files():
        table = _read(path)
        own = table.get(command)
        for values in (own if isinstance(own, dict) else {}, table):
            for key, value in values.items():
                if key.replace("-", "_") == name:
                    return path, value
    return None, None


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with opening(path, UsageError):
            return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def _known(key: str, known: set[str], path: Path) -> None:
    if key.replace("-", "_") not in known:
        names = [name.replace("_", "-") for name in known]
        raise UsageError(f"{path}: unknown key {key!r}{nearest(key, names)}", "keys are option names without the dashes")
