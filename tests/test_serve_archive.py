"""Archives of `edgemllm serve`: sessions and answers look again at what their cache has lost; files come and go with them."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("httpx", reason="the extra [dev] has an HTTP client")

from camera import Camera
from command import run
from server import Served, serving
from sessions import QUESTION, ask, described, ended, events, frames, make, wait_for

from edgemllm.archive.archive import Archive
from edgemllm.archive.extent import Extent, merged
from edgemllm.models.loading import DEMO

SMALL = {"source": "lecture", "policy": "streaming-llm"}
"""In 48 slots it has lost the red square long before the end."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving("--kv-budget", "48", "--sleep-after", "2s", "--archive", str(folder), "--max-tokens", "8") as server:
        yield server


def file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.db"


def seconds(path: Path) -> list[float]:
    """The frames of an archive in their order, which another process may be writing to."""
    archive = Archive(path, writing=False)
    found = [place.first for place in archive.within(1, 0, 1e9)]
    archive.close()
    return found


def test_a_session_looks_again_at_what_its_cache_has_lost(served: Served, folder: Path) -> None:
    with_archive, without = make(served, **SMALL), make(served, **SMALL, archive=False)
    now = wait_for(served, with_archive, ended)
    assert now["archive"]["video"] == [[0, 149]]
    assert now["archive"]["growing"]
    assert now["archive"]["bytes"] > 100_000
    assert wait_for(served, without, ended)["archive"] is None
    assert ask(served, without) != "5"
    got = dict(events(served, f"/v1/sessions/{with_archive}/ask", question=QUESTION))["answer"]
    assert got["answer"] == "5"
    assert any(18 <= first <= 23 for first, _ in got["recalled"]["video"])
    assert got["recall_ms"] > 0
    assert 0 < got["recall_tokens"] <= 12
    now = described(served, with_archive)
    assert now["recalled"] == got["recalled"]
    assert now["answers"][-1]["recalled"] == got["recalled"]
    assert now["kv"]["tokens"] <= 48
    assert file_of(folder, with_archive).stat().st_mode & 0o777 == 0o600
    assert not file_of(folder, without).exists()
    for name in (with_archive, without):
        served.http.delete(f"/v1/sessions/{name}")
    assert not list(folder.glob(f"{with_archive}*"))


def test_a_session_that_sleeps_wakes_with_its_archive_and_clear_forgets_it(served: Served, folder: Path) -> None:
    name = make(served, **SMALL)
    wait_for(served, name, ended)
    served.post(f"/v1/sessions/{name}/save")
    wait_for(served, name, lambda now: now["status"] == "asleep")
    Archive(file_of(folder, name)).close()  # nobody else holds it
    assert ask(served, name) == "5"
    served.post(f"/v1/sessions/{name}/clear")
    now = described(served, name)
    assert (now["archive"]["video"], now["kv"]["seen_tokens"]) == ([], 0)
    assert ask(served, name) != "5"
    restored = served.post(f"/v1/sessions/{name}/restore")
    assert restored.status_code == 200, restored.text
    assert restored.json()["archive"]["video"] == [], "what is forgotten is not brought back"
    served.http.delete(f"/v1/sessions/{name}")


def test_frames_and_words_that_are_sent_are_kept_and_found(served: Served, folder: Path) -> None:
    name = make(served, policy="streaming-llm", kv_budget=256)
    for picture in frames(30):
        assert served.http.post(f"/v1/sessions/{name}/frames", content=picture).status_code == 200
    story = "".join(f"Lamp {number} was lit by keeper {number % 7}.\n" for number in range(30))
    served.post(f"/v1/sessions/{name}/text", text=story)
    got = served.post(f"/v1/sessions/{name}/ask", question="Who lit lamp 3?", stream=False).json()
    assert got["recalled"]["lines"][0][0] <= 4
    listed = run("archive", str(file_of(folder, name)), "--search", "lamp 3").stdout
    assert listed.startswith("line 3  text  Lamp 2 was lit by keeper 2. Lamp 3")
    served.http.delete(f"/v1/sessions/{name}")


def test_an_answer_about_a_video_looks_again_too_and_leaves_nothing(served: Served, folder: Path) -> None:
    video = "data:video/mp4;base64," + base64.b64encode((DEMO / "lecture.mp4").read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": QUESTION}]
    body = {"model": "demo", "messages": [{"role": "user", "content": content}]}
    about = served.post("/v1/chat/completions", **body).json()["edgemllm"]
    assert any(18 <= first <= 23 for first, _ in about["recalled"]["video"])
    assert about["recall_ms"] > 0
    assert "recalled" not in served.post("/v1/chat/completions", **body, archive=False).json()["edgemllm"]
    assert not list(folder.glob("answer-*"))


def test_killed_sessions_come_back_with_their_archives_and_what_they_had_not_saved(tmp_path: Path) -> None:
    camera, kept = Camera(rate=20), tmp_path / "a"
    state, door = str(tmp_path / "s"), f"door={camera.address}"
    arguments = ("--kv-budget", "48", "--state", state, "--source", door, "--archive", str(kept))
    with serving(*arguments) as served:
        names = [make(served, **SMALL), make(served, policy="streaming-llm"), make(served, source="door", fps=5)]
        wait_for(served, names[0], ended)
        for picture in frames(20):
            served.http.post(f"/v1/sessions/{names[1]}/frames", content=picture)
        for name in names[:2]:
            ask(served, name, "What number was with the blue circle?")
            served.post(f"/v1/sessions/{name}/save")
        want = [ask(served, name) for name in names[:2]]
        for name in names[:2]:
            served.post(f"/v1/sessions/{name}/restore")
        ends = time.monotonic() + 20
        while len(list((tmp_path / "s").glob("*/session.edge"))) < 2:
            assert time.monotonic() < ends
            time.sleep(0.1)
        time.sleep(1.5)  # what is quiet for a second is on disk
        for picture in frames(3):
            served.http.post(f"/v1/sessions/{names[1]}/frames", content=picture)
        served.running.process.kill()
        served.running.process.join()
    seen = seconds(kept / f"{names[2]}.db")
    with serving(*arguments) as served:
        wait_for(served, names[2], lambda now: now["status"] == "watching" and now.get("frames"))
        now = seconds(kept / f"{names[2]}.db")
        assert now[: len(seen)] == seen, "what was not saved is archived, and keeps its seconds"
        assert len(now) > len(seen)
        served.http.delete(f"/v1/sessions/{names[2]}")
        assert ask(served, names[0]) == want[0]
        served.http.post(f"/v1/sessions/{names[1]}/frames", content=frames(1)[0])
        now = described(served, names[1])
        assert now["video_s"] == 23, "frames 20 to 22 are archived, and keep their seconds"
        assert now["archive"]["video"] == [[0, 23]]
    camera.unplug()
    with serving(*arguments[:-2]) as served:
        assert ask(served, names[0])
        now = described(served, names[0])
        assert not now["archive"]["growing"]
        assert "keeps no archive: the server has no --archive" in now["archive"]["notice"]


def test_a_damaged_archive_ends_archiving_and_not_the_session(served: Served, folder: Path) -> None:
    name = make(served, policy="streaming-llm")
    for picture in frames(3):
        served.http.post(f"/v1/sessions/{name}/frames", content=picture)
    wait_for(served, name, lambda now: now["status"] == "asleep")
    for ending in ("", "-wal", "-shm"):
        (folder / f"{name}.db{ending}").unlink(missing_ok=True)
    file_of(folder, name).write_bytes(b"no database at all" * 1000)
    assert ask(served, name)
    now = described(served, name)
    assert not now["archive"]["growing"]
    assert "keeps no archive" in now["archive"]["notice"]
    assert str(folder) not in now["archive"]["notice"], "clients do not learn where it lies"
    assert f"session {name}: warning" in served.running.stderr
    assert served.http.post(f"/v1/sessions/{name}/frames", content=frames(1)[0]).status_code == 200
    served.http.delete(f"/v1/sessions/{name}")


def test_an_archive_that_cannot_be_is_refused(served: Served, folder: Path, tmp_path: Path) -> None:
    with serving("--kv-budget", "64") as plain:
        refused = plain.post("/v1/sessions", archive=True)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "archive")
        body = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "archive": True}
        assert plain.post("/v1/chat/completions", **body).status_code == 400
        assert plain.http.get("/v1/sources").json()["archive"] is False
    second = run("serve", "--port", "0", "--state", str(tmp_path), "--archive", str(folder))
    assert second.returncode == 2
    assert "another server keeps its archives" in second.stderr
    small = run("serve", "--port", "0", "--state", str(tmp_path), "--archive", str(tmp_path / "a"), "--archive-limit", "3")
    assert small.returncode == 2
    schemas = served.http.get("/openapi.json").json()["components"]["schemas"]
    assert "archive" in schemas["Wish"]["properties"]
    assert "archive" in schemas["ChatRequest"]["properties"]
    for kind in ("Told", "Measured", "Described"):
        assert {"recalled", "recall_tokens", "recall_ms"} <= set(schemas[kind]["properties"])
    assert "growing" in schemas["Archived"]["properties"]


def test_spans_are_made_one_where_they_meet_and_grow_with_the_archive(tmp_path: Path) -> None:
    assert merged([[5, 9], [0, 4], [20, 21], [6, 7]], 21) == [[0, 9], [20, 21]]
    archive, extent = Archive(tmp_path / "a.db"), Extent()
    medium = archive.medium("camera")
    for seconds in (range(5), range(10, 12), range(3)):
        archive.add_frames(medium, [(float(second), b"jpeg", None) for second in seconds])
        extent.look(archive)
    assert extent.spans == [[0, 4], [10, 11]]
    archive.close()
