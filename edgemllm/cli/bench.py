"""`edgemllm bench`: how fast policies are, side by side."""

from __future__ import annotations

import csv as csv_module
import sys
from typing import TYPE_CHECKING, Any

from edgemllm.cli import options
from edgemllm.commands.events import Events
from edgemllm.commands.interrupts import Interrupts
from edgemllm.errors import EdgeError, UsageError
from edgemllm.units import parse_count, short_count

if TYPE_CHECKING:
    from edgemllm.commands.bench.grid import Cell
    from edgemllm.launch import Launch
    from edgemllm.screen import Display

FORMATS = ("md", "json", "jsonl", "csv")


def bench(
    context: options.Contexts = "2k",
    new_tokens: options.NewTokens = 64,
    repeat: options.Repeat = 3,
    compare_stock: options.CompareStock = False,
    output: options.OutputFormat = "md",
    model: options.Model = "demo",
    profile: options.Profile = "auto",
    policy: options.Policies = None,
    set: options.Settings = [],  # noqa: B006
    kv_budget: options.KvBudget = "auto",
    quant: options.Quant = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    chunk: options.ChunkSize = None,
    json: options.Json = False,
    jsonl: options.Jsonl = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.Progress = "auto",
    offline: options.Offline = False,
    trust_remote_code: options.Trust = False,
    dry_run: options.DryRun = False,
) -> None:
    """Measure speed and memory of policies, contexts and budgets.

    --policy, --context, --kv-budget and --quant take several values with commas: every combination runs in a process of its
    own. Measured are time to first token, prefill and decode speed, live KV bytes and peak memory.
    """

    kind = "json" if json else "jsonl" if jsonl else output
    if kind not in FORMATS:
        raise UsageError(f"--output {output} is unknown", f"one of {', '.join(FORMATS)}")
    contexts = [parse_count(word, "--context") for word in options.listed(context, "--context")]
    from edgemllm.commands.bench.grid import STOCK, grid
    from edgemllm.device import profiles
    from edgemllm.launch import Request
    from edgemllm.screen import Display

    names = options.listed(policy, "--policy") if policy is not None else [profiles.load(profile).cache.policy]
    if compare_stock and STOCK not in names:
        names = [STOCK, *names]
    request = Request(
        model, profile, None, set, "auto", "auto", dtype, device, chunk, offline, trust_remote_code
    )  # fmt: skip
    budgets, quants = options.listed(kv_budget, "--kv-budget"), options.listed(quant, "--quant")
    cells = grid(request, names, contexts, budgets, quants, new_tokens, repeat)
    launches = [cell.prepare() for cell in cells]  # whatever cannot run is refused before anything is loaded
    if dry_run:
        for cell, launch in zip(cells, launches, strict=True):
            print(f"{title(cell)}  {launch.plan.total_bytes} bytes")
        return
    Bench(launches[0], Display("none" if quiet else progress), kind).go(cells)


def title(cell: Cell) -> str:
    """What a cell is called on the screen."""
    budget = cell.request.kv_budget
    parts = [cell.policy, f"context {short_count(cell.context)}", f"budget {budget}", f"quant {cell.request.quant}"]
    return "  ".join(parts)


class Bench:
    """One run of the command: what was measured, and where it is written."""

    def __init__(self, launch: Launch, display: Display, kind: str) -> None:
        self.launch, self.display, self.kind = launch, display, kind
        self.events = Events("bench", json=kind == "json", jsonl=kind == "jsonl")
        self.runs: list[dict[str, Any]] = []
        self.failure: EdgeError | None = None

    def go(self, cells: list[Cell]) -> None:
        """Measure cell after cell; whatever ends it, what was measured is written."""
        from edgemllm.commands.bench.grid import run

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
        from edgemllm.commands.bench import report as speed

        self.display.clear()
        self.events.close(code, {**self._head(), "runs": self.runs})
        if self.kind == "csv":
            writer = csv_module.DictWriter(sys.stdout, speed.FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(speed.flat(found) for found in self.runs)
            sys.stdout.flush()
        elif self.kind == "md" and self.runs:
            print(speed.table(self.runs), flush=True)

    def _head(self) -> dict[str, Any]:
        told = self.launch.describe()
        return {name: told[name] for name in ("model", "profile", "dtype", "device")}
