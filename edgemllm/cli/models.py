"""`edgemllm models`: what there is to load, what is here already, and where it fits."""

from __future__ import annotations

from typing import Annotated

import typer

from edgemllm.commands import options

Name = Annotated[str | None, typer.Argument(help="Show this one: sizes, tokens per picture, and the devices it fits.")]


def models(name: Name = None, json: options.Json = False) -> None:
    """List known models, or show one: sizes, inputs, devices.

    Known are the shipped ones, the families, and what lies in the hub cache.
    """
    from edgemllm.commands.models import known

    if json:
        known.write_json(name)
    elif name is None:
        known.show()
    else:
        from edgemllm.commands.models import one

        one.show(name)
