"""Watching a source for as long as it lasts, and answering on the way, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemllm import session_file
from edgemllm.commands.lineup import check_limit
from edgemllm.commands.stream.rounds import Rounds
from edgemllm.device import memory
from edgemllm.errors import EdgeError, MediaError
from edgemllm.launch import out_of_memory
from edgemllm.media.feed import Feed, raise_error
from edgemllm.media.frame import Frame
from edgemllm.media.similarity import Similarity
from edgemllm.media.source import Source
from edgemllm.media.typed_lines import TypedLines
from edgemllm.planning.peaks import FRAMES_AT_ONCE
from edgemllm.screen import remembered, status, strips
from edgemllm.units import clock

STATS_S = 60.0
"""Seconds of the stream between two `stats` events."""
PIPE_S = 0.2
"""Time that piped questions get to arrive when the source has already ended."""
HELP = """\
a line        a question about everything seen so far
/stats        the cache, memory and speed; which seconds of the stream are still remembered
/save [FILE]  write the session to one file (default: that of --save)
/exit         end in order (also Ctrl-C)
what you type is hidden; an empty line stops the meter, and shows the next line while you type it"""


@dataclass
class Stream:
    """One run: the session of `rounds` watches a feed, and questions are put to it by schedule and by `lines`."""

    rounds: Rounds
    source: Source
    feed: Feed
    save_wanted: Callable[[], bool] = lambda: False
    """Whether to save now, once for every time it is true."""
    lines: TypedLines | None = None
    similarity: Similarity | None = None
    save_to: Path | None = None
    max_frames: int | None = None
    """Of this run."""
    limit: int | None = None
    """Tokens a layer that a cache which never evicts may reach."""
    place: dict[str, Any] = field(default_factory=dict)
    """Where in the source the session is."""

    def __post_init__(self) -> None:
        self.session, self.display, self.out = self.rounds.session, self.rounds.display, self.rounds.out
        self._exit, self._taken = False, 0
        self._missed, self._dropped = 0, self.session.meter.dropped
        self._next_stats = self.session.meter.video_s + STATS_S

    def resume(self, run: Mapping[str, Any]) -> None:
        """Take over what `state` of an earlier run gave."""
        self.place, self._missed = dict(run["place"]), run["missed"]
        self.rounds.resume(run["rounds"])
        if self.similarity is not None and run["similar"] is not None:
            self.similarity.latest = np.array(run["similar"], np.uint8)

    def state(self) -> dict[str, Any]:
        """Return what, besides the session, decides how the run continues; JSON."""
        latest = None if self.similarity is None else self.similarity.latest
        return {
            "place": self.place,
            "missed": self.missed,
            "rounds": self.rounds.state(),
            "similar": None if latest is None else latest.tolist(),
        }

    @property
    def missed(self) -> int:
        """Return about how many frames came while the source was away."""
        return self._missed + self.feed.missed

    def run(self) -> None:
        """Watch and answer until the source ends or is to end. Raises MediaError where it was lost for good."""
        self.feed.begin()
        self.rounds.ask(at=self.session.meter.video_s)  # what an earlier run was stopped at
        while not self._ending():
            self._report_notices()
            if self.save_wanted():
                self._save_on_the_way()
            self._take_line()
            if not self._step():
                break
        nothing = self.feed.done and not (self.session.meter.frames or self.session.meter.skipped)
        if not nothing and not self._ending():
            self._finish()
        self.feed.close()
        self._count()
        self._report_notices()
        self._keep_lines()
        self._say_what_was_seen()
        raise_error(self.feed)
        if nothing and not self._ending():
            raise MediaError(f"{self.source.name} brought not one frame", "check what writes to it")

    def save(self, path: Path | None = None) -> None:
        """Write the session and where the stream is. Raises EdgeError where it cannot be written."""
        path = path or self.save_to
        if path is None:
            raise EdgeError("nowhere to save to", "/save FILE, or start with --save FILE")
        size = session_file.save(self.session, path, self.state())
        self.display.say(f"saved to {path} ({memory.human_bytes(size)}) at {clock(self.session.meter.video_s)}")
        self.out.event("saved", path=str(path), bytes=size, video_s=round(self.session.meter.video_s, 3))

    def summary(self) -> dict[str, Any]:
        """Return the `stats` event."""
        meter, video = self.session.meter, self.source.video
        return {
            "video_s": round(meter.video_s, 3),
            "answers": self.rounds.answers,
            "video": {
                "path": self.source.name,
                "frames_total": video.frames_total if video else None,
                "frames_seen": meter.frames,
                "frames_skipped": meter.skipped,
                "frames_dropped": meter.dropped,
                "frames_missed": self.missed,
                "seconds": video.seconds if video else None,
            },
            "frame_s": round(meter.frame_s, 3),
            "kv": self.session.kv(),
            "memory": memory.report(self.display.device) | {"rss_bytes": memory.rss_bytes()},
            "speed": meter.rates(),
        }

    # ---- watching ----------------------------------------------------------------------------------------------

    def _ending(self) -> bool:
        return self._exit or self.rounds.stopping()

    def _step(self) -> bool:
        """Watch the next frames, or ask what is due before them; False at the end."""
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
                self.session.see(fresh, None if similarity else self.source.interval)
        meter.video_s = frames[-1].time
        self.place = self.source.place(frames[-1])
        self._count()
        self.display.step(self.session)
        if meter.video_s >= self._next_stats:
            self._next_stats = meter.video_s + STATS_S
            self.out.event("stats", **self.summary())

    def _count(self) -> None:
        self.session.meter.dropped = self._dropped + self.feed.dropped

    def _report_notices(self) -> None:
        """Say what happened to the source."""
        while self.feed.notices:
            notice = self.feed.notices.popleft()
            self.display.say(notice.text)
            self.out.event(notice.event, **notice.fields)

    def _finish(self) -> None:
        """Ask, once the source has ended, what is due until then, what waits, and what was to be asked at the end."""
        video, seconds = self.source.video, self.session.meter.video_s
        if self.feed.done and not self.feed.error and video is not None and video.span is not None and not video.shortfall:
            seconds = max(seconds, video.start + video.span + self.source.offset)
        schedule = self.rounds.schedule
        while schedule.next <= seconds and not self._ending():
            self.rounds.ask_due(schedule.next)
        if self.lines is not None:
            self.lines.settle(PIPE_S)
        while not self._ending() and self._take_line():
            pass
        if not self._ending():
            self.rounds.ask(*schedule.final, at=self.session.meter.video_s)
            self.rounds.report_left(seconds)

    def _say_what_was_seen(self) -> None:
        meter, folder, video = self.session.meter, self.source.folder, self.source.video
        parts = [f"{meter.frames} frames watched"]
        parts += [f"{meter.skipped} skipped as similar"] if self.similarity else []
        parts += [f"{meter.dropped} dropped, because the model was busy"] if self.feed.live else []
        parts += [f"about {self.missed} missed while it was away"] if self.missed else []
        parts += [f"{folder.late} files came too late in order"] if folder and folder.late else []
        parts += [f"{folder.damaged} files are no image"] if folder and folder.damaged else []
        self.display.say(f"{self.source.name}: {', '.join(parts)}, {self.rounds.answers} questions answered")
        if video is not None and video.shortfall:
            self.display.say(f"warning: {video.shortfall}")

    # ---- lines that are typed ----------------------------------------------------------------------------------

    def _take_line(self) -> bool:
        """Answer or do one line; False if there is none. Nothing is asked before there is something to see."""
        line = self.lines.take() if self.lines and (self.session.cache.seen or self.feed.done) else None
        if line is None:
            return False
        self.display.close_prompt()
        if not line:
            self.display.open_prompt("ask> ")
        elif line.startswith("/"):
            self._command(line)
        else:
            self.rounds.ask(line, at=self.session.meter.video_s)
        return True

    def _keep_lines(self) -> None:
        """Let questions that a stop leaves unanswered wait in the saved session."""
        while self.lines is not None and (line := self.lines.take()) is not None:
            if line and not line.startswith("/"):
                self.rounds.waiting.append((round(self.session.meter.video_s, 3), line))
        for _, question in self.rounds.waiting:
            self.display.say(f"not answered{', --resume asks it again' if self.save_to else ''}: {question}")

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        try:
            if name == "/stats":
                now = status(self.session, self.display.device, self.display.expected)
                self.display.report("\n".join((now, remembered(self.session), *strips(self.session))))
                self.out.event("stats", **self.summary())
            elif name == "/save":
                self.save(Path(argument.strip()) if argument.strip() else None)
            elif name == "/exit":
                self._exit = True
            elif name == "/help":
                self.display.report(HELP)
            else:
                raise EdgeError(f"unknown command {name}", "/help")
        except EdgeError as error:
            self.display.report(f"error: {error.message}\n  try: {error.hint}")

    def _save_on_the_way(self) -> None:
        try:
            self.save()
        except EdgeError as error:  # no reason to end the watching
            self.display.report(f"warning: {error.message}; the earlier file is as it was, and watching continues")
