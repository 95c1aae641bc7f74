"""What tests of sessions do with a server: make, describe, wait, ask, and send frames."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from PIL import Image
from server import Served

from edgemllm.media.video import Video
from edgemllm.models.loading import DEMO

QUESTION = "What number was with the red square?"


def make(served: Served, **wish: Any) -> str:
    answer = served.post("/v1/sessions", **wish)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def described(served: Served, name: str) -> dict[str, Any]:
    found: dict[str, Any] = served.http.get(f"/v1/sessions/{name}").json()
    return found


def wait_for(served: Served, name: str, condition: Any, seconds: float = 30) -> dict[str, Any]:
    ends = time.monotonic() + seconds
    while not condition(now := described(served, name)):
        assert time.monotonic() < ends, now
        time.sleep(0.05)
    return now


def ended(now: dict[str, Any]) -> bool:
    return now["status"] == "open" and now["frames"] > 0


def ask(served: Served, name: str, question: str = QUESTION) -> str:
    answer = served.post(f"/v1/sessions/{name}/ask", question=question, stream=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["answer"])


def frames(count: int) -> list[bytes]:
    """The lecture's first frames as files."""
    with Video.open(DEMO / "lecture.mp4", max_frames=None) as video:
        found = []
        for _, frame in zip(range(count), video, strict=False):
            file = BytesIO()
            Image.fromarray(frame.pixels).save(file, "PNG")
            found.append(file.getvalue())
    return found


def events(served: Served, path: str, **body: Any) -> Iterator[tuple[str, Any]]:
    """Server-sent events, by name."""
    method = "POST" if body else "GET"
    with served.http.stream(method, path, json=body or None) as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))
