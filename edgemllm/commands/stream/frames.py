"""Watching the frames of a source, such as a recording, a camera or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemllm.commands.stream.run import Stream
from edgemllm.errors import EdgeError, MediaError, out_of_memory
from edgemllm.limit import check_limit
from edgemllm.media.feed import Feed, raise_error
from edgemllm.media.frame import Frame
from edgemllm.media.similarity import Similarity
from edgemllm.media.source import Source
from edgemllm.media.subtitles import Subtitles
from edgemllm.planning.peaks import FRAMES_AT_ONCE


@dataclass
class FrameStream(Stream):
    """A stream of frames, which a feed brings."""

    source: Source
    feed: Feed
    similarity: Similarity | None = None
    max_frames: int | None = None
    """Of this run."""
    subtitles: Subtitles | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._taken = self._missed = 0
        self._dropped = self.session.meter.dropped

    @property
    def incoming(self) -> Feed:
        return self.feed

    @property
    def name(self) -> str:
        return self.source.name

    def resume(self, run: Mapping[str, Any]) -> None:
        super().resume(run)
        self._missed = run["missed"]
        if self.subtitles is not None and run["place"]:
            self.subtitles.continue_after(run["place"]["time"] - self.source.offset)
        if self.similarity is not None and run["similar"] is not None:
            self.similarity.latest = np.array(run["similar"], np.uint8)

    def state(self) -> dict[str, Any]:
        latest = None if self.similarity is None else self.similarity.latest
        return {**super().state(), "missed": self.missed, "similar": None if latest is None else latest.tolist()}

    @property
    def missed(self) -> int:
        """Return about how many frames came while the source was away."""
        return self._missed + self.feed.missed

    def source_json(self) -> dict[str, Any]:
        meter, video = self.session.meter, self.source.video
        seen = {
            "path": self.source.name,
            "frames_total": video.frames_total if video else None,
            "frames_seen": meter.frames,
            "frames_skipped": meter.skipped,
            "frames_dropped": meter.dropped,
            "frames_missed": self.missed,
            "seconds": video.seconds if video else None,
        }
        return {"video": seen}

    def came(self) -> str:
        meter, folder = self.session.meter, self.source.folder
        parts = [f"{meter.frames} frames watched"]
        parts += [f"{meter.skipped} skipped as similar"] if self.similarity else []
        parts += [f"{meter.dropped} dropped, because the model was busy"] if self.feed.live else []
        parts += [f"about {self.missed} missed while it was away"] if self.missed else []
        parts += [f"{folder.late} files came too late in order"] if folder and folder.late else []
        parts += [f"{folder.damaged} files are no image"] if folder and folder.damaged else []
        return f"{self.source.name}: {', '.join(parts)}"

    def _step(self) -> bool:
        due = self.rounds.schedule.next
        most = FRAMES_AT_ONCE if self.max_frames is None else min(FRAMES_AT_ONCE, self.max_frames - self._taken)
        if most <= 0:
            return False
        frames = self.feed.take(most, before=due)
        if frames:
            self._taken += len(frames)
            self._see(frames)
        elif (now := self.feed.next_time) is not None and now >= due:
            self.rounds.ask_due(now)
        return not self.feed.done

    def _see(self, frames: list[Frame]) -> None:
        meter, similarity = self.session.meter, self.similarity
        check_limit(self.session, self.limit)
        fresh = [frame for frame in frames if similarity is None or similarity.is_new(frame.pixels)]
        meter.skipped += len(frames) - len(fresh)
        if fresh:
            with out_of_memory():
                for part in [fresh] if self.subtitles is None else self.subtitles.among(fresh, self.source.offset):
                    self.session.see_or_hear(part, None if similarity else self.source.interval)
        meter.video_s = frames[-1].time
        self._count()
        self._advance(self.source.place(frames[-1]))

    def _count(self) -> None:
        self.session.meter.dropped = self._dropped + self.feed.dropped

    def _report_notices(self) -> None:
        self._count()
        super()._report_notices()

    def _nothing(self) -> EdgeError | None:
        if self.feed.done and not (self.session.meter.frames or self.session.meter.skipped):
            return MediaError(f"{self.source.name} brought not one frame", "check what writes to it")
        return None

    def _end_s(self) -> float:
        video, seconds = self.source.video, self.session.meter.video_s
        if self.feed.done and not self.feed.error and video is not None and video.span is not None and not video.shortfall:
            seconds = max(seconds, video.start + video.span + self.source.offset)
        return seconds

    def _check_end(self) -> None:
        if self.source.video is not None and self.source.video.shortfall:
            self.display.say(f"warning: {self.source.video.shortfall}")
        raise_error(self.feed)
