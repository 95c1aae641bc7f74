"""Videos, folders and images as a user meets them: the right frames and times, a clear word where one is wrong."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from edgemllm.errors import MediaError, MissingError, UsageError
from edgemllm.media.capture import shown
from edgemllm.media.images import is_image
from edgemllm.media.video import Video
from edgemllm.units import clock, parse_time


def record(path: Path, frames: int, fps: float = 10, fourcc: str = "mp4v", size: tuple[int, int] = (64, 48)) -> str:
    """A video whose brightness tells the frame number (modulo 13), with a white top left corner."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), fps, size)
    assert writer.isOpened()
    for number in range(frames):
        image = np.full((size[1], size[0], 3), number % 13 * 18, np.uint8)
        image[: size[1] // 3, : size[0] // 3] = 255
        writer.write(image)
    writer.release()
    return str(path)


def number_of(pixels: np.ndarray) -> int:
    return round(float(pixels[-8:, -8:].mean()) / 18)


def patch(data: bytearray, box: bytes, offset: int, value: bytes) -> None:
    """Overwrite part of the first box of a kind; `offset` counts from behind the kind."""
    place = data.find(box) + 4 + offset
    data[place : place + len(value)] = value


def retime(path: str, durations: list[int]) -> None:
    """Give every frame of an mp4 its own duration (in its time base), as phones and screen recorders do."""
    data = bytearray(Path(path).read_bytes())
    table = data.find(b"stts")
    entries = b"".join(struct.pack(">II", 1, duration) for duration in durations)
    data[table + 8 : table + 20] = struct.pack(">I", len(durations)) + entries
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        place = data.find(box) - 4
        (size,) = struct.unpack(">I", data[place : place + 4])
        data[place : place + 4] = struct.pack(">I", size + len(entries) - 8)
    (base,) = struct.unpack(">I", data[data.find(b"mdhd") + 16 : data.find(b"mdhd") + 20])
    length = struct.pack(">I", sum(durations) * 1000 // base)
    patch(data, b"mdhd", 16, struct.pack(">I", sum(durations)))
    for box, offset in ((b"mvhd", 16), (b"tkhd", 20), (b"elst", 8)):
        patch(data, box, offset, length)
    Path(path).write_bytes(data)


def first_duration(path: str) -> int:
    data = Path(path).read_bytes()
    (duration,) = struct.unpack(">I", data[data.find(b"stts") + 16 : data.find(b"stts") + 20])
    return int(duration)


# ---- sampling ------------------------------------------------------------------------------------------------------


def test_one_frame_a_second(tmp_path: Path) -> None:
    with Video.open(record(tmp_path / "a.mp4", 60)) as video:
        assert (video.frames_total, video.seconds, video.width, video.height, video.expected) == (60, 6.0, 64, 48, 6)
        assert video.describe() == "6 frames sampled from 60 (00:00:06 at 10 fps, 1 frame a second)"
        frames = list(video)
    assert [frame.index for frame in frames] == [0, 10, 20, 30, 40, 50]
    assert [frame.time for frame in frames] == pytest.approx([0, 1, 2, 3, 4, 5])
    assert [number_of(frame.pixels) for frame in frames] == [number % 13 for number in (0, 10, 20, 30, 40, 50)]
    assert (video.frames_seen, video.frames_decoded, video.shortfall) == (6, 60, None)


def test_pixels_are_rgb(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.full((48, 64, 3), (0, 0, 255), np.uint8))
    writer.release()
    (frame,) = Video.open(str(tmp_path / "red.avi"))
    assert frame.pixels.shape == (48, 64, 3)
    assert frame.pixels.dtype == np.uint8
    assert frame.pixels[0, 0].argmax() == 0


@pytest.mark.parametrize(("fps", "count"), [(None, 60), (0.5, 3), (2, 12), (3, 18), (10, 60), (100, 60)])
def test_rates(tmp_path: Path, fps: float | None, count: int) -> None:
    video = Video.open(record(tmp_path / "a.mp4", 60), fps=fps)
    frames = list(video)
    assert len(frames) == video.expected == count
    assert len({frame.index for frame in frames}) == count
    if fps and fps < 10:
        assert all(0 <= frame.time - number / fps < 0.1 + 1e-6 for number, frame in enumerate(frames))


def test_variable_frame_rate_is_sampled_by_time(tmp_path: Path) -> None:
    """Thirty frames in three seconds, then thirty in 21: counting frames would take most from the beginning."""
    path = record(tmp_path / "a.mp4", 60)
    step = first_duration(path)
    retime(path, [step] * 30 + [7 * step] * 30)
    video = Video.open(path)
    assert video.seconds == pytest.approx(24)
    frames = list(video)
    times = [frame.time for frame in frames]
    assert [frame.index for frame in frames][:5] == [0, 10, 20, 30, 32]
    assert times[3:6] == pytest.approx([3.0, 4.4, 5.1])
    assert all(later - earlier > 0.5 for earlier, later in pairwise(times))
    assert video.shortfall is None


def test_start_is_exact_at_a_variable_frame_rate(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mp4", 60)
    step = first_duration(path)
    retime(path, [step] * 30 + [7 * step] * 30)
    every = [(frame.time, frame.index) for frame in Video.open(path, fps=None)]
    for start in (1.5, 4.0, 12.0, 20.0):
        assert [(f.time, f.index) for f in Video.open(path, fps=None, start=start)] == [e for e in every if e[0] >= start]


def test_a_long_last_frame_is_no_damage(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mp4", 60)
    retime(path, [first_duration(path)] * 59 + [first_duration(path) * 100])
    video = Video.open(path)
    assert len(list(video)) == 6
    assert video.shortfall is None


@pytest.mark.parametrize("fourcc", ["mp4v", "MJPG"])
def test_start_and_end(tmp_path: Path, fourcc: str) -> None:
    path = record(tmp_path / ("a.mp4" if fourcc == "mp4v" else "a.avi"), 300, fourcc=fourcc)
    video = Video.open(path, start=20.05, end=24)
    frames = list(video)
    assert [frame.index for frame in frames] == [201, 211, 221, 231]
    assert [number_of(frame.pixels) for frame in frames] == [number % 13 for number in (201, 211, 221, 231)]
    assert [frame.time for frame in frames] == pytest.approx([20.1, 21.1, 22.1, 23.1])
    assert video.expected == 4
    assert video.frames_decoded < 60, "a constant frame rate can be sought in"


def test_max_frames_spreads_over_the_whole_video(tmp_path: Path) -> None:
    video = Video.open(record(tmp_path / "a.mp4", 100), max_frames=4)
    assert video.expected == 4
    assert [frame.time for frame in video] == pytest.approx([0, 2.5, 5, 7.5])
    assert "4 frames sampled from 100" in video.describe()
    assert "spread evenly by --max-frames 4" in video.describe()
    assert "spread" not in Video.open(str(tmp_path / "a.mp4"), max_frames=40).describe()


def test_stopping_early_closes_the_file(tmp_path: Path) -> None:
    with Video.open(record(tmp_path / "a.mp4", 60)) as video:
        next(iter(video))
    assert not video._capture.isOpened()


def test_rotation_of_a_phone_video(tmp_path: Path) -> None:
    path = Path(record(tmp_path / "a.mp4", 10))
    data = bytearray(path.read_bytes())
    quarter_turn = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    patch(data, b"tkhd", 40, quarter_turn)
    path.write_bytes(data)
    video = Video.open(str(path))
    assert (video.width, video.height) == (48, 64)
    (frame,) = video
    assert frame.pixels.shape == (64, 48, 3)
    assert frame.pixels[4, -4].min() > 200, "the white corner is now top right"
    assert frame.pixels[4, 4].max() < 60


def test_memory_does_not_grow(tmp_path: Path) -> None:
    process, rss = psutil.Process(), []
    for frame in Video.open(record(tmp_path / "long.mp4", 600, size=(320, 240)), fps=None):
        if frame.index >= 100 and frame.index % 50 == 0:
            rss.append(process.memory_info().rss)
    assert len(rss) == 10
    assert max(rss) - rss[0] < 16 << 20, "500 frames would be 115 MB"


# ---- images --------------------------------------------------------------------------------------------------------


def save(path: Path, level: int, size: tuple[int, int] = (40, 30)) -> None:
    Image.new("RGB", size, (level, 0, 0)).save(path)


def test_folder_of_images_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1, 9):
        save(tmp_path / f"frame_{number}.png", number)
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._frame_3.png").write_bytes(b"left by macOS")
    video = Video.open(str(tmp_path), fps=2)
    assert (video.frames_total, video.seconds, video.expected, video.width, video.height) == (4, 2.0, 4, 40, 30)
    frames = list(video)
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [1, 2, 9, 10]
    assert [frame.time for frame in frames] == [0, 0.5, 1.0, 1.5]
    assert video.describe() == "4 images sampled from 4 (00:00:02 at 2 fps, 2 frames a second)"
    assert [frame.index for frame in Video.open(str(tmp_path), fps=2, max_frames=2)] == [0, 2]
    assert [frame.index for frame in Video.open(str(tmp_path), start=1, end=3)] == [1, 2]


def test_a_file_of_a_folder_that_is_no_image_is_skipped_and_reported(tmp_path: Path) -> None:
    (tmp_path / "frame_1.png").write_bytes(b"no image")
    save(tmp_path / "frame_2.png", 60)
    (tmp_path / "frame_3.png").write_bytes(b"")
    save(tmp_path / "frame_4.png", 80)
    video = Video.open(str(tmp_path))
    assert [frame.index for frame in video] == [1, 3]
    assert video.shortfall == "2 files are no images that can be read: skipped"
    for name in ("frame_2.png", "frame_4.png"):
        (tmp_path / name).unlink()
    with pytest.raises(MediaError, match=r"frame_1\.png"):
        Video.open(str(tmp_path))


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="has no images"):
        Video.open(str(tmp_path))


def test_single_image_is_turned_by_its_exif_orientation(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 30))
    image.paste((255, 255, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in (".jpg", ".png", ".webp"):
        path = tmp_path / f"photo{suffix}"
        image.save(path, exif=exif)
        video = Video.open(str(path))
        assert (video.width, video.height, video.expected, video.seconds) == (30, 40, 1, None)
        (frame,) = video
        assert frame.pixels.shape == (40, 30, 3)
        assert frame.pixels[3, -3].min() > 200


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    (frame,) = Video.open(str(tmp_path / "clear.png"))
    assert frame.pixels.min() == 255


def test_is_image() -> None:
    assert [is_image(name) for name in ("a.JPG", "b.webp", "c.mp4", "folder")] == [True, True, False, False]


def test_damaged_images(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", 9, (400, 300))
    data = (tmp_path / "a.jpg").read_bytes()
    for name, content in (("cut.jpg", data[: len(data) // 2]), ("text.png", b"hello"), ("empty.webp", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=rf"{name} cannot be read as an image \({len(content)} bytes\)"):
            Video.open(str(tmp_path / name))
    with pytest.raises(MissingError):
        Video.open(str(tmp_path / "none.jpg"))


# ---- what is wrong -------------------------------------------------------------------------------------------------


def test_what_is_no_video(tmp_path: Path) -> None:
    for name, content, what in (
        ("notes.mp4", b"hello\n" * 100, "is a text file"),
        ("notes.txt", b"hello\n" * 100, "is a text file"),
        ("empty.mp4", b"", r"is empty \(0 bytes\)"),
        ("noise.mkv", bytes(range(256)) * 9, r"\(2304 bytes\) cannot be opened as video"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=what) as caught:
            Video.open(str(tmp_path / name))
        assert caught.value.exit_code == 6
        assert "\n" not in caught.value.message
    with pytest.raises(MissingError, match="no video") as missing:
        Video.open(str(tmp_path / "none.mp4"))
    assert missing.value.exit_code == 3


def test_mp4_cut_before_its_index(tmp_path: Path) -> None:
    path = Path(record(tmp_path / "a.mp4", 60))
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(MediaError, match="no readable index"):
        Video.open(str(path))


def test_video_without_frames(tmp_path: Path) -> None:
    path = Path(record(tmp_path / "a.avi", 60, fourcc="MJPG"))
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"movi") + 4])
    with pytest.raises(MediaError):
        list(Video.open(str(path)))


def test_cut_video_delivers_what_it_has_and_says_so(tmp_path: Path) -> None:
    path = Path(record(tmp_path / "a.avi", 300, fourcc="MJPG", size=(160, 120)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = Video.open(str(path))
    assert 13 <= len(list(video)) <= 15
    assert video.shortfall is not None
    assert "of 00:00:30" in video.shortfall
    with pytest.raises(MediaError, match="decoding stopped at 00:00:14 of 00:00:30"):
        list(Video.open(str(path), start=20))


def test_decoding_goes_on_behind_a_damaged_stretch(tmp_path: Path) -> None:
    path = Path(record(tmp_path / "a.avi", 300, fourcc="MJPG", size=(160, 120)))
    data = bytearray(path.read_bytes())
    third, half = len(data) // 3, len(data) // 2
    data[third:half] = np.random.default_rng(0).bytes(half - third)
    path.write_bytes(data)
    video = Video.open(str(path), fps=None)
    assert len(list(video)) > 200
    assert video.shortfall is not None


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"start": 60.0}, "--start 00:01:00 is beyond the end of .*, which lasts 00:00:06"),
        ({"end": 60.0}, "--end 00:01:00 is beyond the end of .*, which lasts 00:00:06"),
        ({"start": 3.0, "end": 2.0}, "--end 2 is not after --start 3"),
        ({"start": -1.0}, "--start -1"),
        ({"fps": 0.0}, "--fps 0"),
        ({"fps": -2.0}, "--fps -2"),
        ({"fps": float("nan")}, "--fps nan"),
        ({"max_frames": 0}, "--max-frames 0"),
    ],
)
def test_options_that_mean_nothing(tmp_path: Path, options: dict, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Video.open(record(tmp_path / "a.mp4", 60), **options)


def test_a_span_between_two_frames(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mp4", 6, fps=1)
    with pytest.raises(UsageError, match=r"no frame from 1\.2 s on before 1\.4 s"):
        list(Video.open(path, start=1.2, end=1.4))
    assert len(list(Video.open(path, end=6.5))) == 6


def test_live_source_that_is_not_there() -> None:
    with pytest.raises(MediaError, match="cannot be opened") as caught:
        Video.open("rtsp://admin:s3cret@127.0.0.1:1/stream")
    assert "s3cret" not in caught.value.message + caught.value.hint


def test_nothing_on_stderr_but_our_words(tmp_path: Path) -> None:
    path = Path(record(tmp_path / "a.avi", 100, fourcc="MJPG"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "text.mp4").write_bytes(bytes(99))
    code = (
        "import sys\nfrom edgemllm.media.video import Video\nlist(Video.open(sys.argv[1]))\n"
        "try:\n    Video.open(sys.argv[2])\nexcept Exception as error:\n    print(type(error).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "text.mp4")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={key: value for key, value in os.environ.items() if not key.startswith("OPENCV")},
        check=True,
    )
    assert (done.stdout, done.stderr) == ("MediaError\n", "")


# ---- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "display"),
    [
        ("rtsp://admin:secret@10.0.0.2/1", "rtsp://admin:***@10.0.0.2/1"),
        ("rtsp://admin:se@c/ret@10.0.0.2/1", "rtsp://admin:***@10.0.0.2/1"),
        ("http://10.0.0.2:8080/video", "http://10.0.0.2:8080/video"),
        ("http://host/v?user=me&password=secret&n=1", "http://host/v?user=me&password=***&n=1"),
        ("rtspsrc location=rtsp://h user-pw=secret ! appsink", "rtspsrc location=rtsp://h user-pw=*** ! appsink"),
        ("holiday.mp4", "holiday.mp4"),
    ],
)
def test_passwords_are_not_shown(source: str, display: str) -> None:
    assert shown(source) == display


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1:30", 90), ("00:01:30.5", 90.5), ("90s", 90), ("1m30s", 90), ("2h", 7200), ("0", 0), ("1.5", 1.5)],
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds
    assert parse_time(clock(seconds)) == int(seconds)


@pytest.mark.parametrize("text", ["", "abc", "1:", "-5", "1:2:3:4", "nan", "5x", "1m30"])
def test_times_that_mean_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        parse_time(text)


@pytest.mark.slow
def test_real_footage(footage: Path) -> None:
    """H.264, HEVC, VP8 and MPEG-4 in mp4, mkv, webm and avi, at two frames a second."""
    for path in sorted(footage.iterdir()):
        with Video.open(str(path), fps=2, end=8 if path.stat().st_size > 1_000_000 else None) as video:
            frames = list(video)
        assert video.shortfall is None, path.name
        assert len(frames) == video.expected, path.name
        assert all(0 <= frame.time - number / 2 < 0.15 for number, frame in enumerate(frames)), path.name
        assert frames[0].pixels.shape == (video.height, video.width, 3)
