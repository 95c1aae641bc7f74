"""Answers of a stream on stdout: text, JSON, JSON lines or subtitles; each is written as soon as it is known."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from edgemllm.commands.events import Events, headed
from edgemllm.errors import UsageError
from edgemllm.units import clock


class Answers:
    """What a stream writes to stdout. Nothing is kept: a stream may last indefinitely."""

    place: Mapping[str, int] = MappingProxyType({})
    """Where in a text the next answer is given, `line` and `byte`; empty for video."""

    looked: Mapping[str, Any] = MappingProxyType({})
    """What was looked at again for the next answer; empty without an archive."""

    def start(self, **fields: Any) -> None:
        """Begin the run that `fields` describe."""

    def ask(self, question: str, seconds: float) -> None:
        """Write a question that is put."""

    def piece(self, text: str) -> None:
        """Write a piece of its answer."""

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any], stopped: bool = False) -> None:
        """Write the whole answer, or as far as it came before it was `stopped`."""

    def event(self, name: str, **fields: Any) -> None:
        """Write that something else happened."""

    def close(self, code: int, **fields: Any) -> None:
        """End the run with an exit code; `fields` sum it up."""


class TextAnswers(Answers):
    """`00:10:00 <tab> question <tab> answer`, one a line, the answer as it comes; of a text `[line 10,000] <tab> ...`."""

    def ask(self, question: str, seconds: float) -> None:
        place = f"[line {self.place['line']:,}]" if self.place else clock(seconds)
        _write(f"{place}\t{_one_line(question)}\t")

    def piece(self, text: str) -> None:
        _write(_one_line(text))

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any], stopped: bool = False) -> None:
        _write("\n")


class JsonLinesAnswers(Answers):
    """`--jsonl`: one object an event."""

    def __init__(self) -> None:
        self._events = Events("stream", jsonl=True)

    def start(self, **fields: Any) -> None:
        self.event("start", command="stream", **fields)

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any], stopped: bool = False) -> None:
        cut = {"stopped": True} if stopped else {}
        self.event("answer", question=question, answer=answer, video_s=seconds, **self.place, **self.looked, kv=kv, **cut)

    def event(self, name: str, **fields: Any) -> None:
        self._events.event(name, **fields)

    def close(self, code: int, **fields: Any) -> None:
        self.event("stats", **fields)
        self._events.close(code, {})


class JsonAnswers(Answers):
    """`--json`: one object, written as it grows."""

    def __init__(self) -> None:
        self._turns = 0

    def start(self, **fields: Any) -> None:
        head = json.dumps(headed("stream", fields))
        _write(f'{head[:-1]}, "turns": [')

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any], stopped: bool = False) -> None:
        cut = {"stopped": True} if stopped else {}
        turn = {"question": question, "answer": answer, "video_s": seconds, **self.place, **self.looked, **cut}
        _write(f"{', ' if self._turns else ''}{json.dumps(turn)}")
        self._turns += 1

    def close(self, code: int, **fields: Any) -> None:
        _write(f"], {json.dumps({**fields, 'exit_code': code})[1:]}\n")


class SubtitleAnswers(Answers):
    """`--srt`, `--vtt`: an answer stays until the next one; answers of one moment share a cue."""

    def __init__(self, vtt: bool) -> None:
        self.vtt = vtt
        self._cue: list[str] = []
        self._since, self._number = 0.0, 0

    def start(self, **fields: Any) -> None:
        if self.vtt:
            _write("WEBVTT\n\n")

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any], stopped: bool = False) -> None:
        if self._cue and seconds > self._since:
            self._end_cue(seconds)
        self._since = max(seconds, self._since)
        self._cue += [line for line in answer.splitlines() if line.strip()] or ["…"]

    def close(self, code: int, **fields: Any) -> None:
        if self._cue:
            self._end_cue(max(fields.get("video_s", 0.0), self._since + 1))

    def _end_cue(self, end: float) -> None:
        self._number += 1
        mark = "." if self.vtt else ","
        text = "\n".join(line.replace("-->", "→") for line in self._cue)
        if self.vtt:
            text = text.replace("&", "&amp;").replace("<", "&lt;")
        _write(f"{self._number}\n{_stamp(self._since, mark)} --> {_stamp(end, mark)}\n{text}\n\n")
        self._cue = []


def answers_as(json: bool, jsonl: bool, srt: bool, vtt: bool) -> Answers:
    """Return the form that was asked for. Raises UsageError for two of them: both want standard output."""
    chosen = [name for name, wanted in (("--json", json), ("--jsonl", jsonl), ("--srt", srt), ("--vtt", vtt)) if wanted]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} both want standard output", "one of them")
    if srt or vtt:
        return SubtitleAnswers(vtt)
    return JsonAnswers() if json else JsonLinesAnswers() if jsonl else TextAnswers()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _one_line(text: str) -> str:
    """Return the text with tabs and line ends as spaces, so that an answer stays one line of three fields."""
    return text.translate({ord(mark): " " for mark in "\t\r\n"})


def _stamp(seconds: float, mark: str) -> str:
    whole = round(seconds * 1000)
    return f"{clock(whole // 1000)}{mark}{whole % 1000:03d}"
