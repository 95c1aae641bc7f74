"""The conversation on a terminal."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgemllm.errors import EdgeError

if TYPE_CHECKING:
    from edgemllm.commands.chat.run import Chat
    from edgemllm.commands.interrupts import Interrupts

HELP = """\
/video PATH   watch a video or a folder of images; your next question closes the turn
/image PATH   look at an image
/stats        the cache, memory and speed; which part of the video is still remembered
/clear        forget everything
/save FILE    write the session (bounded cache and positions) to one file
/load FILE    go on from a saved session
/help         this
/exit         end (also Ctrl-D); Ctrl-C stops an answer and keeps the session"""


def converse(chat: Chat, interrupts: Interrupts) -> None:
    """Read questions and commands until the end of input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() its line editing and history
    chat.display.say("ask about what you have shown; /help lists the commands")
    while True:
        interrupts.session = None  # at the prompt Ctrl-C interrupts the reading, not the session
        interrupts.code = 0
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D ends)")
            continue
        interrupts.session = chat.session
        try:
            if line == "/exit":
                return
            if line.startswith("/"):
                command(chat, line)
            elif line:
                chat.answer(line)
        except EdgeError as error:
            chat.display.say(f"error: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""))
        if interrupts.code == 143:
            return


def command(chat: Chat, line: str) -> None:
    """Run one /command."""
    from edgemllm import session_file
    from edgemllm.media.images import read_image
    from edgemllm.media.video import Video
    from edgemllm.screen import remembered, status, strip

    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if name in ("/video", "/image", "/save", "/load") and not argument:
        raise EdgeError(f"{name} needs a path")
    say = chat.display.say
    if name == "/video":
        chat.watch(Video.open(argument))
    elif name == "/image":
        chat.session.show(read_image(argument))
    elif name == "/stats":
        print(status(chat.session, chat.launch.device))
        print(remembered(chat.session))
        print(strip(chat.session))
    elif name == "/clear":
        chat.session.clear()
        say("forgotten")
    elif name == "/save":
        size = session_file.save(chat.session, Path(argument))
        say(f"saved to {argument} ({size} bytes)")
    elif name == "/load":
        session_file.load(chat.session, Path(argument))
        say(f"loaded {argument}: {chat.session.cache.seen} tokens seen")
    elif name == "/help":
        print(HELP)
    else:
        raise EdgeError(f"unknown command {name}", "/help")
