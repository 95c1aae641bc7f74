"""Measure `edgemllm serve` on this machine: memory over an hour, many clients, clients that leave or read slowly, and fairness.

    python -m lab.measure.serving hour clients leavers fairness readers

starts a server with the demo model for each, with cameras of its own (MJPEG over HTTP, the sample lecture again and again), and
prints what it found. `--minutes` shortens the hour, `--archive` gives its session an archive. Exit 1 where memory grew by more
than 2%, an answer was lost, or a slow reader held another one up.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import httpx

from edgemllm.media.video import Video
from edgemllm.models.loading import DEMO

GROWTH = 1.02
QUESTION = "What number was with the red square?"
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "What is a whale?"}]}
ENDLESS = {**CHAT, "temperature": 50.0, "max_tokens": 20_000, "stream": True}
"""Random words: nearly never at an end by itself."""


@contextlib.contextmanager
def camera(rate: float) -> Iterator[str]:
    """Serve the lecture again and again, `rate` pictures a second; gives the address."""
    with Video.open(DEMO / "lecture.mp4") as video:
        pictures = [bytes(cv2.imencode(".jpg", cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2BGR))[1]) for frame in video]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):
                for picture in itertools.cycle(pictures):
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")
                    time.sleep(1 / rate)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/video.mjpg"
        server.shutdown()


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[httpx.Client]:
    """Run a server; gives a client of it."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "edgemllm", "serve", "--port", "0", "--state", state, *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            lines = (re.findall(r"http://\S+", line) for line in process.stderr)
            [address] = next(found for found in lines if found)  # after what an archive says of the model
            threading.Thread(target=process.stderr.read, daemon=True).start()
            try:
                with httpx.Client(base_url=address, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
                    yield client
            finally:
                process.terminate()
                process.wait()


def metrics(client: httpx.Client) -> dict[str, float]:
    """Return the counts without labels."""
    lines = [line.split() for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines if "{" not in name}


def rss(client: httpx.Client) -> float:
    """Return the server's memory in MiB."""
    return metrics(client)["process_resident_memory_bytes"] / 2**20


def session(client: httpx.Client, **wish: Any) -> str:
    """Begin a session; returns its path."""
    answer = client.post("/v1/sessions", json=wish)
    answer.raise_for_status()
    return f"/v1/sessions/{answer.json()['id']}"


def hour(minutes: int, archive: bool = False) -> bool:
    """Watch a camera and ask a question a minute; memory after a sixth of the time and at the end."""
    found, kv = [], []
    with contextlib.ExitStack() as at_end:
        options = ["--archive", at_end.enter_context(tempfile.TemporaryDirectory())] if archive else []
        source = f"door={at_end.enter_context(camera(10))}"
        client = at_end.enter_context(serving("--source", source, "--kv-budget", "256", *options))
        path = session(client, source="door")
        for minute in range(1, minutes + 1):
            time.sleep(60)
            client.post(f"{path}/ask", json={"question": QUESTION, "stream": False}).raise_for_status()
            found.append(rss(client))
            now = client.get(path).json()
            kv.append(now["kv"]["bytes"])
            print(f"\r{minute} min, {found[-1]:.1f} MiB", end="", file=sys.stderr)
    print(file=sys.stderr)
    early, late = found[max(0, minutes // 6 - 1)], found[-1]
    print(
        f"hour: {minutes} min, {now['frames']} frames, {now['dropped']} dropped, {minutes} questions; RSS {early:.1f} MiB "
        f"after {max(1, minutes // 6)} min, {late:.1f} MiB at the end ({late / early - 1:+.2%}), at most {max(found):.1f} MiB; "
        f"KV {min(kv[1:], default=0):,} to {max(kv[1:], default=0):,} bytes after the first minute; archive: {now['archive']}"
    )
    return late <= GROWTH * early


def clients(count: int = 200, seconds: float = 30) -> bool:
    """Let many clients ask at once, each again as soon as it is answered."""
    with serving() as client:
        client.post("/v1/chat/completions", json=CHAT).raise_for_status()
        before, ends = rss(client), time.monotonic() + seconds
        times: list[float] = []
        peaks = [before]

        def ask(_: int) -> int:
            failed = 0
            while time.monotonic() < ends:
                began = time.monotonic()
                failed += client.post("/v1/chat/completions", json=CHAT).status_code != 200
                times.append(time.monotonic() - began)
            return failed

        def look() -> None:
            while time.monotonic() < ends:
                peaks.append(rss(client))
                time.sleep(1)

        with ThreadPoolExecutor(count + 1) as pool:
            pool.submit(look)
            failed = sum(pool.map(ask, range(count)))
        after = rss(client)
    times.sort()
    print(
        f"clients: {count} at once for {seconds:g} s, {len(times)} answers, {failed} failed; wait median "
        f"{statistics.median(times):.2f} s, p95 {times[int(0.95 * len(times))]:.2f} s; RSS {before:.0f} MiB before, "
        f"{max(peaks):.0f} at most, {after:.0f} after"
    )
    return not failed


def leavers(count: int = 50) -> bool:
    """Let clients leave after their first piece; what is computed for nobody."""
    with serving("--parallel", "4") as client:
        with contextlib.ExitStack() as at_end:

            def leave(_: int) -> None:
                with client.stream("POST", "/v1/chat/completions", json=ENDLESS) as answer:
                    next(answer.iter_bytes())

            pool = at_end.enter_context(ThreadPoolExecutor(count))
            list(pool.map(leave, range(count)))
        time.sleep(1)
        one = metrics(client)
        time.sleep(5)
        two = metrics(client)
    names = ("edgemllm_generated_tokens_total", "edgemllm_abandoned_answers_total", "edgemllm_answers_running")
    tokens, left, running = (one[name] for name in names)
    later = two[names[0]] - tokens
    print(
        f"leavers: {count} left after the first piece; {tokens:.0f} tokens in all, {tokens / count:.1f} for each; "
        f"{left:.0f} abandoned, {running:.0f} still running after 1 s, {later:.0f} tokens in the next 5 s"
    )
    return not later and not running and left == count


def fairness(answers: int = 20) -> bool:
    """Let two sessions watch cameras beside a chat that never ends and one that asks short questions."""
    with (
        camera(10) as one,
        camera(10) as two,
        serving("--source", f"one={one}", "--source", f"two={two}", "--kv-budget", "256") as client,
    ):

        def ask() -> float:
            began = time.monotonic()
            client.post("/v1/chat/completions", json=CHAT).raise_for_status()
            return time.monotonic() - began

        alone = statistics.median(ask() for _ in range(answers))
        paths = [session(client, source=name, fps=5) for name in ("one", "two")]
        time.sleep(5)
        watching = sorted(ask() for _ in range(answers))
        pieces = 0
        with client.stream("POST", "/v1/chat/completions", json=ENDLESS) as endless:
            began, seen = time.monotonic(), [client.get(path).json()["frames"] for path in paths]
            for pieces, _ in enumerate(endless.iter_lines()):  # noqa: B007
                if time.monotonic() - began > 10:
                    break
            took = time.monotonic() - began
            now = [client.get(path).json() for path in paths]
    rates = [(each["frames"] - before) / took for each, before in zip(now, seen, strict=True)]
    print(
        f"fairness: a short answer takes {alone * 1000:.0f} ms alone, beside two cameras at 5 frames/s median "
        f"{statistics.median(watching) * 1000:.0f} ms, at most {watching[-1] * 1000:.0f} ms; beside an endless answer ("
        f"{pieces / 2 / took:.0f} tokens/s) the cameras were watched at {rates[0]:.1f} and {rates[1]:.1f} frames/s, "
        f"{now[0]['dropped']} and {now[1]['dropped']} dropped"
    )
    return bool(min(rates) > 0.5 * max(rates))


@contextlib.contextmanager
def reading(client: httpx.Client, body: dict[str, Any], pause: float | None) -> Iterator[None]:
    """Ask beside others, and read a byte at a time with a pause after each; None: read no more after the first piece."""
    url, text, over = client.base_url, json.dumps(body).encode(), threading.Event()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # little waits outside of the server
        connection.connect((url.host, url.port or 80))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        connection.recv(1)
        connection.settimeout(0.5)

        def read() -> None:
            while pause is not None and not over.wait(pause):
                with contextlib.suppress(TimeoutError):
                    connection.recv(1 if pause else 1 << 16)

        reader = threading.Thread(target=read)
        reader.start()
        yield
        over.set()
        reader.join()


def timed(client: httpx.Client, seed: int) -> tuple[float, float]:
    """Return milliseconds to the first piece of an answer of 60 tokens, and pieces per second from there."""
    body = {**ENDLESS, "max_tokens": 60, "seed": seed}
    began, times = time.monotonic(), []
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if '"content": "' in line and '"content": ""' not in line:
                times.append(time.monotonic())
    return 1000 * (times[0] - began), (len(times) - 1) / (times[-1] - times[0])


def readers(rounds: int = 12) -> bool:
    """Time one client alone, and beside another that reads at once, a byte every 100 ms, or no more; alternating."""
    short = {**ENDLESS, "max_tokens": 60}
    kinds: dict[str, Callable[[httpx.Client], contextlib.AbstractContextManager[None]]] = {
        "alone": lambda client: contextlib.nullcontext(),
        "beside one that reads at once": lambda client: reading(client, ENDLESS, 0.0),
        "beside a byte every 100 ms": lambda client: reading(client, ENDLESS, 0.1),
        "beside one that stops reading": lambda client: reading(client, ENDLESS, None),
        "beside a byte every 100 ms of an answer that is made": lambda client: _made(client, short),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    with serving("--kv-budget", "256", "--parallel", "2") as client:
        timed(client, 0)
        for number in range(rounds):
            order = list(kinds)[number % len(kinds) :] + list(kinds)[: number % len(kinds)]
            for name in order:
                with kinds[name](client):
                    found[name].append(timed(client, number))
                while metrics(client)["edgemllm_answers_running"]:
                    time.sleep(0.05)
    shares = {name: _report(name, pairs, found["beside one that reads at once"]) for name, pairs in found.items()}
    return min(shares["beside a byte every 100 ms"], shares["beside one that stops reading"]) > 0.8


def _report(name: str, pairs: list[tuple[float, float]], at_once: list[tuple[float, float]]) -> float:
    """Print medians and quartiles; returns the median share of the speed that the same round had beside a quick reader."""
    ratios = [(mine[0] / other[0], mine[1] / other[1]) for mine, other in zip(pairs, at_once, strict=True)]
    columns = (*zip(*pairs, strict=True), *zip(*ratios, strict=True))
    first, speed, wait, share = (statistics.quantiles(each, n=4) for each in columns)
    print(
        f"readers: {name}: first piece after {first[1]:.0f} ms ({first[0]:.0f} to {first[2]:.0f}), {speed[1]:.1f} tokens/s "
        f"({speed[0]:.1f} to {speed[2]:.1f}); of that beside one that reads at once: wait {wait[1]:.2f} ({wait[0]:.2f} to "
        f"{wait[2]:.2f}), speed {share[1]:.2f} ({share[0]:.2f} to {share[2]:.2f}); {len(pairs)} rounds, median (quartiles)"
    )
    return float(share[1])


@contextlib.contextmanager
def _made(client: httpx.Client, body: dict[str, Any]) -> Iterator[None]:
    """Read an answer slowly that is computed already."""
    with reading(client, body, 0.1):
        while metrics(client)["edgemllm_answers_running"]:
            time.sleep(0.05)
        yield


def main() -> None:
    """Run the measurements that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("hour", "clients", "leavers", "fairness", "readers"))
    parser.add_argument("--archive", action="store_true")
    parser.add_argument("--minutes", type=int, default=60)
    given = parser.parse_args()
    known: dict[str, Callable[[], bool]] = {
        "hour": lambda: hour(given.minutes, given.archive), "clients": clients, "leavers": leavers, "fairness": fairness,
        "readers": readers,
    }  # fmt: skip
    found = [known[name]() for name in given.what]
    if not all(found):
        sys.exit(1)


if __name__ == "__main__":
    main()
