"""`edgemllm policies` and `edgemllm profiles`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from edgemllm.commands import options

Name = Annotated[str | None, typer.Argument(help="Show this one in full.")]


def policies(name: Name = None, json: options.Json = False) -> None:
    """List the cache policies, or show one and its settings."""
    from edgemllm.commands.policies import show

    show(name, json)


def profiles(name: Name = None, json: options.Json = False) -> None:
    """List the device profiles, or show one and its sources."""
    from edgemllm.commands.profiles import show

    show(name, json)
