"""`edgemllm serve` as OpenAI's client and hostile strangers see it."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgemllm.models.loading import DEMO

openai = pytest.importorskip("openai", reason="the extra [dev] has OpenAI's client")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from command import run  # noqa: E402
from server import Served, serving  # noqa: E402

VIDEO = "data:video/mp4;base64," + base64.b64encode((DEMO / "lecture.mp4").read_bytes()).decode()
QUESTION = "What number was with the red square?"
KEY = "a-key-of-the-tests"
WHALE = {"model": "demo", "messages": [{"role": "user", "content": "What is a whale?"}]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    media = tmp_path_factory.mktemp("media")
    (media / "lecture.mp4").write_bytes((DEMO / "lecture.mp4").read_bytes())
    (media / "out").symlink_to("/etc")
    with serving("--media-path", str(media), "--max-body", "4MiB", "--max-megapixels", "4", "--parallel", "2") as server:
        server.media = media  # type: ignore[attr-defined]
        yield server


@pytest.fixture
def client(served: Served) -> Any:
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def slide() -> str:
    """The lecture's slide with the red square, as the demo model's data: address."""
    from edgemllm.media.video import Video

    with Video.open(DEMO / "lecture.mp4") as video:
        frame = next(iter(video))
    file = BytesIO()
    Image.fromarray(frame.pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ---- OpenAI's client --------------------------------------------------------------------------------------------


def test_openai_s_client_chats_and_sees_what_the_cache_holds(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "edgemllm"
    answer = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "What is a whale?"}])
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.edgemllm["kv"]["seen_tokens"] == answer.usage.total_tokens
    assert answer.edgemllm["kv"]["evicted_tokens"] == 0


@pytest.mark.parametrize("kind", ["video_url", "input_video"])
def test_a_video_is_answered_as_by_the_command_line(client: Any, kind: str) -> None:
    messages = [user({"type": kind, kind: {"url": VIDEO}}, text(QUESTION))]
    answer = client.chat.completions.create(model="demo", messages=messages)
    assert answer.choices[0].message.content == "5"
    [[first, last]] = answer.edgemllm["remembered"]["video"]
    assert (first, last) == (0, 149)


def test_a_stream_brings_the_same_answer_piece_by_piece(client: Any, served: Served) -> None:
    messages = [user(text(QUESTION), {"type": "video_url", "video_url": {"url": f"file://{served.media}/lecture.mp4"}})]  # type: ignore[attr-defined]
    chunks = list(
        client.chat.completions.create(model="demo", messages=messages, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "5"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.prompt_tokens > 500
    assert chunks[-2].edgemllm["kv"]["evicted_tokens"] == 0


def test_a_picture_an_earlier_turn_and_a_system_prompt_are_taken_in(client: Any) -> None:
    messages = [
        {"role": "system", "content": "Answer briefly."},
        user({"type": "image_url", "image_url": {"url": slide()}}, text("What is on the screen now?")),
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "What color is it?"},
    ]
    long = client.chat.completions.create(model="demo", messages=messages)
    short = client.chat.completions.create(model="demo", messages=messages[1:2])
    assert long.usage.prompt_tokens > short.usage.prompt_tokens > 10
    assert long.choices[0].message.content


def test_an_answer_ends_at_its_length_or_before_a_stop(client: Any) -> None:
    asked = {"model": "demo", "messages": [{"role": "user", "content": "Once upon a time"}], "temperature": 50.0, "seed": 3}
    whole = client.chat.completions.create(**asked, max_tokens=12).choices[0]
    assert whole.finish_reason == "length"
    assert client.chat.completions.create(**asked, max_tokens=12).choices[0].message.content == whole.message.content
    stop = whole.message.content[6:9]
    cut = client.chat.completions.create(**asked, max_tokens=12, stop=[stop]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == whole.message.content[: whole.message.content.index(stop)].rstrip()


def test_errors_are_those_that_the_client_knows(client: Any) -> None:
    def create(**more: Any) -> None:
        client.chat.completions.create(**({"model": "demo", "messages": [{"role": "user", "content": "x"}]} | more))

    with pytest.raises(openai.NotFoundError, match="'gpt-4o' is not served here") as caught:
        create(model="gpt-4o")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="tool_choice is not served here"):
        create(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required")
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.role"):
        create(messages=[{"role": "robot", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="nothing to answer") as caught:
        create(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        create(temperature=-1)
    with pytest.raises(openai.BadRequestError, match="not base64"):
        create(messages=[user({"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}, text("x"))])


# ---- requests as others send them -------------------------------------------------------------------------------

RECORDED = {path.stem: json.loads(path.read_text())["requests"] for path in (Path(__file__).parent / "recorded").iterdir()}
"""What real clients sent; each file says which, and how it was recorded."""


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, requests in sorted(RECORDED.items()) for number in range(len(requests))]
)
def test_what_other_clients_sent_is_answered(served: Served, name: str, number: int) -> None:
    body = json.loads(json.dumps(RECORDED[name][number]).replace('"PICTURE"', json.dumps(slide())))
    answer = served.post("/v1/chat/completions", **body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert answer.text.endswith("data: [DONE]\n\n")
        assert "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        about = next(chunk["edgemllm"] for chunk in chunks if "edgemllm" in chunk)
        assert ("usage" in chunks[-1]) == ("stream_options" in body)
    else:
        assert answer.json()["choices"][0]["message"]["content"]
        about = answer.json()["edgemllm"]
    assert about["ignored"] == (["tools"] if "tools" in body else [])


def test_the_api_is_described_and_its_page_needs_no_network(served: Served) -> None:
    paths = served.http.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/models", "/health", "/metrics"} <= set(paths)
    page = served.http.get("/docs").text
    assert not re.search(r"(?:src|href)=\"?https?://", page)
    assert served.http.get(re.findall(r'src="(\S+\.js)"', page)[0]).status_code == 200
    assert served.http.get("/health").json() == {"status": "ok"}


# ---- clients that go away, or do not read -----------------------------------------------------------------------


def raw(served: Served, body: dict[str, Any], size: int = 0) -> socket.socket:
    """A connection on which a request was sent."""
    host, port = served.address.removeprefix("http://").split(":")
    connection = socket.socket()
    if size:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    connection.connect((host, int(port)))
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    )
    connection.sendall(head.encode() + b"\r\n\r\n" + data)
    return connection


def endless(stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Once upon a time"}]
    return {"model": "demo", "messages": messages, "temperature": 50.0, "max_tokens": 20_000, "stream": stream}


def wait_for(condition: Any, seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(served: Served, stream: bool) -> None:
    before = served.metrics
    connection = raw(served, endless(stream))
    wait_for(lambda: served.metrics["edgemllm_answers_running"] == 1)
    if stream:
        assert connection.recv(100)
    time.sleep(0.3)
    connection.close()
    wait_for(lambda: served.metrics["edgemllm_answers_running"] == 0)
    after = served.metrics
    assert after["edgemllm_abandoned_answers_total"] == before["edgemllm_abandoned_answers_total"] + 1
    computed = after["edgemllm_generated_tokens_total"] - before["edgemllm_generated_tokens_total"]
    assert computed < 2_000
    time.sleep(0.2)
    assert served.metrics["edgemllm_generated_tokens_total"] == after["edgemllm_generated_tokens_total"]


def test_a_slow_reader_holds_nobody_up(served: Served) -> None:
    body, count = {**endless(True), "max_tokens": 100}, "edgemllm_time_to_first_token_seconds_count"
    before = served.metrics[count]
    slow = [raw(served, body, size=2048) for _ in range(2)]  # as many as there are places
    wait_for(lambda: served.metrics[count] == before + 2, 60)  # both are computed, and nobody has read a byte
    wait_for(lambda: served.metrics["edgemllm_answers_running"] == 0)
    assert served.post("/v1/chat/completions", **WHALE).status_code == 200
    for connection in slow:
        connection.close()


def test_many_at_once_are_all_answered(served: Served) -> None:
    answers: list[int] = []

    def ask() -> None:
        answers.append(served.post("/v1/chat/completions", **WHALE).status_code)

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 24


# ---- requests that try ------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> str:
    """A PNG of a few bytes that says it is large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(content).decode()


PLAYLIST = "data:video/mp4;base64," + base64.b64encode(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n").decode()
HOSTILE = [
    ("image_url", "file:///etc/passwd", 403),
    ("image_url", "file://{media}/../../../../etc/passwd", 403),
    ("image_url", "file://{media}/%2e%2e/%2e%2e/etc/passwd", 403),
    ("image_url", "file://{media}/out/passwd", 403),
    ("video_url", "file://{media}/\0", 403),
    ("image_url", "http://127.0.0.1:{port}/health", 403),
    ("image_url", "http://localhost:{port}/health", 403),
    ("image_url", "http://[::ffff:127.0.0.1]:{port}/health", 403),
    ("image_url", "http://2130706433:{port}/health", 403),
    ("image_url", "http://169.254.169.254/latest/meta-data", 403),
    ("image_url", "http://10.0.0.1/", 403),
    ("image_url", "gopher://127.0.0.1/", 400),
    ("image_url", "/etc/passwd", 400),
    ("video_url", "rtsp://127.0.0.1/live", 400),
    ("video_url", PLAYLIST, 400),
    ("image_url", bomb(20_000, 20_000), 400),
    ("image_url", bomb(3_000, 3_000), 400),
]


@pytest.mark.parametrize(("kind", "url", "status"), HOSTILE)
def test_what_is_not_allowed_is_refused_by_status_and_one_line(served: Served, kind: str, url: str, status: int) -> None:
    url = url.replace("{media}", str(served.media)).replace("{port}", served.address.rpartition(":")[2])  # type: ignore[attr-defined]
    lines = served.running.stderr.count("\n")
    seen = served.metrics["edgemllm_prompt_tokens_total"]
    answer = served.post("/v1/chat/completions", model="demo", messages=[user({"type": kind, kind: {"url": url}}, text("x"))])
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["type"] in ("permission_error", "invalid_request_error")
    assert served.metrics["edgemllm_prompt_tokens_total"] == seen, "something was loaded"
    assert served.running.stderr.count("\n") == lines + 1
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True), ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True), ("64:ff9b::5db8:d70e", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("100.64.0.1", False), ("224.0.0.1", False), ("0.0.0.0", False),
        ("::1", False), ("fe80::1%eth0", False), ("fd00::1", False), ("::ffff:10.0.0.1", False), ("2002:0a00:0001::", False),
        ("64:ff9b::a00:1", False),
    ],
)  # fmt: skip
def test_an_address_is_public_only_where_the_one_inside_is_too(address: str, public: bool) -> None:
    from edgemllm.commands.serve.fetch import is_public

    assert is_public(address) is public


def test_every_name_and_every_redirect_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemllm.commands.serve import fetch
    from edgemllm.commands.serve.refusal import Refusal

    class Redirect(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.2:1/secret" if self.path == "/away" else self.path)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        port = server.server_address[1]
        with pytest.raises(Refusal, match="localhost is not on the public network"):
            fetch.fetch(f"http://localhost:{port}/away", 100)
        monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")
        with pytest.raises(Refusal, match=r"127\.0\.0\.2 is not on the public network"):
            fetch.fetch(f"http://127.0.0.1:{port}/away", 100)
        with pytest.raises(Refusal, match="more than 3 redirects"):
            fetch.fetch(f"http://127.0.0.1:{port}/again", 100)
        server.shutdown()


def test_json_as_deep_as_it_is_long_is_refused(served: Served) -> None:
    head = {"Content-Type": "application/json"}
    answer = served.http.post("/v1/chat/completions", content=b"[" * 100_000, headers=head)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_who_still_sends_a_small_body_hears_why_it_is_refused(served: Served) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        start = f"POST /v1/sessions/none/frames?time=-1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2000\r\n\r\n"
        for part in (start.encode(), b"x" * 1000, b"x" * 1000):
            connection.sendall(part)
            time.sleep(0.1)
        got = connection.recv(4096)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" not in got, "the next request comes on the same connection"


def test_a_body_of_a_gigabyte_is_refused_before_it_is_read(served: Served) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    for head in (b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"):
        with socket.create_connection((host, int(port))) as connection:
            start = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n".encode()
            connection.sendall(start + head + b"\r\n\r\n")
            sent = 0
            try:
                while b"chunked" in head and sent < 64 << 20:
                    connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                    sent += 0x10000
            except OSError:  # it does not listen any more
                pass
            assert sent < 64 << 20
            if b"chunked" not in head:
                assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert served.http.get("/health").status_code == 200


def test_pages_of_other_origins_and_other_names_of_this_machine_are_refused(served: Served) -> None:
    assert served.http.get("/v1/models", headers={"Origin": "http://evil.example"}).status_code == 403
    assert served.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403


def test_a_key_is_asked_for_and_compared(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"another\n{KEY}\n")
    with serving("--api-key-file", str(tmp_path / "keys"), "--cors", "https://page.example") as served:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {KEY}"}):
            answer = served.http.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert served.http.get("/metrics").status_code == 401
        assert served.http.get("/health").status_code == 200
        page = {"Origin": "https://page.example", "Authorization": f"Bearer {KEY}"}
        assert served.http.get("/v1/models", headers=page).headers["access-control-allow-origin"] == "https://page.example"
        other = served.http.get("/v1/models", headers={**page, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        assert KEY not in served.running.stderr


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--host", "0.0.0.0"), 2, "there is no key"),
        (("--host", "0.0.0.0", "--api-key", " "), 2, "a key is empty"),
        (("--media-path", "missing"), 3, "no folder missing"),
        (("--parallel", "1000000"), 4, "--parallel below 1000000"),
        (("--max-body", "much"), 2, "not an amount of memory"),
        (("--kv-budget", "1000000GiB", "--dry-run"), 4, "does not fit"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_loaded(arguments: tuple[str, ...], code: int, words: str) -> None:
    done = run("serve", "--port", "0", *arguments)
    assert (done.returncode, done.stdout if "--dry-run" in arguments else done.stderr) != (0, "")
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr


def test_a_port_or_a_folder_in_use_is_said_and_sigterm_ends_with_its_code(tmp_path: Path) -> None:
    with serving("--state", str(tmp_path)) as served:
        for arguments, words in (
            (("--port", served.address.rpartition(":")[2]), "address already in use"),
            (("--port", "0", "--state", str(tmp_path)), "another server keeps its sessions"),
        ):
            done = run("serve", *arguments)
            assert (done.returncode, words in done.stderr) == (2, True), done.stderr
        os.kill(served.running.process.pid or 0, 15)
        served.running.process.join(20)
        assert served.running.process.exitcode == 143


# ---- turns ------------------------------------------------------------------------------------------------------


def test_turns_are_fair_by_time() -> None:
    from edgemllm.commands.serve.turns import BUSY, Turns

    turns, spent = Turns(), {"short": 0.0, "long": 0.0}

    def work(name: str, seconds: float) -> Iterator[float]:
        while True:
            began = time.monotonic()
            time.sleep(seconds)
            spent[name] += time.monotonic() - began
            yield BUSY

    for name, seconds in (("short", 0.002), ("long", 0.03)):
        turns.add(work(name, seconds), lambda failure: None)
    turns.start()
    time.sleep(0.8)
    turns.stop()
    assert not turns.alive
    assert 0.7 < spent["short"] / spent["long"] < 1.4
