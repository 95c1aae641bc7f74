"""The grid policy x context x budget x quantisation, each cell measured in a process of its own (`runs/bench_cell.py`)."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgemllm.choices import ITEM_BYTES
from edgemllm.device.memory import human_bytes
from edgemllm.errors import DoesNotFitError, EdgeError, OutOfMemoryError, UsageError
from edgemllm.launch import Launch, prepare
from edgemllm.planning.request import Request
from edgemllm.units import short_count

STOCK = "stock"
"""As a policy: transformers' own `generate` with its growing DynamicCache."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    policy: str
    request: Request
    context: int
    new_tokens: int
    repeat: int
    copy_s: float = 1.0
    """Seconds of the copy test."""

    def prepare(self) -> Launch:
        """Return the plan. Raises as `launch.prepare`, and DoesNotFitError where it would not fit."""
        launch = prepare(self.request, lambda config: self.context + self.new_tokens)
        if not launch.plan.fits:
            raise launch.plan.error()
        # The prompt itself is not bounded: its tokens lie in memory as numbers of Python and as embeddings.
        config = launch.checkpoint.config.get_text_config()
        each = 64 + config.hidden_size * ITEM_BYTES[launch.dtype]
        if self.context * each > launch.memory.free_bytes:
            raise DoesNotFitError(
                f"a prompt of {short_count(self.context)} tokens takes {human_bytes(self.context * each)}, "
                f"{human_bytes(launch.memory.free_bytes)} are free",
                f"--context {short_count(launch.memory.free_bytes // each)} or less",
            )
        return launch


def grid(
    request: Request, policies: Sequence[str], contexts: Sequence[int], budgets: Sequence[str], quants: Sequence[str],
    new_tokens: int, repeat: int,
) -> list[Cell]:  # fmt: skip
    """Return every combination. A policy that never evicts has no budget beside others that have one: a row a context."""
    from edgemllm.policies import find

    unknown = [name for name in policies if policies.count(name) > 1]
    if unknown:
        raise UsageError(f"--policy names {unknown[0]} twice", "each policy once")
    cells = []
    for quant in quants:
        for context in contexts:
            for name in policies:
                bounded = name != STOCK and find(name).bounded
                for budget in budgets if bounded or (len(policies) == 1 and name != STOCK) else ["auto"]:
                    asked = dataclasses.replace(
                        request, policy="full" if name == STOCK else name, kv_budget=budget, quant=quant,
                        settings=request.settings if bounded else (),
                    )  # fmt: skip
                    cells.append(Cell(name, asked, context, new_tokens, repeat))
    return cells


def run(cell: Cell) -> dict[str, Any]:
    """Measure a cell in a fresh process. Raises the error with which that process ended."""
    quiet = {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemllm.commands.bench.cell"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **quiet},
    )  # fmt: skip
    try:
        out, err = process.communicate(json.dumps(dataclasses.asdict(cell)))
    finally:
        process.kill()
        process.wait()
    if process.returncode == -9:
        raise OutOfMemoryError("the system ended the measurement, most likely for want of memory", "a smaller --context")
    try:
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (err.strip().splitlines() or ["it said nothing"])[-1]
        raise EdgeError(f"the measurement ended with code {process.returncode}: {last}", "the same with --verbose") from None
    if "error" in found:
        error = EdgeError(found["error"], found["hint"])
        error.exit_code = found["exit_code"]
        raise error
    return found
