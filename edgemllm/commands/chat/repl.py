"""The conversation on a terminal."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import TYPE_CHECKING, Any

from edgemllm import policies
from edgemllm.commands.chat.slash import COMMANDS, take
from edgemllm.errors import EdgeError

if TYPE_CHECKING:
    from edgemllm.commands.chat.run import Chat

QUOTES = '"""'


def converse(chat: Chat) -> None:
    """Read questions and commands until the end of input.

    What is typed while an answer is written is not echoed, and is the next input.
    """
    interrupts, echo = chat.interrupts, chat.display.echo
    _line_editing()
    chat.display.say("ask about what you have shown; /help lists the commands")
    while True:
        interrupts.session = None  # at the prompt Ctrl-C interrupts the reading, not the session
        interrupts.code = 0
        try:
            echo(True)
            line = _read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D ends)")
            continue
        finally:
            echo(False)
        interrupts.session = chat.session
        try:
            take(chat, line)
        except EOFError:  # /exit
            return
        except EdgeError as error:
            chat.display.say(f"error: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""))
        except (OSError, ValueError) as error:  # a path or a character that nobody foresaw: no reason to forget everything
            chat.display.say(f"error: {str(error)[:200]}")
        if interrupts.code == 143:
            return


def _read() -> str:
    """Return a line, or the lines between two \"\"\". Raises EOFError and KeyboardInterrupt."""
    line = input("> ").rstrip()
    if not line.startswith(QUOTES):
        return line
    text = line.removeprefix(QUOTES)
    while not text.rstrip().endswith(QUOTES):
        text += f"\n{input('. ')}"
    return text.rstrip().removesuffix(QUOTES).strip()


# ---- completion --------------------------------------------------------------------------------------------------------


def complete(line: str, word: str) -> list[str]:
    """Return what `word`, the last of `line`, may become: a command, a path, a policy."""
    name, space, _ = line.partition(" ")
    if not space:
        return [f"{each} " for each in COMMANDS if each.startswith(word)] if word.startswith("/") else []
    if name == "/policy":
        return [each for each in policies.names() if each.startswith(word)]
    if name in COMMANDS and COMMANDS[name].argument in ("PATH", "FILE"):
        found = sorted(glob.glob(f"{glob.escape(os.path.expanduser(word))}*"))
        return [f"{path}/" if os.path.isdir(path) else path for path in found]
    return []


def _line_editing() -> None:
    """Give input() history and completion, where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline

        def completer(word: str, number: int) -> str | None:
            found: list[Any] = complete(readline.get_line_buffer(), word)
            return found[number] if number < len(found) else None

        readline.set_completer_delims(" ")
        readline.set_completer(completer)
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
