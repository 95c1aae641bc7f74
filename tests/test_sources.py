"""Where a stream's frames come from: recordings, cameras that go away, pipes, folders that grow; and when questions are due."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from camera import Camera, picture

from edgemllm.commands.stream.schedule import Schedule
from edgemllm.errors import MediaError, UsageError
from edgemllm.media import feed as feeds
from edgemllm.media.encoded_images import EncodedImages
from edgemllm.media.feed import Feed, raise_error
from edgemllm.media.frame import Frame
from edgemllm.media.growing_folder import GrowingFolder
from edgemllm.media.similarity import Similarity
from edgemllm.media.source import Source
from edgemllm.models.loading import DEMO

LECTURE = str(DEMO / "lecture.mp4")


@pytest.fixture
def camera() -> Iterator[Camera]:
    found = Camera()
    yield found
    found.unplug()


def frames_of(feed: Feed, seconds: float) -> list[Frame]:
    until, found = time.monotonic() + seconds, []
    while time.monotonic() < until and not feed.done:
        found += feed.take(8)
    return found


def test_a_camera_that_goes_away_comes_back_and_its_gap_is_counted(camera: Camera) -> None:
    feed = Source(camera.address, fps=10.0).open()
    feed.begin()
    before = frames_of(feed, 1.5)
    camera.unplug()
    during = frames_of(feed, 2.0)
    camera.plug_in()
    after: list[Frame] = []
    while len(after) < 5:
        after += frames_of(feed, 0.5)
    feed.close()
    assert len(before) > 4
    assert len(during) < 5
    lost, back = feed.notices
    assert (lost.event, back.event) == ("lost", "back")
    assert "was lost at 00:00:0" in lost.text
    gap = after[0].time - (before + during)[-1].time
    assert back.fields["gap_s"] == pytest.approx(gap, abs=0.01)
    assert feed.missed == back.fields["frames_missed"] == round(gap * 10) - 1
    assert f"about {feed.missed} frames missed" in back.text
    times = [frame.time for frame in before + during + after]
    assert times == sorted(times)


def test_a_camera_that_stays_away_is_lost_for_good(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BACKOFF_S", 0.02)
    feed = Source(camera.address, retries=3).open()
    feed.begin()
    frames_of(feed, 0.3)
    camera.unplug()
    frames_of(feed, 30.0)
    assert feed.done
    with pytest.raises(MediaError, match=r"lost for good .* 3 attempts"):
        raise_error(feed)


def test_an_address_that_never_answers_is_refused_with_its_password_hidden() -> None:
    with pytest.raises(MediaError, match=r"http://me:\*\*\*@127.0.0.1:9/x") as caught:
        Source("http://me:secret@127.0.0.1:9/x", timeout=1.0).open()
    assert "secret" not in str(caught.value)


class Fast:
    """Brings one frame of a megabyte after the other, as fast as it can."""

    path = "fast"

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            yield Frame(np.zeros((512, 683, 3), np.uint8) + np.uint8(index % 200), index / 100, index)


def test_a_source_faster_than_the_model_is_dropped_and_counted_in_flat_memory() -> None:
    feed = Feed(Fast(1500), 8, live=True)
    feed.begin()
    rss, seen = psutil.Process().memory_info().rss, []
    while not feed.done:
        seen += [frame.index for frame in feed.take(4)]
        time.sleep(0.01)
    assert len(seen) + feed.dropped == 1500
    assert feed.dropped > 100
    assert seen[-1] == 1499, "the newest win"
    assert seen == sorted(seen)
    assert psutil.Process().memory_info().rss - rss < 300 << 20


def test_a_recording_waits_for_the_model_and_loses_nothing() -> None:
    feed = Feed(Fast(60), 8)
    feed.begin()
    seen = []
    while not feed.done:
        seen += [frame.index for frame in feed.take(3)]
        time.sleep(0.002)
    assert seen == list(range(60))
    assert feed.dropped == 0


class Damaged(Fast):
    """Ends with an error behind its last frame."""

    def __iter__(self) -> Iterator[Frame]:
        yield from super().__iter__()
        raise MediaError("fast is damaged")


def test_a_recording_is_decoded_ahead_in_full_batches_and_its_error_comes_behind_its_frames() -> None:
    frames = iter(Feed(Damaged(21), 8, full_batches=True))
    assert [next(frames).index for _ in range(21)] == list(range(21))
    with pytest.raises(MediaError, match="damaged"):
        next(frames)


def test_a_recording_can_be_watched_by_the_clock() -> None:
    feed = Source(LECTURE, fps=5.0, end=2.0, live=True).open()
    began = time.monotonic()
    feed.begin()
    seen = frames_of(feed, 20.0)
    assert time.monotonic() - began > 1.7
    assert len(seen) == 10


def png(number: int) -> bytes:
    ok, data = cv2.imencode(".png", np.full((20, 30, 3), number, np.uint8))
    assert ok
    return bytes(data)


def pipe(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data), 4096)  # type: ignore[arg-type]


def test_images_on_a_pipe_come_one_by_one_whatever_their_format() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    _, progressive = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2])
    frames = list(EncodedImages(pipe(picture(4) + png(77) + bytes(progressive) + picture(9)), fps=2.0))
    assert [frame.time for frame in frames] == [0.0, 0.5, 1.0, 1.5]
    assert [frame.pixels.shape[:2] for frame in frames] == [(48, 64), (20, 30), (90, 120), (48, 64)]
    assert [round(frame.pixels.mean() / 8) for frame in frames if frame.pixels.shape[0] == 48] == [4, 9]


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"hello world", "neither JPEG nor PNG where image 1"), (picture(1) + picture(2)[:300], "ended within image 2")],
)
def test_a_pipe_that_brings_something_else_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        list(EncodedImages(pipe(data), fps=1.0))


def test_a_picture_of_too_many_pixels_is_not_decoded() -> None:
    size = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    with pytest.raises(MediaError, match="20000 x 20000 pixels are more than 178 million") as caught:
        list(EncodedImages(pipe(header + end), fps=1.0))
    assert caught.value.hint == "scale it down"


def test_a_growing_folder_brings_each_image_once_and_waits_for_half_written_ones(tmp_path: Path) -> None:
    (tmp_path / "frame_2.png").write_bytes(png(2))
    (tmp_path / "frame_10.png").write_bytes(png(10))

    def write() -> None:
        time.sleep(0.4)
        (tmp_path / "frame_11.png").write_bytes(png(11)[:40])
        (tmp_path / "frame_12.png").write_bytes(png(12))
        time.sleep(0.5)
        (tmp_path / "frame_11.png").write_bytes(png(11))
        (tmp_path / "frame_13.png").write_bytes(b"no image")

    thread = threading.Thread(target=write)
    thread.start()
    folder = GrowingFolder(str(tmp_path), fps=2.0, timeout=3.0)
    frames = list(folder)
    thread.join()
    assert [frame.name for frame in frames] == [f"frame_{number}.png" for number in (2, 10, 11, 12)]
    assert [frame.time for frame in frames] == [0.0, 0.5, 1.0, 1.5]
    assert folder.damaged == 1
    again = GrowingFolder(str(tmp_path), fps=2.0, timeout=0.3)
    again.continue_after("frame_11.png", 2)
    assert [(frame.name, frame.index) for frame in again] == [("frame_12.png", 3)]


def test_similar_frames_are_noticed_and_a_slow_change_adds_up() -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(40, 200, (180, 320, 3), dtype=np.uint8)
    similarity = Similarity(0.98)
    assert similarity.is_new(scene)
    noisy = np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)
    assert not similarity.is_new(noisy)
    visitor = scene.copy()
    visitor[100:140, 200:220] = 255
    assert similarity.is_new(visitor)
    assert [step for step in range(12) if similarity.is_new(visitor - np.uint8(step))]
    with pytest.raises(UsageError, match="skip-similar"):
        Similarity(1.5)


def test_questions_are_due_at_their_ticks_and_each_once() -> None:
    schedule = Schedule.parse(["a", "b"], ["10s", "25s"], ["00:00:15 c", "end d"])
    found: list[tuple[float, list[str]]] = []
    while (when := schedule.next) <= 52:
        found.append((when, schedule.due(when)))
    assert found == [
        (10, ["a"]), (15, ["c"]), (20, ["a"]), (25, ["b"]), (30, ["a"]), (40, ["a"]), (50, ["a", "b"]),
    ]  # fmt: skip
    assert schedule.final == ["d"]
    assert schedule.due(900) == ["a", "b"]
    assert schedule.next == 910


@pytest.mark.parametrize(
    ("ask", "every", "at", "words"),
    [
        (["a", "b"], ["1s", "2s", "3s"], [], "2 --ask but 3 --every"),
        ([], ["1s"], [], "without a question"),
        (["a"], ["0"], [], "never stop"),
        ([" "], [], [], "empty"),
        ([], [], ["soon what"], "not a time"),
        ([], [], ["10"], "empty"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(ask: list[str], every: list[str], at: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Schedule.parse(ask, every, at)
