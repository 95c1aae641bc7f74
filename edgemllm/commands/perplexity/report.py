"""What `edgemllm perplexity` writes: two lines and notes on stderr; a table, JSON or events on stdout; a picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from edgemllm.commands.events import Events
from edgemllm.commands.perplexity.curve import START, perplexity
from edgemllm.commands.perplexity.plot import plot as draw
from edgemllm.commands.perplexity.run import Run
from edgemllm.commands.tables import aligned
from edgemllm.device import memory
from edgemllm.device.memory import human_bytes
from edgemllm.errors import EdgeError
from edgemllm.launch import Launch
from edgemllm.media.text import Text
from edgemllm.screen import Display
from edgemllm.units import clock, short_count

BAR, COURSE = 16, 8
"""Widths: of the bar, and of the course of the perplexity beside it."""


class Report:
    """Holds the results so far and writes them. `code` is the exit code that they ask for."""

    def __init__(self, display: Display, events: Events, launches: list[Launch], source: Text, target: int | None) -> None:
        self.display, self.events, self.launches, self.source, self.target = display, events, launches, source, target
        self.runs: list[dict[str, Any]] = []
        self.code = 0
        self.failure: EdgeError | None = None
        self._reported = (0, 0)
        """The newest curve point's tokens and the loops that were last spoken of."""

    def start(self) -> None:
        """Say what will run."""
        self.event("start", **self._head())
        if len(self.launches) > 1:
            sizes = [f"{each.policy_name} {each.budget or 'no limit of'} tokens per layer" for each in self.launches]
            shared = human_bytes(max(each.plan.kv_bytes for each in self.launches if each.policy.bounded or each.budget))
            self.say(f"at most {shared} of KV cache each: {', '.join(sizes)}")

    def step(self, run: Run, later: int) -> None:
        """Show a run between two of its chunks; `later` runs follow this one."""
        if run.sums.tokens:
            between = "\n" if self.display.mode == "live" else "  "
            self.display.update(lambda: between.join(progress(run, self.source.size, later)))
        point, loops = self._reported
        if run.stream.loops > loops:
            self.say(f"{run.policy}: the text has ended after {run.sums.tokens} tokens and begins again ({run.stream.loops})")
        if self.events.jsonl and run.curve.points and run.curve.points[-1].tokens > point:
            for row in run.curve.as_json(run.curve.points[-1]):
                if row["tokens"] > point:
                    self.event("point", policy=run.policy, chunk=run.session.chunk, **row)
        self.mark_reported(run)

    def mark_reported(self, run: Run) -> None:
        """Count what the run has come to so far as reported, here or before it was interrupted."""
        self._reported = (run.curve.points[-1].tokens if run.curve.points else 0, run.stream.loops)

    def add(self, run: dict[str, Any], failure: EdgeError | None, reference: bool) -> None:
        """Report a run that is over. What ends a `reference`, a policy without bound among others, is no failure."""
        self.runs.append(run)
        self._reported = (0, 0)
        self.event("run", **run)
        for note in run["notes"]:
            self.say(f"{run['policy']}: {note}")
        if run["stopped"]:
            self.say(f"{run['policy']}: stopped after {run['tokens']} tokens: {run['stopped']}")
        if run["exit_code"] and not reference:
            self.code, self.failure = self.code or run["exit_code"], self.failure or failure

    def close(self, code: int) -> None:
        """Write the table, the one object of `--json`, or the last event of `--jsonl`."""
        self.display.clear()
        self.code = code
        self.events.close(code, {**self._head(), "runs": self.runs})
        if self.events.text and self.runs:
            print(table(self.runs), flush=True)

    def plot(self, path: Path) -> None:
        """Draw all runs."""
        if self.runs:
            head = self._head()
            draw(self.runs, f"{Path(head['model']).name}, chunks of {head['chunk']} tokens", path)

    def finish(self) -> None:
        """Leave with the exit code of what happened."""
        if self.failure is not None and self.failure.exit_code == self.code:
            raise self.failure
        if self.code:
            raise typer.Exit(self.code)

    def say(self, text: str) -> None:
        """Write a line on stderr."""
        self.display.say(text)

    def event(self, name: str, **fields: Any) -> None:
        """Write one line of `--jsonl`."""
        self.events.event(name, **fields)

    def _head(self) -> dict[str, Any]:
        first = self.launches[0].describe()
        del first["policy"]
        return {**first, "text": self.source.sources, "tokens_wanted": self.target, "chunk": self.launches[0].chunk}


def progress(run: Run, size: int | None, later: int) -> tuple[str, str]:
    """Return two lines: where the run is, with speed and time left; and perplexity so far and lately, cache and memory.

    `size`: bytes of the text, where they are known; `later`: runs that follow this one.
    """
    sums, curve = run.sums, run.curve
    kv = run.session.kv()
    before = curve.points[-2] if len(curve.points) > 1 else START
    newest = curve.points[-1] if curve.points else run.point()
    window = perplexity(newest.nll - before.nll, newest.tokens - before.tokens)
    speed = sums.tokens / sums.seconds if sums.seconds else 0.0
    total = run.target or (round(sums.tokens * size / sums.bytes) if size and sums.bytes else None)
    place, left = f"{short_count(sums.tokens)} tokens", ""
    if total:
        done = min(1.0, sums.tokens / total)
        bar = "━" * round(BAR * done) + "╌" * (BAR - round(BAR * done))
        place = f"{bar} {done:4.0%}  {short_count(sums.tokens)}/{'' if run.target else '~'}{short_count(total)} tokens"
        left = f"  ETA {clock(((later + 1) * total - sums.tokens) / speed)}" if speed else ""
    return (
        f"{run.policy}  {place}  {speed:.0f} tok/s{left}",
        f"ppl {number(perplexity(sums.nll, sums.tokens), 4)}  "
        f"last {short_count(newest.tokens - before.tokens)} {number(window, 4)}"
        f"{course(run)}  kv {round(kv['tokens'])}/{kv['budget_tokens'] or '∞'} {human_bytes(kv['bytes'])}  "
        f"rss {human_bytes(memory.rss_bytes())}  chunk {run.session.chunk}",
    )


def course(run: Run) -> str:
    """Return the perplexity of the latest windows as small bars, each a twelfth higher or lower; empty before there are two."""
    points = [START, *run.curve.points][-COURSE - 1 :]
    means = [(b.nll - a.nll) / (b.tokens - a.tokens) for a, b in itertools.pairwise(points)]
    if len(means) < 2:
        return ""
    middle = sorted(means)[len(means) // 2]
    return " " + "".join("▁▂▃▄▅▆▇█"[round(min(7, max(0, 3 + (mean - middle) / math.log(13 / 12))))] for mean in means)


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a row a run."""
    rows: list[tuple[str, ...]] = [
        ("policy", "tokens", "perplexity", "last 10%", "bits/byte", "kv tokens", "kv bytes", "chunk", "tok/s")
    ]
    for run in runs:
        kv = run["kv"]
        figures = [number(run[name]) for name in ("perplexity", "last_tenth_perplexity", "bits_per_byte")]
        cache = [f"{kv['tokens']:g}", human_bytes(kv["bytes"]), str(run["chunk"])]
        rows.append((run["policy"], str(run["tokens"]), *figures, *cache, f"{run['tokens_per_s']:.0f}"))
    lines = aligned(rows)
    compared = [run for run in runs if run["compare_full"] and run["compare_full"]["tokens"]]
    if compared:
        rows = [("against full", "tokens", "KL (nats)", "same top", "full's perplexity", "KL after eviction", "same top")]
        for run in compared:
            whole, after = run["compare_full"], run["compare_full"]["after_eviction"]
            rows.append((run["policy"], str(whole["tokens"]), *_agreement(whole), number(whole["full_perplexity"]),
                         *(_agreement(after) if after else ("-", "-"))))  # fmt: skip
        lines += ["", *aligned(rows)]
    return "\n".join(lines)


def _agreement(found: Mapping[str, Any]) -> tuple[str, str]:
    return "∞" if found["kl_nats"] is None else f"{found['kl_nats']:.4g}", f"{found['same_top']:.2%}"


def number(value: float | None, digits: int = 5) -> str:
    """Return a number with that many digits; infinity where there is no number."""
    return "∞" if value is None else f"{value:.{digits}g}"
