"""A command: its help page, and how much the libraries below it may say."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Any

from typer.core import TyperCommand

EVERY = "Each --option is also read from the environment: --kv-budget from EDGEMLLM_KV_BUDGET."


class Command(TyperCommand):
    """A command whose help has its options under the panels they belong to.

    The page is plain text: rich panels take longer to import than the rest of it.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run it, with libraries that are silent unless `--verbose`."""
        quiet_libraries(ctx.params.get("verbose", False))
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write every panel, in the order of its first option."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            other = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if (record := parameter.get_help_record(ctx)) is not None:
                names = re.sub(r"<list\[(\w+)\]>", r"<\1>", record[0])  # that it may be repeated is said in words
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or other, []).append((names, record[1]))
        for name, records in panels.items():
            with formatter.section(name):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Say once what would otherwise stand behind every option."""
        formatter.write_paragraph()
        formatter.write_text(EVERY)


def quiet_libraries(verbose: bool) -> None:
    """Silence libraries unless asked otherwise: stderr is our interface. Transformers reads the environment when it is used."""
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, stream=sys.stderr)
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    warnings.filterwarnings("ignore")
