"""The /commands of a conversation, typed or piped: a function for each."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgemllm import policies, session_file
from edgemllm.commands.chat.run import Chat
from edgemllm.errors import UsageError, nearest
from edgemllm.launch import prepare
from edgemllm.media.images import read_image
from edgemllm.media.text import document
from edgemllm.media.video import Video
from edgemllm.screen import changes, remembered, status, strips

SAMPLING = {"max_tokens": (1, math.inf), "temperature": (0, math.inf), "top_p": (0, 1), "seed": (0, math.inf)}
"""What may be set of the sampling, and its limits."""


@dataclass(frozen=True)
class Slash:
    """One command: what it does with the conversation and the text after its name."""

    run: Callable[[Chat, str], None]
    argument: str
    """PATH or FILE: needed, and completed as a path; in brackets: may be left out."""
    help: str


def answer_all(chat: Chat, lines: Iterable[str]) -> None:
    """Answer one question, or obey one /command, after the other until /exit or a signal."""
    with contextlib.suppress(EOFError):  # EOFError: /exit
        remaining = iter(lines)
        while (line := chat.interrupts.wait(lambda: next(remaining, None))) is not None:
            take(chat, line)
            chat.interrupts.session = chat.session


def take(chat: Chat, line: str) -> None:
    """Answer a question, or obey a /command. Raises EdgeError, and EOFError for /exit."""
    if line.startswith("/"):
        obey(chat, line)
    elif line.strip():
        chat.answer(line.strip())


def obey(chat: Chat, line: str) -> None:
    """Run the command on `line`. Raises UsageError for an unknown one, and what the command raises."""
    name, _, argument = line.partition(" ")
    slash, argument = COMMANDS.get(name), argument.strip()
    if slash is None:
        raise UsageError(
            f"unknown command {name}{nearest(name, COMMANDS)}", "/help; a question that begins with / needs a space before it"
        )
    if slash.argument in ("PATH", "FILE") and not argument:
        raise UsageError(f"{name} needs a path", f"{name} {slash.argument}")
    slash.run(chat, argument)


def _video(chat: Chat, path: str) -> None:
    video = chat.interrupts.wait(lambda: Video.open(path, **chat.clip))
    if video is not None:
        chat.watch(video)


def _image(chat: Chat, path: str) -> None:
    image = chat.interrupts.wait(lambda: read_image(path))
    if image is not None:
        chat.session.show(image)


def _text(chat: Chat, path: str) -> None:
    if path == "-":
        raise UsageError("/text - : standard input brings the questions", "/text FILE")
    text = chat.interrupts.wait(lambda: document(path))
    if text is not None:
        chat.read(text)


def _stats(chat: Chat, _: str) -> None:
    lines = (status(chat.session, chat.launch.device), remembered(chat.session), *strips(chat.session))
    chat.display.report("\n".join(lines))


def _history(chat: Chat, _: str) -> None:
    lines = [line for turn in chat.turns for line in (f"> {turn['question']}", turn["answer"])]
    if chat.forgotten:
        lines.insert(2 * chat.forgotten, "(forgotten up to here: /clear or /load)")
    chat.display.report("\n".join(lines) or "nothing was asked yet")


def _clear(chat: Chat, _: str) -> None:
    seen = chat.session.cache.seen
    chat.session.clear()
    chat.forgotten = len(chat.turns)
    chat.display.say(f"forgotten: {seen} tokens, of everything shown and asked; show it again to ask about it")


def _save(chat: Chat, path: str) -> None:
    size = session_file.save(chat.session, Path(path))
    chat.display.say(f"saved to {path} ({size} bytes)")


def _load(chat: Chat, path: str) -> None:
    run = session_file.load(chat.session, Path(path))
    chat.forgotten = len(chat.turns)
    chat.display.say(f"loaded {path}: {chat.session.cache.seen} tokens seen{changes(run, chat.session)}")


def _policy(chat: Chat, name: str) -> None:
    if not name:
        chat.display.report(f"{chat.launch.policy_name}; others: edgemllm policies")
        return
    _begin_with(chat, name, ())


def _set(chat: Chat, setting: str) -> None:
    if not setting:
        given = [f"{key} = {getattr(chat.sampling, key)}" for key in SAMPLING]
        own = dataclasses.asdict(chat.launch.policy).items()
        given += [f"{key} = {value}   (of {chat.launch.policy_name})" for key, value in own]
        chat.display.report("\n".join(given))
        return
    key, _, value = setting.partition("=")
    key = key.strip().replace("-", "_")
    if key not in SAMPLING:
        _begin_with(chat, chat.launch.policy_name, (*chat.launch.request.settings, setting))
        return
    now, (low, high) = getattr(chat.sampling, key), SAMPLING[key]
    try:
        new = type(now)(value.strip())
    except ValueError:
        new = math.nan
    if not low <= new <= high or math.isinf(new):
        upper = f" to {high}" if high < math.inf else " upwards"
        raise UsageError(f"/set {setting}: a number from {low}{upper} expected", f"/set {key}={now}")
    chat.sampling = dataclasses.replace(chat.sampling, **{key: new})
    chat.display.say(f"{key} = {new} from the next answer on")


def _begin_with(chat: Chat, name: str, settings: tuple[str, ...]) -> None:
    """Begin with another policy, or other settings, in an empty cache of the same bytes.

    What is in a cache was chosen by the policy that filled it: refused until it is cleared, so that nothing is lost unasked.
    """
    policies.build(name, settings)
    if chat.session.cache.seen:
        held = f"what {chat.launch.policy_name} kept of {chat.session.cache.seen} tokens"
        raise UsageError(
            f"the cache holds {held}; another policy or setting starts afresh",
            "/clear (or /save FILE, then /clear), this command again, and show the media again",
        )
    bound = chat.session.kv()["budget_bytes"] if policies.find(name).bounded else None
    budget = f"{bound}b" if bound else chat.launch.request.kv_budget
    request = dataclasses.replace(chat.launch.request, policy=name, settings=settings, kv_budget=budget)
    chat.begin(prepare(request, checkpoint=chat.launch.checkpoint))
    held = "no budget" if chat.session.budget is None else f"{chat.session.budget} tokens per layer"
    chat.display.say(f"{name}, {held}: a new session, nothing seen yet")


def _help(chat: Chat, _: str) -> None:
    width = max(len(f"{name} {slash.argument}") for name, slash in COMMANDS.items())
    chat.display.report("\n".join(f"{f'{name} {slash.argument}':{width}}  {slash.help}" for name, slash in COMMANDS.items()))


def _exit(chat: Chat, _: str) -> None:
    raise EOFError


COMMANDS = {
    "/video": Slash(_video, "PATH", "watch a video or a folder of images; your next question closes the turn"),
    "/image": Slash(_image, "PATH", "look at an image"),
    "/text": Slash(_text, "PATH", "read a text file of any length"),
    "/stats": Slash(_stats, "", "the cache, memory and speed; which part of video and text is still remembered"),
    "/history": Slash(_history, "", "what was asked and answered"),
    "/policy": Slash(_policy, "[NAME]", "show the policy, or begin with another one while nothing is seen"),
    "/set": Slash(_set, "[KEY=VALUE]", "temperature, top_p, max_tokens or seed from now on; a policy's own setting as /policy"),
    "/clear": Slash(_clear, "", "forget everything"),
    "/save": Slash(_save, "FILE", "write the session (bounded cache and positions) to one file"),
    "/load": Slash(_load, "FILE", "continue from a saved session"),
    "/help": Slash(_help, "", 'this list; a question of several lines begins and ends with """'),
    "/exit": Slash(_exit, "", "end (also Ctrl-D); Ctrl-C stops an answer and keeps the session"),
}
