"""Rounds of question and answer on the way through a stream: scheduled, typed, and those a stop has cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgemllm.archive.session import looked
from edgemllm.commands.stream.answers import Answers
from edgemllm.commands.stream.schedule import Schedule
from edgemllm.errors import out_of_memory
from edgemllm.models.chat import Sampling
from edgemllm.screen import Display, remembered
from edgemllm.session import Session
from edgemllm.units import clock


@dataclass
class Rounds:
    """Puts questions to a session and writes its answers to `out`; every round stays in the cache, under its policy."""

    session: Session
    schedule: Schedule
    sampling: Sampling
    out: Answers
    display: Display
    stopping: Callable[[], bool] = lambda: False
    """Whether to end in order, in the middle of an answer too."""
    by_line: Schedule = field(default_factory=Schedule)
    """What is asked after lines of a text."""
    answers: int = 0
    waiting: list[tuple[float, str]] = field(default_factory=list)
    """Time and question of what is due and not answered in full: a stopped run asks it again when it continues."""

    def state(self) -> dict[str, Any]:
        """Return what decides which questions come next; JSON."""
        asked = {"asked": max(self.schedule.asked, -1.0), "asked_line": max(self.by_line.asked, -1.0)}
        return {**asked, "answers": self.answers, "waiting": self.waiting}

    def resume(self, state: dict[str, Any]) -> None:
        """Take over what `state` of an earlier run gave; a standing question keeps its ticks, a new one is due from here on."""
        now = self.session.meter.video_s
        for when, question in self.schedule.timed:
            if state["asked"] < when <= now:
                self.display.say(f"not asked, {clock(when)} is over: {question}")
        self.schedule.asked = max(state["asked"], now)
        self.by_line.asked = max(state.get("asked_line", -1.0), self.session.meter.lines)
        self.answers = state["answers"]
        self.waiting = [(seconds, question) for seconds, question in state["waiting"]]

    def ask(self, *questions: str, at: float) -> None:
        """Put questions at a time of the stream, after those that wait."""
        self.waiting += [(round(at, 3), question) for question in questions]
        while self.waiting and not self.stopping():
            seconds, question = self.waiting[0]
            self._answer(question, seconds)

    def ask_due(self, now: float, standing: bool = True) -> None:
        """Put the scheduled questions that are due up to `now`; not `standing`: only those with a time of their own."""
        when = self.schedule.next
        self.ask(*self.schedule.due(now, standing), at=when)

    def ask_by_line(self, line: int, at: float) -> None:
        """Put the questions that are due up to a line, which was read `at` a time."""
        self.ask(*self.by_line.due(line), at=at)

    def report_left(self, end: float) -> None:
        """Say which questions will not be asked, because the source has ended at `end` seconds."""
        for when, question in self.schedule.missed():
            self.display.say(f"not asked, the source ended at {clock(end)} before {clock(when)}: {question}")
        for line, question in self.by_line.missed():
            self.display.say(f"not asked, the text ended before line {line:,.0f}: {question}")

    def _answer(self, question: str, seconds: float) -> None:
        self.display.hold()
        self.out.ask(question, seconds)
        answer = ""
        with out_of_memory():
            for piece in self.session.ask(question, self.sampling):
                if self.stopping():
                    self.session.stop()
                piece = piece if answer else piece.lstrip()
                answer += piece
                self.out.piece(piece)
        stopped = self.session.stopped
        if not stopped:
            del self.waiting[0]
            self.answers += 1
        look = looked(self.session)
        self.out.looked = look.as_json() if look else {}
        self.out.answer(question, answer.strip(), seconds, self.session.kv(), stopped)
        self.display.say(f"  [{remembered(self.session)}{look.note() if look else ''}]")
        self.display.resume()
