"""A run of `edgemllm batch`: planned, answered here or on Ray, and written line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgemllm.batch.answerer import Answerer
from edgemllm.batch.answers_file import AnswersFile
from edgemllm.batch.fleet import Fleet
from edgemllm.batch.job import Job
from edgemllm.batch.manifest import require_pyarrow
from edgemllm.batch.table import write_table
from edgemllm.batch.work import Work
from edgemllm.commands.batch.options import FleetOptions
from edgemllm.commands.batch.progress import Progress
from edgemllm.commands.events import write
from edgemllm.commands.interrupts import Interrupts
from edgemllm.errors import UsageError
from edgemllm.launch import Launch
from edgemllm.planning.auto import MOST_KNOWN
from edgemllm.screen import Display
from edgemllm.session import Session


@dataclass
class Batch:
    """Answers works, and reports."""

    job: Job
    works: Sequence[Work]
    fleet: FleetOptions
    display: Display
    interrupts: Interrupts

    @property
    def most_questions(self) -> int:
        """Return the most questions of a video that can be its focus: the plan has room for them."""
        counts = (len(set(each.questions)) for each in self.works)
        return max((count for count in counts if count <= MOST_KNOWN), default=0)

    def to_stdout(self) -> int:
        """Answer all works, and return the exit code."""
        return self._answer(None).close(resumable=False)

    def to_file(self, path: Path, resume: bool) -> int:
        """Answer what the file has no answers for; into a table too, once all lines are there. Return the exit code."""
        as_table = path.suffix.lower() == ".parquet"
        if as_table:
            require_pyarrow(path)
            if path.exists() and not resume:
                raise UsageError(f"{path} exists already", "--resume to continue it, or another file name")
        with AnswersFile(path.with_name(f"{path.name}.jsonl") if as_table else path, resume) as file:
            budget = file.before.get("kv_budget")
            if budget and self.job.request.kv_budget.strip().lower() in ("", "auto"):  # what auto meant then
                self.job = replace(self.job, request=replace(self.job.request, kv_budget=str(budget)))
            progress = self._answer(file)
            if as_table and progress.done == progress.total:
                write_table(file.lines(), path)
        return progress.close(resumable=True)

    def _answer(self, file: AnswersFile | None) -> Progress:
        """Plan, and write a line for everything that is still to be done."""
        self.job, launch = self.job.planned(self.most_questions)
        if not launch.plan.fits:
            raise launch.plan.error()
        left = list(self.works) if file is None else file.begin(self.job.identity(launch), self.works)
        if len(left) < len(self.works):
            self.display.say(f"{len(self.works) - len(left)} of {len(self.works)} are answered already")
        progress, by_id = Progress(self.display, len(left), launch.device), {each.id: each for each in left}
        computed = self._here if self.fleet.ray is None else self._on_ray
        for line in computed(launch, left, progress) if left else ():
            if file is None:
                write(line)
            else:
                file.write(line, by_id[line["id"]])
            progress.add(line)
        return progress

    def _here(self, launch: Launch, works: Sequence[Work], progress: Progress) -> Iterator[dict[str, Any]]:
        """Answer in this process, until a signal comes."""

        def step(session: Session) -> None:
            self.interrupts.session = session
            progress.step(session)

        answerer = Answerer(self.job, launch, step, self.interrupts.asked)
        progress.begin()
        for work in works:
            if self.interrupts.asked() or (line := answerer.line(work)) is None:
                return
            yield line

    def _on_ray(self, launch: Launch, works: Sequence[Work], progress: Progress) -> Iterator[dict[str, Any]]:
        """Answer with workers; a signal raises, and ends them."""
        assert self.fleet.ray is not None
        with Fleet(self.fleet.ray, self.job, launch, self.most_questions, self.fleet.workers) as workers:
            count = workers.seats.workers
            self.display.say(f"{count} worker{'s' if count > 1 else ''} on Ray")
            progress.begin()
            yield from workers.lines(works)
