"""What sessions may watch: sources that the operator named, and recordings below the media folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemllm.commands.serve.media import Media
from edgemllm.commands.serve.refusal import Refusal
from edgemllm.commands.serve.sessions.schema import Wish
from edgemllm.media.feed import Feed
from edgemllm.media.source import Source

REMOTE = ("rtsp://", "rtsps://", "http://", "https://")


@dataclass
class Sources:
    """Opens what a session is to watch."""

    addresses: Mapping[str, str]
    media: Media
    fps: float

    def open(self, wish: Wish, place: dict[str, Any] | None = None) -> tuple[Source, Feed]:
        """Begin to read a session's source, after `place`; may take seconds. Raises Refusal, and as Source does."""
        assert wish.source is not None
        source = Source(self._address(wish.source), fps=wish.fps or self.fps, live=wish.live, retries=-1)
        source.name = wish.source  # the address may have a password
        return source, source.open(place)

    def _address(self, name: str) -> str:
        if name in self.addresses:
            return self.addresses[name]
        if name.startswith("file:"):
            return str(self.media.file(name))
        # FFmpeg opens an address itself, and whatever it leads to: only who may reach everything may name one.
        if name.startswith(REMOTE) and self.media.limits.private:
            return name
        known = ", ".join(self.addresses) or "none is named"
        raise Refusal(403, "this source is not served here", f"one of: {known}; edgemllm serve --source", "source_not_allowed")
