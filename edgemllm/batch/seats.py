"""How many workers fit on a machine or a cluster, and what each takes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgemllm.device.memory import human_bytes
from edgemllm.errors import DoesNotFitError
from edgemllm.planning.plan import Plan


@dataclass(frozen=True)
class Seats:
    """Workers, and the CPUs and the share of a GPU that each takes."""

    workers: int
    cpus: float
    gpus: float


def seats(plan: Plan, on_gpu: bool, resources: Mapping[str, float], machines: int, wanted: int | None) -> Seats:
    """Return as many workers as `wanted`, or as fit, where each machine or GPU has the free memory of the plan.

    Raises DoesNotFitError where `wanted` do not fit.
    """
    each = plan.total_bytes  # with the margin: it is for what a process takes besides its model
    fit = max(1, plan.free_bytes // each)
    cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0) if on_gpu else 0.0
    most = int(gpus * fit) if gpus else machines * fit
    workers = wanted or max(1, min(most, int(cpus)))
    if workers > most:
        place = f"{gpus:g} x GPU" if gpus else f"{machines} x machine"
        raise DoesNotFitError(
            f"--workers {workers}: each takes {human_bytes(each)}, and {human_bytes(plan.free_bytes)} are free ({place})",
            f"--workers {most}, or a smaller --kv-budget",
        )
    share = cpus / workers
    return Seats(workers, share // 1 if share >= 1 else share, 1 / fit if gpus else 0.0)
