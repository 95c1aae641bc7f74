"""Subtitles of a recording (SRT, WebVTT): what is said, among the frames at its time."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemllm.errors import MissingError
from edgemllm.media.frame import Frame
from edgemllm.media.text import document

ENDINGS = (".srt", ".vtt")
AUTO = "auto"
TIMES = re.compile(r"((?:\d+:)?\d+:\d+[.,]\d+)\s*-->\s*((?:\d+:)?\d+:\d+[.,]\d+)")
MARKS = re.compile(r"<[^>]*>|\{\\[^}]*\}")
"""Tags of both formats, and the positions that some SRT files have."""


@dataclass(frozen=True)
class Cue:
    """One subtitle, from `start` to `end` in seconds of the recording."""

    start: float
    end: float
    text: str


class Subtitles:
    """The cues of a file, given out once each as the frames come."""

    def __init__(self, cues: Sequence[Cue]) -> None:
        self.cues = sorted(cues, key=lambda cue: cue.start)
        self._next = 0
        self._begun = False

    @classmethod
    def open(cls, path: str) -> Subtitles:
        """Read a file. Raises MissingError where it is not there, is no text, or has no cue."""
        blocks = re.split(r"\n[ \t]*\n", "".join(document(path).blocks()).replace("\r\n", "\n"))
        cues = [cue for block in blocks if (cue := _cue(block)) is not None]
        if not cues:
            raise MissingError(f"{path} has no subtitle", "an .srt or .vtt file")
        return cls(cues)

    @classmethod
    def of(cls, path: str, video: str, end: float | None = None) -> Subtitles:
        """Read what begins before `end` of a file; `auto`: the one beside the video that has its name. Raises MissingError."""
        whole = cls.open(cls._beside(video) if path == AUTO else path)
        return cls([cue for cue in whole.cues if end is None or cue.start < end])

    @staticmethod
    def _beside(video: str) -> str:
        beside = [Path(video).with_suffix(ending) for ending in ENDINGS] if Path(video).is_file() else []
        for found in beside:
            if found.is_file():
                return str(found)
        names = " or ".join(each.name for each in beside) or "a file"
        raise MissingError(f"no subtitles beside {video}: {names}", "--subtitles FILE")

    def continue_after(self, seconds: float) -> None:
        """Leave out what begins up to this time: an earlier run has had it."""
        self._next = sum(cue.start <= seconds for cue in self.cues)
        self._begun = True

    def among(self, frames: Sequence[Frame], offset: float = 0.0) -> Iterator[list[Frame] | str]:
        """Give the frames, whose times are `offset` ahead, in runs, and between them the text that begins before the next."""
        run: list[Frame] = []
        for frame in frames:
            text = self._due(frame.time - offset)
            if text and run:
                yield run
                run = []
            if text:
                yield text
            run.append(frame)
        if run:
            yield run

    def rest(self) -> str:
        """Return what begins after the last frame."""
        return self._due(math.inf)

    def _due(self, seconds: float) -> str:
        found = []
        while self._next < len(self.cues) and self.cues[self._next].start <= seconds:
            cue = self.cues[self._next]
            self._next += 1
            if self._begun or cue.end > seconds:  # what was over before the first frame belongs to what is not watched
                found.append(cue.text)
        self._begun = True
        return "\n".join(found)


def _cue(block: str) -> Cue | None:
    """Return the cue of a block of lines; None for headers, notes and styles."""
    times = TIMES.search(block)
    if times is None:
        return None
    lines = block[times.end() :].split("\n")[1:]  # what follows the times on their line is where to draw it
    text = html.unescape(MARKS.sub("", "\n".join(line.strip() for line in lines))).strip()
    return Cue(_seconds(times[1]), _seconds(times[2]), text) if text else None


def _seconds(stamp: str) -> float:
    total = 0.0
    for part in stamp.replace(",", ".").split(":"):
        total = total * 60 + float(part)
    return total
