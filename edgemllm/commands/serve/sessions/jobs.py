"""What requests want of a session, as steps in the model's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edgemllm.archive.session import name_source
from edgemllm.commands.serve.conversation import answer
from edgemllm.commands.serve.media import Picture
from edgemllm.commands.serve.refusal import Refusal
from edgemllm.commands.serve.sessions.broadcast import Broadcast
from edgemllm.commands.serve.sessions.sleeper import Record, Sleeper
from edgemllm.commands.serve.state import recalled
from edgemllm.commands.serve.turns import BUSY, Work
from edgemllm.media.frame import Frame
from edgemllm.models.chat import Sampling
from edgemllm.models.tokens import pieces

FRAMES, TEXT = "frames", "text"
"""What an archive calls what clients send."""


class Host(Protocol):
    """The session in which a job is done."""

    sleeper: Sleeper
    record: Record
    broadcast: Broadcast
    interval: float
    """Seconds between two frames that are sent without a time."""
    picture: Frame | None
    """The latest frame."""

    def ask_due(self, now: float) -> Work:
        """Ask the standing questions that are due up to a time of the stream."""


@dataclass
class Job:
    """Steps of a session; `put` gets what they bring, `end` how they ended."""

    steps: Steps
    put: Callable[[Any], None]
    end: Callable[[BaseException | None], None]
    gone: bool = False
    """Nobody waits for it any more."""

    def leave(self) -> None:
        """Note that nobody waits for it any more."""
        self.gone = True


Steps = Callable[[Host, Job], Work]
"""What is done, a step at a time, with the session it belongs to."""


@dataclass
class Seen:
    """A frame is shown, at a time of the stream, or one frame after the latest."""

    picture: Picture
    seconds: float | None = None

    def __call__(self, host: Host, job: Job) -> Work:
        session = host.sleeper.wake()
        before = session.meter.video_s
        now = self.seconds if self.seconds is not None else before + host.interval * bool(session.meter.frames or before)
        if now < before:
            raise Refusal(400, f"time {now:g} is before {before:g}, that of the latest frame", param="time")
        yield from host.ask_due(now)
        frame = self.picture.open()
        name_source(session, FRAMES)
        session.see([replace(frame, time=now, index=session.meter.frames)])
        host.picture = frame
        yield BUSY


@dataclass
class Read:
    """A text is read, whole lines."""

    text: str

    def __call__(self, host: Host, job: Job) -> Work:
        session = host.sleeper.wake()
        name_source(session, TEXT)
        whole = self.text if self.text.endswith("\n") else self.text + "\n"
        for number, (_, piece) in enumerate(pieces([whole], 8 * session.chunk)):
            session.read_on(piece, begin=not number)
            yield BUSY


@dataclass
class Asked:
    """A question is answered: pieces of text, then the object that describes the answer."""

    question: str
    sampling: Sampling
    stops: list[str]

    def __call__(self, host: Host, job: Job) -> Work:
        session, said = host.sleeper.wake(), [""]
        began, video_s = time.time(), session.meter.video_s

        def say(text: str) -> None:
            said.append(text)
            job.put(text)

        putting = session.put(self.question)
        try:
            for _ in putting:
                yield BUSY
        except GeneratorExit:  # half a question would be no session that can be saved
            for _ in putting:
                pass
            raise
        for rest in answer(session, self.sampling, self.stops, say):
            if job.gone:
                session.stop()
            yield rest
        text = "".join(said).rstrip()
        told = {"question": self.question, "answer": text, "video_s": round(video_s, 3), "at": round(began, 3)}
        told |= {**recalled(session), **({"stopped": True} if job.gone else {})}
        host.record.answers.append(told)
        host.broadcast.tell("answer", **told, kv=session.kv())
        job.put(told)


@dataclass
class Done:
    """Something is done at once, and its result given."""

    action: Callable[[], Any]

    def __call__(self, host: Host, job: Job) -> Work:
        job.put(self.action())
        yield BUSY


def nobody(steps: Steps) -> Job:
    """Return a job that no request waits for."""
    return Job(steps, lambda item: None, lambda failure: None)
