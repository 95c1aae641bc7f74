"""A multimodal model for lmms-eval: videos watched frame by frame through the bounded cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lmms_eval.api.model import lmms
from tqdm import tqdm

from edgemllm.errors import UsageError
from edgemllm.harness.arguments import asked, sampling
from edgemllm.harness.generation import generate
from edgemllm.launch import prepare
from edgemllm.media.frame import Frame
from edgemllm.media.video import Video
from edgemllm.models.chat import Sampling
from edgemllm.session import Session

MOST_TOKENS = 128
"""Tokens of an answer, where a task does not say."""


class MultimodalModel(lmms):  # type: ignore[misc]
    """Shows what a task's messages bring, in their order, and asks what stands last.

    `fps` and `max_frames` as for `edgemllm chat`; `foresee`: the question is the focus of the cache while the video is
    watched, otherwise it is not known yet. `options` are keywords of `edgemllm.open`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "demo",
        *,
        fps: float = 1.0,
        max_frames: int | None = None,
        foresee: bool = False,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        request = asked(pretrained, options | ({"known": ("to be known",)} if foresee else {}))
        self.session = prepare(request).open()
        self._foresee, self._focus = bool(self.session.focus) and not request.focus, tuple(request.focus)
        self._system, self._clip = request.system, {"fps": fps, "max_frames": max_frames}

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return an answer to each request, about its own messages alone."""
        found = []
        for request in tqdm(requests, desc="answers"):
            context, to_messages, given, number, task, split = request.args
            found.append(self._answer(to_messages(self.task_dict[task][split][number]), given))
            self.cache_hook.add_partial("generate_until", (context, given), found[-1])
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Return the answers to each request's rounds; one that shows something begins anew, others continue."""
        return [self._rounds(*request.args[1:]) for request in tqdm(requests, desc="answers")]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: tasks of this kind are lm-eval's."""
        raise UsageError("edgemllm scores no log-likelihoods in lmms-eval", "a task that generates, or lm-eval")

    def _rounds(self, to_messages: Any, given: dict[str, Any], number: int, task: str, split: str) -> list[str]:
        document, info = self.task_dict[task][split][number], None
        answers: list[str] = []
        while True:
            if not answers:
                messages = to_messages(document)
            else:
                messages, ended, _, info = to_messages(
                    document, round_idx=len(answers), previous_output=list(answers), previous_round_info=info
                )
                if ended:
                    return answers
            shows = any(part.get("type") != "text" for each in messages for part in _parts(each["content"]))
            answers.append(self._answer(messages, given, fresh=shows or not answers))

    def _answer(self, messages: Sequence[Mapping[str, Any]], given: dict[str, Any], fresh: bool = True) -> str:
        """Answer the last message; `fresh`: in an empty cache."""
        session = self.session
        turns = [(message["role"], _parts(message["content"])) for message in messages]
        if fresh:
            session.system = next((_words(parts) for role, parts in turns if role == "system"), self._system)
            session.focus = [_words(turns[-1][1])] if self._foresee else self._focus
            session.clear()
        asked = [turn for turn in turns if turn[0] != "system"]
        for place, (role, parts) in enumerate(asked):
            if role == "user":
                question = self._show(parts)
                following = asked[place + 1 : place + 2]
                answer = _words(following[0][1]) if following else ""
                for _ in session.put(question, answer):
                    pass
        keywords, stops = sampling(given, MOST_TOKENS)
        return generate(session, Sampling(**keywords), stops).strip()

    def _show(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """Show a message's parts in their order, and return its last text, which is asked."""
        last = max((place for place, part in enumerate(parts) if part.get("type") == "text"), default=-1)
        for place, part in enumerate(parts):
            if part.get("type") == "text":
                if place != last and part["text"].strip():
                    self.session.see_or_hear(part["text"])
            else:
                _look(self.session, part["url"], self._clip)
        return str(parts[last]["text"]) if last >= 0 else ""


def _parts(content: Any) -> list[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _words(parts: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(part["text"] for part in parts if part.get("type") == "text")


def _look(session: Session, source: Any, clip: Mapping[str, Any]) -> None:
    """Show a picture (a path or PIL's), or a video: a path, or a mapping with `video_start` and `video_end`."""
    span: dict[str, Any] = {}
    if isinstance(source, Mapping):
        span = {"start": float(source.get("video_start") or 0.0), "end": source.get("video_end")}
        source = source.get("url") or source.get("path") or source.get("video")
    if hasattr(source, "convert"):  # PIL
        session.show(Frame(np.array(source.convert("RGB")), 0.0, 0))
    elif isinstance(source, str):
        video = Video.open(source, **{**clip, **span})
        session.watch(video)
        video.close()
    else:
        raise UsageError(f"edgemllm takes pictures and videos, not {type(source).__name__}", "another task")
