"""What `edgemllm bench` does with its options: plan every cell of the grid, measure one after the other."""

from __future__ import annotations

import csv
import sys
from typing import Any

from edgemllm.commands import options
from edgemllm.commands.bench import report
from edgemllm.commands.bench.grid import STOCK, Cell, grid, run
from edgemllm.commands.bench.options import BenchOptions
from edgemllm.commands.events import Events
from edgemllm.commands.interrupts import Interrupts
from edgemllm.errors import EdgeError, UsageError
from edgemllm.launch import Launch
from edgemllm.screen import Display
from edgemllm.units import parse_count, short_count

FORMATS = ("md", "json", "jsonl", "csv")


def bench(
    measured: BenchOptions,
    asked: options.ComparedOptions,
    written: options.JsonOptions,
    screen: options.ScreenOptions,
    dry_run: bool,
) -> None:
    """Run the command."""
    kind = "json" if written.json else "jsonl" if written.jsonl else measured.output
    if kind not in FORMATS:
        raise UsageError(f"--output {measured.output} is unknown", f"one of {', '.join(FORMATS)}")
    contexts = [parse_count(word, "--context") for word in options.listed(measured.context, "--context")]
    names = asked.policies
    if measured.compare_stock and STOCK not in names:
        names = [STOCK, *names]
    budgets, quants = options.listed(asked.kv_budget, "--kv-budget"), options.listed(asked.quant, "--quant")
    request = asked.request(policy=None, kv_budget="auto", quant="auto")
    cells = grid(request, names, contexts, budgets, quants, measured.new_tokens, measured.repeat)
    launches = [cell.prepare() for cell in cells]  # whatever cannot run is refused before anything is loaded
    if dry_run:
        for cell, launch in zip(cells, launches, strict=True):
            print(f"{title(cell)}  {launch.plan.total_bytes} bytes")
        return
    Bench(launches[0], screen.display(), kind).go(cells)


def title(cell: Cell) -> str:
    """Name a cell on the screen."""
    budget = cell.request.kv_budget
    parts = [cell.policy, f"context {short_count(cell.context)}", f"budget {budget}", f"quant {cell.request.quant}"]
    return "  ".join(parts)


class Bench:
    """Measures cells and writes what came out."""

    def __init__(self, launch: Launch, display: Display, kind: str) -> None:
        self.launch, self.display, self.kind = launch, display, kind
        self.events = Events("bench", json=kind == "json", jsonl=kind == "jsonl")
        self.runs: list[dict[str, Any]] = []
        self.failure: EdgeError | None = None

    def go(self, cells: list[Cell]) -> None:
        """Measure cell after cell; whatever ends it, what was measured is written."""
        self.events.event("start", **self._head(), cells=len(cells))
        try:
            with Interrupts():
                for number, cell in enumerate(cells, 1):
                    self.display.say(f"{number}/{len(cells)}  {title(cell)}")
                    try:
                        self._add(run(cell))
                    except EdgeError as error:
                        self.display.say(f"{title(cell)}: {error.message}")
                        self.failure = self.failure or error
        except KeyboardInterrupt:
            self._write(130)
            raise
        except SystemExit:
            self._write(143)
            raise
        self._write(self.failure.exit_code if self.failure else 0)
        if self.failure:
            raise self.failure

    def _add(self, found: dict[str, Any]) -> None:
        self.runs.append(found)
        self.events.event("run", **found)

    def _write(self, code: int) -> None:
        self.display.clear()
        self.events.close(code, {**self._head(), "runs": self.runs})
        if self.kind == "csv":
            writer = csv.DictWriter(sys.stdout, report.FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(report.flat(found) for found in self.runs)
            sys.stdout.flush()
        elif self.kind == "md" and self.runs:
            print(report.table(self.runs), flush=True)

    def _head(self) -> dict[str, Any]:
        described = self.launch.describe()
        return {name: described[name] for name in ("model", "profile", "dtype", "vision_dtype", "device")}
