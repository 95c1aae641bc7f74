"""OpenAI's messages as what a session does: show, put, answer; one step a turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgemllm.commands.serve.media import Clip, Media, Picture
from edgemllm.commands.serve.refusal import Refusal
from edgemllm.commands.serve.schema import ImagePart, Message, TextPart
from edgemllm.commands.serve.turns import BUSY, WAITING, Work
from edgemllm.media.feed import Feed, raise_error
from edgemllm.models.chat import Sampling
from edgemllm.planning.peaks import FRAMES_AT_ONCE
from edgemllm.session import Session

Shown = Picture | Clip | str
"""What stands in a user's turn before its question: a picture, a video, or words among them."""


@dataclass
class Exchange:
    """A question with what is shown before it, and its answer; the last one has none yet."""

    shown: list[Shown] = field(default_factory=list)
    question: str = ""
    answer: str | None = None


@dataclass
class Conversation:
    """Messages, read."""

    system: str | None
    exchanges: list[Exchange]

    @property
    def has_media(self) -> bool:
        """Return whether anything is shown."""
        return any(exchange.shown for exchange in self.exchanges)

    @property
    def has_video(self) -> bool:
        """Return whether a video is shown."""
        return any(isinstance(shown, Clip) for exchange in self.exchanges for shown in exchange.shown)


def read(messages: Sequence[Message], media: Media, folder: Path) -> Conversation:
    """Read messages, and fetch into `folder` what they show. Raises Refusal for an order that no template writes."""
    first = next((number for number, message in enumerate(messages) if message.role in ("user", "assistant")), len(messages))
    system = "\n".join(message.text for message in messages[:first]) or None
    exchanges: list[Exchange] = []
    for number, message in enumerate(messages[first:], first):
        where = f"messages.{number}"
        if message.role == "user":
            _ask(exchanges, message, media, folder)
        elif message.role != "assistant":
            raise Refusal(400, f"a {message.role} message after the conversation has begun", "put it first", param=where)
        elif not exchanges or exchanges[-1].answer is not None:
            raise Refusal(400, "an answer without a question before it", param=where)
        else:
            exchanges[-1].answer = message.text
    last = exchanges[-1] if exchanges else Exchange(answer="")
    if last.answer is not None:
        raise Refusal(400, "the last message is not the user's: there is nothing to answer", param="messages")
    if not (last.question.strip() or last.shown):
        raise Refusal(400, "the last message is empty", param=f"messages.{len(messages) - 1}.content")
    return Conversation(system, exchanges)


def _ask(exchanges: list[Exchange], message: Message, media: Media, folder: Path) -> None:
    """Add a user's message. The template has the question after what is shown; other words stay where they are."""
    if not exchanges or exchanges[-1].answer is not None:
        exchanges.append(Exchange())
    exchange, parts = exchanges[-1], message.parts
    if exchange.question:  # two messages of the user's, one after the other
        exchange.shown.append(exchange.question)
    words = [part for part in parts if isinstance(part, TextPart)]
    exchange.question = words[-1].text if words else ""
    for part in parts:
        if isinstance(part, ImagePart):
            exchange.shown.append(media.picture(part.link))
        elif not isinstance(part, TextPart):
            exchange.shown.append(media.video(part.video, folder))
        elif part is not words[-1] and part.text:
            exchange.shown.append(part.text)


def take_in(session: Session, exchanges: Sequence[Exchange]) -> Work:
    """Show everything, and put the questions; the last one waits for `answer`."""
    for exchange in exchanges:
        for shown in exchange.shown:
            yield from show(session, shown)
        for _ in session.put(exchange.question, (exchange.answer or "").strip()):
            yield BUSY


def show(session: Session, shown: Shown) -> Work:
    """Show one thing: a video batch by batch, without waiting for its decoder."""
    if isinstance(shown, Picture):
        session.show(shown.open())
        yield BUSY
    elif isinstance(shown, str):
        session.see_or_hear(shown)
        yield BUSY
    else:
        video = shown.open()
        session.begin(video.interval)
        with Feed(video, FRAMES_AT_ONCE, full_batches=True) as feed:
            while not feed.done:
                frames = feed.take(FRAMES_AT_ONCE, wait_s=0)
                if frames:
                    session.see(frames)
                yield BUSY if frames else WAITING
        raise_error(feed)


def answer(session: Session, sampling: Sampling, stops: Sequence[str], say: Callable[[str], None]) -> Work:
    """Answer the question that was put, a token a turn, up to the first of `stops`."""
    said, held = False, ""
    for piece in session.answer(sampling):
        held += piece if said else piece.lstrip()
        held, whole = _cut(held, stops)
        safe = held if not whole else held[: len(held) - _tail(held, stops)]
        if safe:
            say(safe)
            said, held = True, held[len(safe) :]
        yield BUSY
        if not whole:
            session.stop()
            return
    if held:
        say(held)


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop, and whether there was none."""
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(found)], False) if found else (text, True)


def _tail(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end may be the beginning of a stop."""
    return max((size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)
