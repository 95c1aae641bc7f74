"""The options of `edgemllm serve` that no other command has, in groups."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from edgemllm.commands.options import MEDIA, MEMORY, RUN, option
from edgemllm.device.memory import parse_bytes
from edgemllm.errors import MissingError, UsageError, opening
from edgemllm.units import parse_time

SERVER, SAFETY = "Server", "Safety"
LECTURE = Path(__file__).parents[2] / "assets" / "demo" / "lecture.mp4"


@dataclass(frozen=True)
class Periods:
    """How long a session stays in memory, and unwritten."""

    sleep_s: float
    """Without source and request; then it sleeps on disk."""
    save_s: float
    """While its source continues."""


@dataclass(frozen=True)
class ServerOptions:
    """Where it listens, and to how many at once."""

    host: Annotated[
        str, option("--host", help="Address to listen on; any but this machine's own needs a key.", panel=SERVER)
    ] = "127.0.0.1"
    port: Annotated[int, option("--port", help="Port to listen on; 0 takes a free one.", panel=SERVER, min=0, max=65535)] = 8000
    parallel: Annotated[
        int, option("--parallel", help="Chat answers at once, each with a cache of its own.", panel=MEMORY, min=1)
    ] = 2
    queue: Annotated[int, option("--queue", help="Requests that may wait for one of them.", panel=SERVER, min=0)] = 256


@dataclass(frozen=True)
class WatchOptions:
    """Sessions that stay."""

    source: Annotated[
        list[str], option("--source", help="What sessions may watch, NAME=ADDRESS; repeatable. [default: none]", panel=MEDIA)
    ] = field(default_factory=list)
    state: Annotated[
        Path | None,
        option("--state", help="Folder in which sessions sleep. [default: edgemllm/serve of XDG_STATE_HOME]", panel=RUN),
    ] = None
    sleep_after: Annotated[
        str, option("--sleep-after", help="Sessions without source and request sleep on disk after this time.", panel=RUN)
    ] = "10m"
    save_every: Annotated[
        str, option("--save-every", help="How often a session that watches is written to disk.", panel=RUN)
    ] = "10m"

    def addresses(self, model: str) -> dict[str, str]:
        """Return the sources by name; the demo model has its lecture. Raises UsageError."""
        found = {"lecture": str(LECTURE)} if model == "demo" else {}
        for each in self.source:
            name, equals, address = (part.strip() for part in each.partition("="))
            if not (name and equals and address) or "/" in name:
                raise UsageError(f"--source {each!r} is no name and address", "--source door=rtsp://camera/live")
            found[name] = address
        return found

    def periods(self) -> Periods:
        """Return `--sleep-after` and `--save-every` in seconds. Raises UsageError."""
        return Periods(parse_time(self.sleep_after), parse_time(self.save_every))

    def folder(self) -> Path:
        """Return `--state`, or where the system keeps such things."""
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return self.state or Path(home) / "edgemllm" / "serve"


@dataclass(frozen=True)
class SafetyOptions:
    """Who may ask, and for what."""

    api_key: Annotated[str | None, option("--api-key", help="Key that clients send. [default: none]", panel=SAFETY)] = None
    api_key_file: Annotated[
        Path | None, option("--api-key-file", help="File with a key on each line. [default: none]", panel=SAFETY)
    ] = None
    cors: Annotated[
        list[str], option("--cors", help="Origin of web pages that may ask; repeatable. [default: none]", panel=SAFETY)
    ] = field(default_factory=list)
    media_path: Annotated[
        Path | None, option("--media-path", help="Folder below which file:// may read. [default: nothing]", panel=MEDIA)
    ] = None
    allow_private: Annotated[
        bool, option("--allow-private", help="Fetch media from addresses of this machine and its network too.", panel=SAFETY)
    ] = False
    max_body: Annotated[str, option("--max-body", help="Largest request, and file fetched.", panel=SAFETY)] = "32MiB"
    max_megapixels: Annotated[
        float, option("--max-megapixels", help="Largest picture and video frame.", panel=SAFETY, min=0.01)
    ] = 40.0

    @property
    def most_bytes(self) -> int:
        """Return `--max-body`. Raises UsageError."""
        return parse_bytes(self.max_body)

    @property
    def most_pixels(self) -> int:
        """Return `--max-megapixels` as a count."""
        return round(self.max_megapixels * 10**6)

    def keys(self) -> list[str]:
        """Return the keys. Raises UsageError for a file without one, and MissingError."""
        keys = [self.api_key.strip()] if self.api_key is not None else []
        if self.api_key_file is not None:
            with opening(self.api_key_file, MissingError):
                keys += [line.strip() for line in self.api_key_file.read_text().splitlines() if line.strip()]
        if not all(keys) or (self.api_key_file is not None and not keys):
            raise UsageError("a key is empty", "edgemllm serve --api-key $(openssl rand -hex 32)")
        return keys

    def folder(self) -> Path | None:
        """Return `--media-path`. Raises MissingError."""
        if self.media_path is not None and not self.media_path.is_dir():
            raise MissingError(f"no folder {self.media_path}", "an existing --media-path")
        return self.media_path
