"""The options of `edgemllm batch` that no other command has, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from edgemllm.commands.options import ASKING, OUTPUT, RUN, option
from edgemllm.errors import UsageError


@dataclass(frozen=True)
class WorkOptions:
    """What is asked, and where the answers go."""

    ask: Annotated[
        list[str], option("--ask", help="A question about every video; repeatable, asked one after the other.", panel=ASKING)
    ] = field(default_factory=list)
    output: Annotated[
        Path | None,
        option("--output", "-o", help="Write a line per video to this .jsonl, or .parquet. [default: stdout]", panel=OUTPUT),
    ] = None
    resume: Annotated[bool, option("--resume", help="Leave out the videos that --output has answers for.", panel=RUN)] = False
    retries: Annotated[int, option("--retries", help="Further attempts at a video that failed.", panel=RUN, min=0)] = 1

    def check(self) -> None:
        """Raise UsageError for what means nothing."""
        if any(not question.strip() for question in self.ask):
            raise UsageError("a question is empty", '--ask "What is there?"')
        if self.resume and self.output is None:
            raise UsageError("--resume needs the file to continue", "-o answers.jsonl --resume")


@dataclass(frozen=True)
class FleetOptions:
    """Where it is computed."""

    ray: Annotated[
        str | None,
        option(
            "--ray",
            help="Compute with Ray: on this machine, or on the cluster at ADDRESS (host:6379, ray://host:10001, auto).",
            panel=RUN,
            metavar="[ADDRESS]",
        ),
    ] = None
    workers: Annotated[
        int | None,
        option("--workers", help="Models loaded at once, with --ray. [default: as many as fit]", panel=RUN, min=1),
    ] = None

    def check(self) -> None:
        """Raise UsageError for what means nothing."""
        if self.workers is not None and self.ray is None:
            raise UsageError(f"--workers {self.workers}: more than one process takes Ray", f"--ray --workers {self.workers}")
