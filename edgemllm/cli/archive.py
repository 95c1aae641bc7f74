"""`edgemllm archive`: what a session has kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemllm.cli.groups import grouped
from edgemllm.commands import options
from edgemllm.commands.archive import command
from edgemllm.commands.archive.options import SpanOptions
from edgemllm.commands.options import MODEL, OUTPUT, RUN, option
from edgemllm.errors import UsageError


@grouped()
def archive(
    *,
    file: Annotated[Path, typer.Argument(help="The FILE of an --archive.", show_default=False)],
    search: Annotated[str | None, option("--search", help="Show what these words lead to.", panel=RUN)] = None,
    export: Annotated[Path | None, option("--export", help="Write a span as files into this folder.", panel=OUTPUT)] = None,
    delete: Annotated[bool, option("--delete", help="Delete a span for good.", panel=RUN)] = False,
    check: Annotated[bool, option("--check", help="Read the whole file: exit 3 if it is damaged.", panel=RUN)] = False,
    calibrate: Annotated[
        bool, option("--calibrate", help="Try out how well a --model finds things, before it is used.", panel=RUN)
    ] = False,
    span: SpanOptions,
    model: Annotated[
        str | None, option("--model", "-m", help="Search frames too, with the model it was made with.", panel=MODEL)
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what an archive holds, search it, export or delete parts of it.

    Without an option: its videos, texts and latest answers.
    """
    wanted = [bool(search), export is not None, delete, check, calibrate]
    if sum(wanted) > 1:
        raise UsageError("--search, --export, --delete, --check and --calibrate are done one at a time", "one of them")
    if calibrate or (search and model):
        from edgemllm.commands.archive import by_model

        by_model.search(file, search, json, str(model)) if search else by_model.begin(file, model or "demo")
    elif search:
        command.search(file, search, json)
    elif export is not None:
        command.export(file, export, span)
    elif delete:
        command.delete(file, span)
    elif check:
        command.check(file, json)
    else:
        command.show(file, json)
