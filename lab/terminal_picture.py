"""Draw a terminal while `edgemllm stream` watches the sample lecture, as an SVG.

    python -m lab.terminal_picture docs/images/stream.svg

The command runs on a pseudo-terminal. What a real terminal shows at its last live line is drawn with rich; nothing is typed in
by hand. Fonts are the reader's own: the SVG loads nothing.
"""

from __future__ import annotations

import io
import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COMMAND = (
    "edgemllm", "stream", "edgemllm/assets/demo/lecture.mp4", "--policy", "edge", "--kv-budget", "256",
    "--ask", "What number was with the red square?", "--every", "30s", "--live", "--end", "97",
)  # fmt: skip
COLUMNS = 106
LIVE = re.compile(r"\d\d:\d\d:\d\d  frames .*evicted")
CLEAR_LINE, UP = "\x1b[2K", "\x1b[1A"


def terminal_output(command: tuple[str, ...]) -> str:
    """Run `command` on a pseudo-terminal and return everything it wrote to it."""
    written: list[bytes] = []

    def keep(descriptor: int) -> bytes:
        written.append(os.read(descriptor, 4096))
        return written[-1]

    os.environ.update(TERM="xterm-256color", COLUMNS=str(COLUMNS))
    pty.spawn(command, keep)
    return b"".join(written).decode()


def screen_at_last_live_line(output: str) -> list[str]:
    """Play `output` and return the lines of the screen at the last moment at which it ended in a live line."""
    lines, shown = [""], [""]
    for part in re.split(r"(\x1b\[2K|\x1b\[1A|\x1b\[\?25[lh]|\r\n|\r)", output):
        if part == CLEAR_LINE:
            lines[-1] = ""
        elif part == UP:
            lines.pop()
        elif part == "\r\n":
            lines.append("")
        elif part != "\r" and not part.startswith("\x1b[?"):
            lines[-1] += part
            if LIVE.search(lines[-1]):
                shown = list(lines)
    return shown


def draw(lines: list[str], path: Path) -> None:
    """Write `lines`, which may hold colours, as an SVG of a terminal window."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in lines:
        console.print(Text.from_ansi(line), overflow="crop", no_wrap=True)
    path.write_text(without_style_sheet(console.export_svg(title="edgemllm", theme=MONOKAI, unique_id="edgemllm")))


def without_style_sheet(svg: str) -> str:
    """Return rich's SVG with its classes written out, for viewers without style sheets, and without fonts from the network."""
    for name, style in re.findall(r"^ *\.(edgemllm-\S+) \{(.*?)\}", svg, re.MULTILINE | re.DOTALL):
        style = " ".join(style.replace("Fira Code, ", "").split())
        svg = svg.replace(f'class="{name}"', f'style="{style}"')
    return re.sub(r"<style>.*?</style>\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    output = terminal_output(COMMAND)
    words = [f'"{word}"' if " " in word else word for word in COMMAND]
    break_at = words.index("--ask")
    prompt = ["$ " + " ".join(words[:break_at]) + " \\", "      " + " ".join(words[break_at:])]
    draw([*prompt, *screen_at_last_live_line(output)], Path(sys.argv[1]))
