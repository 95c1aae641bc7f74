"""Sessions of `edgemllm serve`: they watch, remember, are asked, share one memory, sleep, and survive the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from camera import Camera
from PIL import Image

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("httpx", reason="the extra [dev] has an HTTP client")

from server import Served, serving
from sessions import QUESTION, ask, described, ended, events, frames, make, wait_for

LECTURE = {"source": "lecture", "policy": "edge"}


@pytest.fixture(scope="module")
def camera() -> Iterator[Camera]:
    camera = Camera(rate=20)
    yield camera
    camera.unplug()


@pytest.fixture(scope="module")
def served(camera: Camera) -> Iterator[Served]:
    with serving("--source", f"door={camera.address}", "--kv-budget", "256", "--sleep-after", "2s") as server:
        yield server


def test_a_session_watches_and_answers_with_what_it_remembers(served: Served) -> None:
    name = make(served, **LECTURE)
    now = wait_for(served, name, ended)
    assert (now["frames"], now["budget_tokens"]) == (150, 256)
    assert now["kv"]["evicted_tokens"] > 0
    assert now["remembered"]["video"][-1][1] == 149
    got = list(events(served, f"/v1/sessions/{name}/ask", question=QUESTION))
    assert [kind for kind, _ in got] == ["piece", "answer"]
    assert got[-1][1]["answer"] == "5"
    assert described(served, name)["answers"][-1]["question"] == QUESTION
    snapshot = served.http.get(f"/v1/sessions/{name}/snapshot.jpg")
    assert Image.open(BytesIO(snapshot.content)).size[0] > 16
    assert served.http.delete(f"/v1/sessions/{name}").status_code == 204
    assert served.http.get(f"/v1/sessions/{name}").status_code == 404


def test_frames_and_words_are_sent_and_asked_about(served: Served) -> None:
    name = make(served)
    for picture in frames(8):
        assert served.http.post(f"/v1/sessions/{name}/frames", content=picture).status_code == 200
    assert described(served, name)["frames"] == 8
    assert served.http.post(f"/v1/sessions/{name}/frames?time=1", content=frames(1)[0]).status_code == 400
    assert served.http.post(f"/v1/sessions/{name}/frames", content=b"no picture").status_code == 400
    before = ask(served, name, "What is on the screen now?")
    assert served.post(f"/v1/sessions/{name}/save").json()["bytes"] > 1000
    assert served.post(f"/v1/sessions/{name}/text", text="A whale is an animal.\nIt swims.").json()["lines"] == 2
    ask(served, name, "Was there a red circle?")
    served.post(f"/v1/sessions/{name}/restore")
    now = described(served, name)
    assert (now["lines"], len(now["answers"])) == (0, 1)
    assert now["answers"][0]["answer"] == before
    served.post(f"/v1/sessions/{name}/clear")
    assert described(served, name)["kv"]["seen_tokens"] == 0
    served.http.delete(f"/v1/sessions/{name}")


def test_standing_questions_are_told_to_whoever_listens(served: Served, camera: Camera) -> None:
    name = make(served, source="door", fps=10, ask=[{"question": "What is there?", "every": "1s"}])
    heard: dict[str, Any] = {}
    for kind, fields in events(served, f"/v1/sessions/{name}/events"):
        heard.setdefault(kind, fields)
        if "answer" in heard and "lost" not in heard:
            camera.unplug()
        if "lost" in heard and not camera.plugged.is_set():
            camera.plug_in()
        if "back" in heard:
            break
    assert heard["stats"]["status"] == "watching"
    assert heard["answer"]["question"] == "What is there?"
    assert heard["lost"]["source"] == "door", "an address may hold a password"
    served.http.delete(f"/v1/sessions/{name}")


def test_what_does_not_fit_is_refused_with_the_arithmetic(served: Served) -> None:
    answer = served.post("/v1/sessions", kv_budget="900GiB")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "memory_budget_exceeded"
    assert "together" in answer.json()["error"]["message"]
    before = served.metrics["edgemllm_kv_reserved_bytes"]
    name = make(served)
    assert served.metrics["edgemllm_kv_reserved_bytes"] > before
    served.http.delete(f"/v1/sessions/{name}")
    assert served.metrics["edgemllm_kv_reserved_bytes"] == before


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({"source": "rtsp://192.168.1.1/live"}, 403),
        ({"source": "/etc/passwd"}, 403),
        ({"source": "file:///etc/passwd"}, 403),
        ({"source": "v4l2src ! appsink"}, 403),
        ({"policy": "./mine.py:Mine"}, 400),
        ({"policy": "h2o", "set": ["nothing=1"]}, 400),
        ({"kv_budget": "3"}, 409),
        ({"kv_budget": "lots"}, 400),
        ({"ask": [{"question": "x", "every": "0s"}]}, 400),
    ],
)
def test_what_a_session_may_not_be_is_refused(served: Served, wish: dict[str, Any], status: int) -> None:
    answer = served.post("/v1/sessions", **wish)
    assert answer.status_code == status, answer.text


def test_an_idle_session_sleeps_and_wakes_as_it_was(served: Served) -> None:
    name = make(served, **LECTURE)
    kv = wait_for(served, name, ended)["kv"]
    reserved = served.metrics["edgemllm_kv_reserved_bytes"]
    wait_for(served, name, lambda now: now["status"] == "asleep")
    assert served.metrics["edgemllm_kv_reserved_bytes"] < reserved
    assert ask(served, name) == "5"
    assert described(served, name)["kv"]["seen_tokens"] > kv["seen_tokens"]
    served.http.delete(f"/v1/sessions/{name}")


def test_a_client_that_goes_away_leaves_a_session_that_can_be_asked(served: Served) -> None:
    name = make(served)
    endless = {"question": "Once upon a time", "temperature": 50.0, "max_tokens": 20_000}
    for kind, _ in events(served, f"/v1/sessions/{name}/ask", **endless):
        assert kind == "piece"
        break
    now = wait_for(served, name, lambda now: now["answers"])
    assert now["answers"][0]["stopped"] is True
    assert ask(served, name, "What is a whale?")
    served.http.delete(f"/v1/sessions/{name}")


def test_answers_come_while_sessions_watch(served: Served) -> None:
    names = [make(served, source="door", fps=10) for _ in range(2)]
    times = []
    for _ in range(4):
        began = time.monotonic()
        body = {"model": "demo", "messages": [{"role": "user", "content": "What is a whale?"}]}
        assert served.post("/v1/chat/completions", **body).status_code == 200
        times.append(time.monotonic() - began)
    assert max(times) < 5
    seen = [wait_for(served, name, lambda now: now["frames"] > 5)["frames"] for name in names]
    assert min(seen) > 5
    for name in names:
        served.http.delete(f"/v1/sessions/{name}")


def test_a_session_that_is_never_quiet_is_written_too(tmp_path: Path) -> None:
    with serving("--kv-budget", "256", "--state", str(tmp_path), "--save-every", "1s") as served:
        name, ends = make(served), time.monotonic() + 20
        picture = frames(1)[0]
        while not (tmp_path / name / "session.edge").exists():
            assert time.monotonic() < ends
            served.http.post(f"/v1/sessions/{name}/frames", content=picture)
            time.sleep(0.1)
        served.running.process.kill()
        served.running.process.join()


def test_killed_sessions_come_back_and_answer_as_they_would_have(tmp_path: Path) -> None:
    arguments = ("--kv-budget", "256", "--state", str(tmp_path))
    with serving(*arguments) as served:
        names = [make(served, **LECTURE), make(served, source="lecture", kv_budget=128), make(served)]
        for picture in frames(5):
            served.http.post(f"/v1/sessions/{names[2]}/frames", content=picture)
        for name in names[:2]:
            wait_for(served, name, ended)
        for name in names:
            ask(served, name, "What number was with the blue circle?")
            served.post(f"/v1/sessions/{name}/save")
        want = [ask(served, name) for name in names]
        for name in names:
            served.post(f"/v1/sessions/{name}/restore")
        ends = time.monotonic() + 20
        while len(list(tmp_path.glob("*/session.edge"))) < 3:
            assert time.monotonic() < ends
            time.sleep(0.1)
        time.sleep(1.5)  # what is quiet for a second is on disk
        served.running.process.kill()
        served.running.process.join()
    with serving(*arguments) as served:
        assert {each["id"] for each in served.http.get("/v1/sessions").json()["data"]} == set(names)
        assert [ask(served, name) for name in names] == want
        assert [len(described(served, name)["answers"]) for name in names] == [2, 2, 2]
