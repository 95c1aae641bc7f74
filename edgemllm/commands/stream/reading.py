"""Reading a text that grows: questions by the line, by the clock, and between the lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemllm.commands.stream.run import Stream
from edgemllm.errors import EdgeError, out_of_memory
from edgemllm.limit import check_limit
from edgemllm.media.growing_text import GrowingText
from edgemllm.media.text import empty
from edgemllm.screen import spans

LEAST_BYTES = 2
"""Of a token, before any was counted."""


@dataclass
class TextStream(Stream):
    """A stream of lines. Its seconds are those of the clock, in which a silent source asks no standing question again."""

    text: GrowingText

    def __post_init__(self) -> None:
        super().__post_init__()
        self._start()

    def _start(self) -> None:
        self._asked_at, self._began = self.text.byte, time.monotonic() - self.session.meter.video_s
        self.out.place = {"line": self.text.line, "byte": self.text.byte}

    @property
    def incoming(self) -> GrowingText:
        return self.text

    @property
    def name(self) -> str:
        return self.text.name

    def resume(self, run: Mapping[str, Any]) -> None:
        super().resume(run)
        self._start()

    def source_json(self) -> dict[str, Any]:
        text = {
            "path": self.text.name,
            "lines": self.text.line,
            "bytes": self.text.byte,
            "tokens": self.session.meter.text_tokens,
            "remembered": spans(self.session),
        }
        return {"video": None, "text": text}

    def came(self) -> str:
        return f"{self.text.name}: {self.text.line:,} lines read"

    def _step(self) -> bool:
        by_line, meter = self.rounds.by_line, self.session.meter
        each = meter.text_bytes / meter.text_tokens if meter.text_tokens else LEAST_BYTES
        lines = self.text.take(max(1, int(each * self.session.chunk)), by_line.next - self.text.line)
        if lines:
            check_limit(self.session, self.limit)
            more = self.text.waiting
            with out_of_memory():
                self.session.read_on(lines, whole=more)
            if not more:  # nothing is left over; a last line, or one that a rotation cut off, counts without its end
                meter.lines = self.text.line
        meter.video_s = time.monotonic() - self._began
        self.out.place = {"line": self.text.line, "byte": self.text.byte}
        if lines:
            self._advance(self.text.place)
        if by_line.next <= self.text.line:
            self.rounds.ask_by_line(self.text.line, at=meter.video_s)
        if self.rounds.schedule.next <= meter.video_s:
            self.rounds.ask_due(meter.video_s, standing=self.text.byte > self._asked_at)
            self._asked_at = self.text.byte
        return not self.text.done

    def _nothing(self) -> EdgeError | None:
        return empty(self.text.name) if self.text.done and not self.text.byte and self.text.error is None else None

    def _check_end(self) -> None:
        if self.text.error is not None:
            raise self.text.error
