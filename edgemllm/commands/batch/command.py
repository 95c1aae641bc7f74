"""What `edgemllm batch` does with its options: find the works, and hand them over to a run."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from edgemllm.batch.fleet import check_extra
from edgemllm.batch.job import Job
from edgemllm.batch.manifest import find
from edgemllm.commands import options
from edgemllm.commands.batch.options import FleetOptions, WorkOptions
from edgemllm.commands.batch.run import Batch
from edgemllm.commands.interrupts import Interrupts
from edgemllm.commands.plan.report import stop_after
from edgemllm.errors import UsageError
from edgemllm.screen import Display


def batch(
    words: Sequence[str],
    work: WorkOptions,
    fleet: FleetOptions,
    clip: options.ClipOptions,
    size: options.DetailOptions,
    run: options.RequestOptions,
    focus: options.FocusOptions,
    reply: options.AnswerOptions,
    display: Display,
    dry_run: bool,
    interrupts: Interrupts,
) -> None:
    """Run the command."""
    work.check()
    fleet.check()
    if fleet.ray is not None:
        check_extra()
    if not words:
        raise UsageError("no video was named", 'edgemllm batch clips --ask "What is there?" -o answers.jsonl')
    request = run.request(system=reply.system, detail=size.detail(), focus=focus.of([])["focus"])
    sampling = {"max_tokens": reply.max_tokens, "temperature": reply.temperature, "top_p": reply.top_p, "seed": reply.seed}
    job = Job(request, clip.of(), sampling, not focus.no_focus, work.retries)
    made = Batch(job, find(words, work.ask), fleet, display, interrupts)
    if dry_run:
        stop_after(job.planned(made.most_questions)[1], json=False)
    code = made.to_stdout() if work.output is None else made.to_file(work.output, work.resume)
    if interrupts.code or code:
        raise typer.Exit(interrupts.code or code)
