"""OpenCV's capture of a file, camera, address or GStreamer pipeline: opened, or one line that says why not."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import cv2

from edgemllm.errors import MediaError

NOTICE_S = 2.0
"""After so long a source that does not open is reported."""


def is_live(source: str) -> bool:
    """Return whether a source is a camera, an address or a GStreamer pipeline instead of a path."""
    return re.fullmatch(r"/dev/video\d+", source) is not None or "://" in source or " ! " in source


def shown(source: str) -> str:
    """Return the source without the passwords it may carry."""
    source = re.sub(r"(://[^\s:@/]*):\S*@", r"\1:***@", source)
    return re.sub(r"((?:user-pw|passw(?:or)?d|pwd|token)=)[^&\s]+", r"\1***", source, flags=re.IGNORECASE)


def connect(source: str, timeout: float | None = None) -> Any:
    """Return an open cv2.VideoCapture; gives up after `timeout` seconds of silence. Raises MediaError with the reason."""
    if not is_live(source):
        refuse_text(Path(source))
    device: Any = int(source[10:]) if re.fullmatch(r"/dev/video\d+", source) else source
    backend, settings = cv2.CAP_GSTREAMER if " ! " in source else cv2.CAP_ANY, []
    if timeout is not None and "://" in source and cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        # Only this backend knows the two settings, and others refuse to open with them.
        backend, milliseconds = cv2.CAP_FFMPEG, int(1000 * timeout)
        settings = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    patience = None if "://" in source else timeout  # an address has it among its settings
    capture = _wait_for(lambda: cv2.VideoCapture(device, backend, settings), shown(source), patience)
    if not capture.isOpened():
        raise MediaError(*why_closed(source))
    # OpenCV 4 does not turn the picture unless asked to.
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


def _wait_for(opening: Callable[[], Any], name: str, patience: float | None) -> Any:
    """Return what `opening` does. It runs in a thread: no signal is handled while OpenCV waits for a pipe or a mount."""
    opened: Future[Any] = Future()

    def run() -> None:
        try:
            opened.set_result(opening())
        except Exception as error:
            opened.set_exception(error)

    threading.Thread(target=run, name="opening", daemon=True).start()
    if patience is None or patience > NOTICE_S:
        try:
            return opened.result(NOTICE_S)
        except FutureTimeout:
            print(f"waiting for {name}: nothing has come from it yet", file=sys.stderr, flush=True)
            patience = None if patience is None else patience - NOTICE_S
    try:
        return opened.result(patience)
    except FutureTimeout:
        hint = "start what writes to it, or allow more with --timeout"
        raise MediaError(f"{name}: nothing came from it in time", hint) from None


def refuse_text(path: Path) -> None:
    """Refuse a text file, but for playlists: FFmpeg draws it as a terminal screen."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}", "check who may read it") from error
    playlist = head.startswith((b"#EXTM3U", b"ffconcat", b"v=0"))
    if head and not playlist and not re.search(rb"[\x00-\x08\x0e-\x1a]", head):
        raise MediaError(f"{path} is a text file, not a video", "--text, which chat, stream and perplexity read")


def why_closed(source: str) -> tuple[str, str]:
    """Return the message and hint for a source that OpenCV did not open."""
    if " ! " in source and not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        return "this OpenCV has no GStreamer (none from PyPI has)", "use the OpenCV of JetPack, or an rtsp:// address"
    if is_live(source):
        return f"{shown(source)} cannot be opened", "check the address, the password and the network; ls /dev/video*"
    path = Path(source)
    if not path.is_file():
        return f"{path} cannot be opened as video: an mp4 cannot be piped, MPEG-TS and MKV can", "give a file"
    size = path.stat().st_size
    if not size:
        return f"{path} is empty (0 bytes)", "fetch or record it again"
    with path.open("rb") as file:
        if file.read(12)[4:8] == b"ftyp":
            return (
                f"{path} ({size} bytes) has no readable index (moov): it was cut off, or damaged",
                "fetch it again, or repair it with untrunc; record to mkv, which survives a cut",
            )
    return f"{path} ({size} bytes) cannot be opened as video: not a video, or damaged", "check it with ffprobe"
