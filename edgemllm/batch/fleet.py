"""A batch on Ray: a pool of actors, each with the model, that Ray Data keeps fed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import signal
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgemllm.batch.answerer import Answerer, line
from edgemllm.batch.job import Job
from edgemllm.batch.seats import seats
from edgemllm.batch.work import Work
from edgemllm.errors import EdgeError, UsageError
from edgemllm.launch import Launch

PACKAGES = ("ray", "pyarrow", "pandas")
STORE_BYTES = 100 << 20
"""Ray's object store on this machine: works and lines are small."""
REACH_S = 5.0
QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_LOG_LEVEL": "CRITICAL"}
MOST_BLOCKS = 10_000
"""Works beyond that share tasks: a line is written when those of its task are done."""


def check_extra() -> None:
    """Raise UsageError where a package of the extra is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--ray needs {', '.join(missing)}, which is not installed", "pip install 'edgemllm[ray]'")


class Worker:
    """What an actor does: loads the model once, and answers the works it is given."""

    def __init__(self, job: Job, questions: int) -> None:
        self.answerer = Answerer(*job.planned(questions))

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Return a line for every work, both as JSON."""
        return {"line": [json.dumps(self.answerer.line(Work.of(text))) for text in batch["work"]]}


class Fleet:
    """Workers on this machine (`local`), or on the cluster at `address`. Use it as a context manager."""

    def __init__(self, address: str, job: Job, launch: Launch, questions: int, wanted: int | None = None) -> None:
        self._job, self._questions = job, questions
        _connect(os.environ.get("RAY_ADDRESS", "local") if address == "here" else address)
        import ray

        machines = sum(node["Alive"] for node in ray.nodes())
        try:
            self.seats = seats(launch.plan, launch.device == "cuda", ray.cluster_resources(), machines, wanted)
        except EdgeError:
            ray.shutdown()
            raise

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def lines(self, works: Sequence[Work]) -> Iterator[dict[str, Any]]:
        """Return a line for each work, in any order, each once, whatever becomes of the workers.

        A work whose worker died is given to another as often as the job's `retries` say, then its line has that as its error.
        """
        left = {work.id: work for work in works}
        for _ in range(self._job.retries + 1):
            for made in self._round(list(left.values())):
                if left.pop(made["id"], None) is not None:
                    yield made
            if not left:
                return
        for work in left.values():
            yield line(
                work, answers=[], attempts=self._job.retries + 1, failure=EdgeError("the worker died that was answering it")
            )

    def _round(self, works: Sequence[Work]) -> Iterator[dict[str, Any]]:
        """Return what comes back when each is given to a worker once."""
        import ray

        try:
            for row in self._dataset(works).iter_batches(batch_size=None, prefetch_batches=0):
                yield from map(json.loads, row["line"])
        except ray.exceptions.RayError as error:
            if (own := _own(error)) is not None:
                raise own from None

    def _dataset(self, works: Sequence[Work]) -> Any:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # those of a worker that died; they are given out again
        rows = [{"work": work.as_json()} for work in works]
        size = min(self.seats.workers, len(works))
        pool = ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of max_task_retries, for which there is no other way yet
            return ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map_batches(
                Worker,
                fn_constructor_args=(self._job, self._questions),
                batch_size=1,
                compute=pool,
                num_cpus=self.seats.cpus,
                num_gpus=self.seats.gpus,
                max_task_retries=0,  # by Ray: a video that kills its worker would be tried indefinitely
            )


def _connect(address: str) -> None:
    """Start Ray here, or join a cluster. Raises EdgeError where there is none."""
    verbose = logging.getLogger().isEnabledFor(logging.INFO)
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **({} if verbose else QUIET)}.items():
        os.environ.setdefault(name, value)
    place = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    if place:
        try:
            socket.create_connection((place[1], int(place[2])), REACH_S).close()
        except OSError as error:
            raise _unreachable(address, (error.strerror or str(error)).lower()) from error
    import ray

    quiet = {} if verbose else {"log_to_driver": False, "logging_level": logging.CRITICAL}
    local = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if address == "local" else {}
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.nullcontext() if verbose else _silenced():
            ray.init(address=address, **quiet, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address, str(error).splitlines()[0]) from error
    finally:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, before)  # Ray has put its own there


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Lead standard error to nothing, where Ray's C++ reports that it will report nothing."""
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)


def _unreachable(address: str, reason: str) -> EdgeError:
    return UsageError(f"--ray {address}: no Ray cluster answers there ({reason})", "ray status; --ray alone starts one here")


def _own(error: BaseException | None) -> EdgeError | None:
    """Return the error of ours that Ray wrapped: a worker that could not start."""
    while error is not None:
        if isinstance(error, EdgeError):
            return error
        error = error.__cause__
    return None
