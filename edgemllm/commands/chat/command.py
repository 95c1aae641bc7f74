"""What `edgemllm chat` does with its options: open the media, plan, and hand over to a conversation or to the questions."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from edgemllm.commands import options
from edgemllm.commands.archive.options import ArchiveOptions
from edgemllm.commands.archive.sessions import sessions
from edgemllm.commands.chat.repl import converse
from edgemllm.commands.chat.run import Chat
from edgemllm.commands.chat.slash import answer_all
from edgemllm.commands.interrupts import Interrupts
from edgemllm.commands.plan.report import stop_after
from edgemllm.errors import UsageError
from edgemllm.launch import prepare
from edgemllm.media.subtitles import AUTO, Subtitles
from edgemllm.media.text import Text, document
from edgemllm.media.video import Video
from edgemllm.models.chat import Sampling
from edgemllm.models.families import family_of
from edgemllm.planning.estimate import input_tokens
from edgemllm.screen import Display


def chat(
    questions: Sequence[str],
    videos: Sequence[str],
    images: Sequence[str],
    words: options.WordOptions,
    clip: options.ClipOptions,
    size: options.DetailOptions,
    run: options.RequestOptions,
    focus: options.FocusOptions,
    kept: ArchiveOptions,
    reply: options.AnswerOptions,
    output: options.JsonOptions,
    display: Display,
    dry_run: bool,
    interrupts: Interrupts,
) -> None:
    """Run the command."""
    if any(not question.strip() for question in questions):
        raise UsageError("a question is empty", 'edgemllm chat --video lecture.mp4 "What number was with the red square?"')
    if words.text.count("-") > 1:
        raise UsageError("standard input can be read once: --text - is given twice", "--text - once")
    if "-" in words.text and not questions:
        raise UsageError("--text - reads standard input, where questions would come from", 'the question as an argument: "..."')
    sources = [Video.open(video, **clip.of()) for video in videos]
    said = _subtitles(words.subtitles, sources)
    documents = [document(text) for text in words.text]
    detail = size.detail()
    shown = [*videos, *images, *words.text]
    request = run.request(system=reply.system, detail=detail, **focus.of(questions if shown else ()))

    def tokens(config: Any) -> int | None:
        sizes = family_of(config.model_type).sizes(config, detail)
        return input_tokens(sizes, questions, sources, len(images), documents)

    launch = prepare(request, tokens)
    if dry_run:
        stop_after(launch, output.either)
    sampling = Sampling(reply.max_tokens, reply.temperature, reply.top_p, reply.seed)
    chat = Chat(launch, display, sampling, output.events("chat"), interrupts, clip.sampling(), said)
    with sessions(kept, display.report) as chat.make:
        _talk(chat, questions, sources, images, documents)


def _talk(
    chat: Chat, questions: Sequence[str], sources: Sequence[Video], images: Sequence[str], documents: Sequence[Text]
) -> None:
    """Answer the questions of the command line, or those that come on standard input."""
    if not questions and sys.stdin.isatty():
        chat.go(sources, images, documents, functools.partial(converse, chat))
        return
    asked = iter(questions or _lines(sys.stdin))
    first = next(asked, None)
    if first is None:
        chat.display.say("no question on standard input: nothing was asked")
        chat.go(sources, images, documents, None)
    else:
        chat.go(sources, images, documents, functools.partial(answer_all, chat, itertools.chain([first], asked)))


def _subtitles(path: str | None, videos: Sequence[Video]) -> dict[str, Subtitles]:
    """Return what is said in each video, by its path. Raises UsageError and MissingError."""
    if path is None:
        return {}
    if not videos or (path != AUTO and len(videos) > 1):
        raise UsageError(f"--subtitles {path} belongs to one --video, and there are {len(videos)}", "--subtitles auto")
    return {video.path: Subtitles.of(path, video.source, video.end) for video in videos}


def _lines(stream: TextIO) -> Iterator[str]:
    for line in stream:
        if line.strip():
            yield line.rstrip()
