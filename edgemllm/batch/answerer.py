"""Answers works one after the other with one model that stays loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from edgemllm.batch.job import Job
from edgemllm.batch.work import Work
from edgemllm.errors import DoesNotFitError, EdgeError, MissingError, UsageError, out_of_memory
from edgemllm.launch import Launch, prepare
from edgemllm.limit import check_limit
from edgemllm.media.feed import Feed
from edgemllm.media.text import document
from edgemllm.media.video import Video
from edgemllm.models.chat import Sampling
from edgemllm.planning.estimate import input_tokens
from edgemllm.planning.peaks import FRAMES_AT_ONCE
from edgemllm.session import Session

SCHEMA = "edgemllm/1"
FOR_GOOD = (UsageError, MissingError)
"""What fails again however often it is tried."""


@dataclass
class Answerer:
    """Loads the model of a planned job, and answers works. Raises as `Launch.open` does."""

    job: Job
    launch: Launch
    on_step: Callable[[Session], None] = lambda session: None
    """Called after every forward pass and token."""
    stopping: Callable[[], bool] = lambda: False
    """Whether the work under way is to be given up."""
    _plans: dict[int, Launch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        session = self.launch.open()
        session.format  # noqa: B018 a model that cannot chat is refused here
        self._family, self._sampling = session.family, Sampling(**self.job.sampling)
        self._room = self.launch.plan.kv_budget_tokens

    def line(self, work: Work) -> dict[str, Any] | None:
        """Return the line of a work, its failure included; None where it was given up because of `stopping`."""
        began = time.monotonic()
        for attempt in range(1, self.job.retries + 2):
            attempts = attempt
            answers: list[dict[str, str]] = []
            made: dict[str, Any] = {"kv": None, "warning": None}
            failure: EdgeError | None = None
            try:
                with out_of_memory():
                    self._answer(work, answers, made)
            except EdgeError as error:
                failure = error
            except Exception as error:  # one video's is no reason to lose all others
                failure = EdgeError(f"unexpected {type(error).__name__}: {error}")
            if failure is None or isinstance(failure, FOR_GOOD) or self.stopping():
                break
        if self.stopping():
            return None
        seconds = round(time.monotonic() - began, 3)
        return line(work, answers=answers, **made, seconds=seconds, attempts=attempts, failure=failure)

    def _answer(self, work: Work, answers: list[dict[str, str]], made: dict[str, Any]) -> None:
        """Watch or read, and ask; `answers` and `made` grow on the way."""
        if work.video is not None:
            video = Video.open(work.video, **self.job.clip)
            session = self._session(work, input_tokens(self.launch.facts.sizes, work.questions, [video]))
            self._watch(session, video)
            made["warning"] = video.shortfall
        else:
            text = document(work.text or "")
            session = self._session(work, input_tokens(self.launch.facts.sizes, work.questions, texts=[text]))
            session.read(text)
        for question in work.questions:
            answers.append({"question": question, "answer": "".join(session.ask(question, self._sampling)).strip()})
        made["kv"] = session.kv()

    def _watch(self, session: Session, video: Video) -> None:
        if video.live and video.end is None and video.max_frames is None:
            raise UsageError(f"{video.path} is a camera, and a batch would never end", "edgemllm stream, or --end 60")
        with Feed(video, FRAMES_AT_ONCE, full_batches=True, stopping=self.stopping) as feed:
            session.watch(feed)

    def _session(self, work: Work, tokens: int | None) -> Session:
        """Return an empty session with the questions as its focus, as `edgemllm chat` would open it for this work."""
        asked = list(dict.fromkeys(work.questions))
        launch = self._planned(len(asked), tokens)
        if launch.budget is not None and launch.budget > self._room:
            raise DoesNotFitError(f"its share is {launch.budget} tokens per layer, and memory has room for {self._room}")
        focus = launch.focus and (launch.request.focus or asked)
        session = launch.session(self._family, focus=focus)
        most = None if launch.budget is not None else self._room

        def step(now: Session) -> None:
            check_limit(now, most)
            self.on_step(now)

        session.on_step = step
        return session

    def _planned(self, questions: int, tokens: int | None) -> Launch:
        """Return the launch for a number of questions about an input of `tokens`, which a plan seldom depends on."""
        request = replace(self.job.request, known=self.job.known(questions))
        if self.job.shares or not self.launch.policy.bounded:
            return prepare(request, lambda _: tokens, self.launch.checkpoint)
        if questions not in self._plans:
            self._plans[questions] = prepare(request, checkpoint=self.launch.checkpoint)
        return self._plans[questions]


def line(
    work: Work,
    *,
    answers: list[dict[str, str]],
    kv: dict[str, Any] | None = None,
    warning: str | None = None,
    seconds: float = 0.0,
    attempts: int = 1,
    failure: EdgeError | None = None,
) -> dict[str, Any]:
    """Return the object that is written for a work."""
    return {
        "schema": SCHEMA,
        "command": "batch",
        "id": work.id,
        "answers": answers,
        "kv": kv,
        "seconds": seconds,
        "attempts": attempts,
        "warning": warning,
        "error": None if failure is None else failure.message,
        "exit_code": 0 if failure is None else failure.exit_code,
    }
