"""Mistakes on the command line, which click and typer find, in the words of our own errors."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from edgemllm.cli import config
from edgemllm.errors import UsageError

WORDING = (
    (r"^Input should be (a|an) valid (\w+).*", r"\1 \2 expected"),
    (r"^Input should be greater than or equal to (\S+)", r"\1 or more expected"),
    (r"^Input should be less than or equal to (\S+)", r"\1 or less expected"),
    (r"^Input should be (.*)", r"\1 expected"),
)


@contextlib.contextmanager
def translated(command: str = "edgemllm") -> Iterator[None]:
    """Raise UsageError where click or typer find a mistake; `command` is what to ask for help where they do not say."""
    try:
        yield
    except Exception as error:
        # Typer ships a click of its own, older ones import it: known by what it does, not by its class.
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
            raise
        raise _own(error, command) from None


def _own(error: Any, command: str) -> UsageError:
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    message = error.format_message().strip().rstrip(".")
    if parameter is not None and message.startswith("Invalid value"):
        reason = error.message
        for pattern, words in WORDING:
            reason = re.sub(pattern, words, reason)
        message = f"{parameter.opts[0]}{_origin(context, parameter)}: {reason}"
    else:
        message = message[:1].lower() + message[1:]
        message = re.sub(r" \(Possible options: (.*)\)| ?\. Did you mean (.*)\?", r" (did you mean \1\2?)", message)
    page = " ".join(["edgemllm", *context.command_path.split()[1:]]) if context is not None else command
    return UsageError(message, f"{page} --help")


def origins(context: Any, message: str) -> str:
    """Return where the values come from that an error is about and nobody typed, as an end to its message."""
    found = []
    for parameter in context.command.params:
        flag, value = parameter.opts[0], context.params.get(parameter.name)
        named = re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", message) is not None
        quoted = isinstance(value, str) and len(value) > 2 and value in message
        if (named or quoted) and (origin := _origin(context, parameter)):
            found.append(f"; {flag}{origin}")
    return "".join(found)


def refuse_empty(context: Any, allowed: Sequence[str]) -> None:
    """Raise UsageError for an empty value of a configuration file or the environment, which click takes as none, or as "."."""
    for parameter in context.command.params:
        if parameter.opts[0] in allowed or getattr(parameter, "is_flag", False):
            continue
        source = getattr(context.get_parameter_source(parameter.name), "name", "")
        path, value = config.written(context.info_name, parameter.name) if source == "DEFAULT_MAP" else (None, None)
        if source != "COMMANDLINE" and parameter.envvar and os.environ.get(parameter.envvar) == "":
            where = f"{parameter.envvar}= in the environment"
        elif value == "" or (isinstance(value, list) and "" in value):
            where = f"in {path}"
        else:
            continue
        raise UsageError(f"the value of {parameter.opts[0]} is empty ({where})", "give it a value, or remove it")


def _origin(context: Any, parameter: Any) -> str:
    """Return where a value comes from that was not typed."""
    source = context.get_parameter_source(parameter.name) if context is not None else None
    name = getattr(source, "name", "")
    if name == "ENVIRONMENT":
        return f" ({parameter.envvar}={os.environ.get(parameter.envvar, '')} in the environment)"
    if name == "DEFAULT_MAP":
        path, value = config.written(context.info_name, parameter.name)
        return f" ({value!r} in {path})"
    return ""
