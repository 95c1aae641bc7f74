"""What `edgemllm perplexity` does with its options: line the policies up, run them, write what comes out."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from edgemllm import session_file
from edgemllm.commands import figures, options
from edgemllm.commands.events import headed, write
from edgemllm.commands.interrupts import Interrupts
from edgemllm.commands.lineup import check_fit, line_up
from edgemllm.commands.perplexity.agreement import measure
from edgemllm.commands.perplexity.checkpoint import Checkpoint
from edgemllm.commands.perplexity.options import CheckpointOptions, TextOptions
from edgemllm.commands.perplexity.report import Report
from edgemllm.commands.perplexity.run import Run
from edgemllm.commands.plan.report import arithmetic
from edgemllm.errors import EdgeError, MissingError, UsageError, out_of_memory
from edgemllm.launch import Launch, prepare
from edgemllm.limit import limit
from edgemllm.media.text import Text
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.tokens import TokenStream
from edgemllm.session import Session
from edgemllm.units import parse_count


def perplexity(
    text: TextOptions,
    run: options.ComparedOptions,
    compare_full: bool,
    kept: CheckpointOptions,
    output: options.JsonOptions,
    plot: Path | None,
    screen: options.ScreenOptions,
    dry_run: bool,
) -> None:
    """Run the command."""
    display = screen.display()
    target = parse_count(text.tokens, "--tokens") if text.tokens is not None else None
    every = parse_count(kept.checkpoint_every, "--checkpoint-every")
    _check(text, target, kept, plot)
    names = run.policies
    saved = Checkpoint(kept.checkpoint, every, kept.resume) if kept.checkpoint is not None else None
    source = _source(text, target, run.offline, again=text.loop or compare_full or len(names) > 1)
    before = saved.budgets if saved is not None and run.kv_budget.strip().lower() in ("", "auto") else None
    launches = line_up(run.request(policy=None), names, target, before)
    if dry_run:
        _stop_after(launches, output.either)
    check_fit(launches)
    report = Report(display, output.events("perplexity"), launches, source, target)
    Perplexity(report, launches, source, target, text.loop, compare_full, saved).go()
    if plot is not None:
        report.plot(plot)
    report.finish()


def _check(text: TextOptions, target: int | None, kept: CheckpointOptions, plot: Path | None) -> None:
    """Refuse options that would not do together."""
    if text.loop and target is None:
        raise UsageError("--loop without --tokens would never end", "--tokens 4M")
    if kept.resume and kept.checkpoint is None:
        raise UsageError("--resume needs the file to continue from", "--checkpoint FILE --resume")
    if not text.text and sys.stdin.isatty():
        raise UsageError("no text was named", "--text book.txt, a folder, or - for standard input")
    if plot is not None:
        figures.check(plot, "--plot")


def _source(text: TextOptions, target: int | None, offline: bool, again: bool) -> Text:
    """Open the text. Raises MissingError where it cannot have `target` tokens."""
    source = Text(text.text or ["-"], offline, again)
    if target is not None and source.size is not None and source.size + 1 < target and not text.loop:
        raise MissingError(
            f"--tokens {target}: the text has {source.size} bytes, so it cannot have that many tokens", "--loop, or more --text"
        )
    return source


def _stop_after(launches: Sequence[Launch], json: bool) -> None:
    """End the command with a plan for every policy: exit 0 if all fit, 4 if not."""
    if json:
        plans = [{"policy": launch.policy_name, **headed("plan", launch.plan.as_json())} for launch in launches]
        write(headed("perplexity", {"plans": plans}))
    else:
        print("\n".join(f"{launch.policy_name}, chunk {launch.chunk}\n{arithmetic(launch.plan)}" for launch in launches))
    raise typer.Exit(0 if all(launch.plan.fits for launch in launches) else 4)


@dataclass
class Perplexity:
    """Makes all runs of the command, one policy after the other over the same text."""

    report: Report
    launches: list[Launch]
    source: Text
    target: int | None
    loop: bool
    compare_full: bool
    checkpoint: Checkpoint | None
    family: ModelFamily | None = None

    def go(self) -> None:
        """Run them; whatever ends it, what was computed is written."""
        report = self.report
        report.start()
        state = self._resume()
        with Interrupts() as self.interrupts:
            try:
                for launch in self.launches[len(report.runs) :]:
                    self._run(launch, state)
                    state = None
                    if self.interrupts.asked():
                        break
            except Exception as error:
                report.close(error.exit_code if isinstance(error, EdgeError) else 1)
                raise
        report.close(self.interrupts.code or report.code)

    def _run(self, launch: Launch, state: dict[str, Any] | None) -> None:
        session = launch.open(family=self.family)
        self.interrupts.session, self.family = session, session.family
        tokenizer = session.family.tokenizer
        agreement = None
        if self.compare_full and launch.policy.bounded and state is None:
            agreement = self._compare(launch, session)
            session.clear()
        stream = TokenStream(self.source, tokenizer, self.loop, self.interrupts.asked)
        run = Run(launch.policy_name, session, stream, self.target, limit(launch))
        run.agreement = agreement
        if state is not None and self.checkpoint is not None:
            session_file.load(session, self.checkpoint.path)
            run.restore(state)
            self.report.say(f"{run.policy}: continuing from {run.sums.tokens} tokens")
            self.report.mark_reported(run)
            self.checkpoint.written = run.sums.tokens
        run.go(self._pause)
        if run.failure is not None and not run.sums.fed:
            raise run.failure
        reference = not launch.policy.bounded and len(self.launches) > 1
        final = run.ended or (reference and run.failure is not None)
        done = run.as_json(launch.device)
        saved = False
        if run.sums.fed and (final or not run.broken):
            saved = self._write(run, [*self.report.runs, done] if final else self.report.runs, None if final else run.state())
        self.report.add(done, run.failure, reference)
        if saved and not final:
            self.report.say(f"the same command with --resume continues from {run.sums.tokens} tokens")

    def _pause(self, run: Run) -> bool:
        """Show, write, and stop between two chunks where a signal came."""
        later = len(self.launches) - len(self.report.runs) - 1
        self.report.step(run, later)
        if self.checkpoint is not None and self.checkpoint.due(run):
            self._write(run, self.report.runs, run.state())
        return self.interrupts.asked()

    def _resume(self) -> dict[str, Any] | None:
        if self.checkpoint is None:
            return None
        first = self.launches[0]
        self.checkpoint.identity = {
            "model": first.request.model, "quant": first.quant, "dtype": first.dtype, "device": first.device,
            "tokens": self.target, "compare_full": self.compare_full,
            "policies": [launch.policy_name for launch in self.launches],
            "settings": [repr(launch.policy) for launch in self.launches],
            "kv_budget": [launch.budget for launch in self.launches], "chunk": first.chunk,
        }  # fmt: skip
        finished, state = self.checkpoint.read()
        for run, launch in zip(finished, self.launches, strict=False):
            self.report.add(run, None, not launch.policy.bounded and len(self.launches) > 1)
        if self.checkpoint.resume and not finished and state is None:
            self.report.say(f"no checkpoint {self.checkpoint.path} yet: from the beginning")
        return state

    def _write(self, run: Run, finished: list[dict[str, Any]], state: dict[str, Any] | None) -> bool:
        if self.checkpoint is None:
            return False
        problem = self.checkpoint.write(run, finished, state)
        if problem:
            self.report.say(f"warning: {problem}; the run continues, the next checkpoint is tried later")
        self.report.event("checkpoint", policy=run.policy, tokens=run.sums.tokens, problem=problem)
        return not problem

    def _compare(self, launch: Launch, session: Session) -> dict[str, Any]:
        """Measure the agreement with the full cache over the longest span that the model was trained for and memory holds."""

        whole = prepare(dataclasses.replace(launch.request, policy="full", settings=(), kv_budget="auto", chunk=launch.chunk))
        free = whole.plan.kv_budget_tokens - -(-launch.plan.kv_bytes // whole.plan.kv_bytes_per_token)
        trained = getattr(session.family.config, "max_position_embeddings", None)
        bounds = {"the text asked for": self.target and self.target + 1, "memory": free, "the model's trained length": trained}
        why, span = min(((name, bound) for name, bound in bounds.items() if bound), key=lambda pair: pair[1])
        stream = TokenStream(self.source, session.family.tokenizer, self.loop, self.interrupts.asked)
        full = whole.open(family=session.family)
        with out_of_memory():
            found = measure(full, session, stream, span, self.interrupts.asked)
        if not found["after_eviction"]:
            self.report.say(f"{launch.policy_name}: nothing was evicted in the {span} tokens compared with full ({why})")
        return {**found, "bounded_by": why}
