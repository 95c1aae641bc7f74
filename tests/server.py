"""A server of the tests' own: the command in a process, on a free port, with the demo model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from command import Running, start

READY = "(API: /docs)"


@contextmanager
def serving(*arguments: str, cwd: Path | None = None) -> Iterator[Served]:
    """`edgemllm serve ARGUMENTS`, until the block ends."""
    with tempfile.TemporaryDirectory() as state:
        kept = () if "--state" in arguments else ("--state", state)
        running = start("serve", "--port", "0", *kept, *arguments, cwd=cwd)
        yield from _running(running)


def _running(running: Running) -> Iterator[Served]:
    try:
        running.wait_for(READY)
        served = Served(running)
        with served.http:
            yield served
    finally:
        if running.process.is_alive():
            running.send(15)
        running.end()


class Served:
    """A server that runs, and an HTTP client for it."""

    def __init__(self, running: Running) -> None:
        self.running = running
        [self.address] = re.findall(r"http://\S+", running.stderr)
        self.http = httpx.Client(base_url=self.address, timeout=60)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    @property
    def metrics(self) -> dict[str, float]:
        """Counts without labels, by name."""
        lines = [line.split() for line in self.http.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines if "{" not in name}
