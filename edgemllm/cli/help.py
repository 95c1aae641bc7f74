"""Help pages: plain text with a heading for each panel. Rich panels take longer to import than the rest of a page."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

EVERY = "Each --option is also read from the environment: --kv-budget from EDGEMLLM_KV_BUDGET."


class Command(TyperCommand):
    """A command whose help has its options under the panels they belong to."""

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
