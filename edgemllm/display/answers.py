"""Answers of a stream on stdout: text, JSON, JSON lines or subtitles; each is written as soon as it is known."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from edgemllm.inputs.clock import clock

SCHEMA = "edgemllm/1"


class TextAnswers:
    """`00:10:00 <tab> question <tab> answer`, one a line, the answer as it comes."""

    def start(self, **fields: Any) -> None:
        """The run begins; `fields` describe it."""

    def ask(self, question: str, seconds: float) -> None:
        """A question is put."""
        sys.stdout.write(f"{clock(seconds)}\t{_one_line(question)}\t")

    def piece(self, text: str) -> None:
        """A piece of its answer."""
        sys.stdout.write(_one_line(text))
        sys.stdout.flush()

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any]) -> None:
        """The whole answer, where the pieces have already been given."""
        print(flush=True)

    def event(self, name: str, **fields: Any) -> None:
        """Something else happened."""

    def close(self, code: int, **fields: Any) -> None:
        """The run ends with an exit code; `fields` sum it up."""


class JsonLinesAnswers(TextAnswers):
    """`--jsonl`: one object an event."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def start(self, **fields: Any) -> None:
        self.event("start", **fields)

    def ask(self, question: str, seconds: float) -> None:
        pass

    def piece(self, text: str) -> None:
        pass

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any]) -> None:
        self.event("answer", question=question, answer=answer, video_s=seconds, kv=kv)

    def event(self, name: str, **fields: Any) -> None:
        seconds = round(time.monotonic() - self._began, 3)
        print(json.dumps({"schema": SCHEMA, "event": name, "t": seconds, **fields}), flush=True)

    def close(self, code: int, **fields: Any) -> None:
        self.event("stats", **fields)
        print(json.dumps({"schema": SCHEMA, "event": "end", "exit_code": code}), flush=True)


class JsonAnswers(JsonLinesAnswers):
    """`--json`: one object, written as it grows, so that nothing is kept for hours."""

    def __init__(self) -> None:
        super().__init__()
        self._head: str | None = None
        self._turns = 0

    def start(self, **fields: Any) -> None:
        head = json.dumps({"schema": SCHEMA, "command": "stream", **fields})
        sys.stdout.write(f'{head[:-1]}, "turns": [')
        self._head = head

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any]) -> None:
        turn = json.dumps({"question": question, "answer": answer, "video_s": seconds})
        sys.stdout.write(f"{', ' if self._turns else ''}{turn}")
        sys.stdout.flush()
        self._turns += 1

    def event(self, name: str, **fields: Any) -> None:
        pass

    def close(self, code: int, **fields: Any) -> None:
        print(f"], {json.dumps({**fields, 'exit_code': code})[1:]}", flush=True)


class SubtitleAnswers(JsonAnswers):
    """`--srt`, `--vtt`: an answer stays until the next one; answers of one moment share a cue."""

    def __init__(self, vtt: bool) -> None:
        super().__init__()
        self.vtt = vtt
        self._cue: list[str] = []
        self._since = 0.0

    def start(self, **fields: Any) -> None:
        if self.vtt:
            print("WEBVTT\n", flush=True)

    def answer(self, question: str, answer: str, seconds: float, kv: dict[str, Any]) -> None:
        if self._cue and seconds > self._since:
            self._write(seconds)
        self._since = seconds
        self._cue += [line for line in answer.splitlines() if line.strip()] or ["…"]

    def close(self, code: int, **fields: Any) -> None:
        if self._cue:
            self._write(max(fields.get("video_s", 0.0), self._since + 1))

    def _write(self, end: float) -> None:
        self._turns += 1
        mark = "." if self.vtt else ","
        text = "\n".join(line.replace("-->", "→") for line in self._cue)
        if self.vtt:
            text = text.replace("&", "&amp;").replace("<", "&lt;")
        print(f"{self._turns}\n{_stamp(self._since, mark)} --> {_stamp(end, mark)}\n{text}\n", flush=True)
        self._cue = []


def _one_line(text: str) -> str:
    """Tabs and line ends as spaces, so that an answer stays one line of three fields."""
    return text.translate({ord(mark): " " for mark in "\t\r\n"})


def _stamp(seconds: float, mark: str) -> str:
    whole = round(seconds * 1000)
    return f"{clock(whole // 1000)}{mark}{whole % 1000:03d}"
