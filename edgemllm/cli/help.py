"""A command: its help page, and how much the libraries below it may say."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Any

from typer.core import TyperCommand

from edgemllm.cli import usage
from edgemllm.errors import EdgeError, UsageError

EVERY = "Each --option is also read from the environment: --kv-budget from EDGEMLLM_KV_BUDGET."
MAY_BE_EMPTY = ("--system", "-s")


EXAMPLES = {
    "chat": ('--video lecture.mp4 "What number was with the red square?"', "--text book.txt --kv-budget 2048"),
    "stream": (
        'rtsp://camera/live --ask "Is there a person at the door?" --every 30s',
        "--text app.log --ask 'Was there an error?' --every 10000lines",
    ),
    "batch": (
        'clips --ask "What is on the screen?" -o answers.jsonl',
        "list.jsonl -o answers.jsonl --resume --ray --workers 2",
    ),
    "perplexity": (
        "--text book.txt --policy inf-mllm,window --kv-budget 1024 --plot run.png",
        "--text - --tokens 4M < book.txt",
    ),
    "recall": (
        "--policy full,inf-mllm,window --kv-budget 5%,10% --plot recall.png",
        "-m qwen2.5-vl-3b --haystack book.txt --policy full,edge",
    ),
    "inspect": ('--video clip.mp4 --policy inf-mllm,window "What is there?"', "--text page.txt --layer 0 -o pictures"),
    "bench": ("--policy full,inf-mllm --context 2k,32k --kv-budget 2048", "-m random:qwen2.5-vl-3b --repeat 3 -o csv"),
    "plan": ("-m qwen2.5-vl-7b --profile orin-nano-8gb", "-m qwen2.5-vl-3b --profile all"),
    "serve": ("-m qwen2.5-vl-3b --media-path videos", "--host 0.0.0.0 --api-key-file keys.txt"),
    "policies": ("", "inf-mllm", "--json"),
    "profiles": ("", "orin-nano-8gb", "--json"),
    "models": ("", "qwen2.5-vl-3b", "--json"),
    "archive": ("lecture.db", "lecture.db --export frames --around 00:01:49"),
    "doctor": ("", "--json"),
}
"""What to type after the name of a command, for its help page."""


class Command(TyperCommand):
    """A command whose help has its options under the panels they belong to, whose values are not empty, and whose errors say
    where a value came from.

    The page is plain text: rich panels take longer to import than the rest of it.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run it, with libraries that are silent unless `--verbose`.

        An error about an option that nobody typed names the file or variable that set it.
        """
        quiet_libraries(ctx.params.get("verbose", False))
        self._announce(ctx.params)
        try:
            return super().invoke(ctx)
        except EdgeError as error:
            error.message += usage.origins(ctx, error.message)
            raise

    def _announce(self, given: dict[str, Any]) -> None:
        """Put a word on a terminal before torch is imported, which takes seconds in which nothing would be seen."""
        model = given.get("model") or (given["name"] if self.name == "models" and not given["json"] else None)
        if not model or given.get("quiet") or given.get("progress") == "none" or not sys.stderr.isatty():
            return
        doing = "planning for" if self.name in ("plan", "models") else "loading"
        print(f"{doing} {model} ...", file=sys.stderr, flush=True)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an empty word: as a path it would mean the current folder, and it is mostly a variable that is not set."""
        for before, word in zip(["", *args], args, strict=False):
            name, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
            if equals and not value and name not in MAY_BE_EMPTY:
                what = f"the value of {name}" if name.startswith("-") else "an argument"
                raise UsageError(f"{what} is empty", "is a variable not set?")
        rest = super().parse_args(ctx, args)
        usage.refuse_empty(ctx, MAY_BE_EMPTY)
        return rest

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
        """Show examples, and say once what would otherwise stand after every option."""
        with formatter.section("Examples"):
            for example in EXAMPLES[str(self.name)]:
                formatter.write(f"{'':{formatter.current_indent}}edgemllm {self.name} {example}".rstrip() + "\n")
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
