"""The live line on stderr: frames, cache, memory and speed; plain lines where stderr is no terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TextIO

from edgemllm.device import memory
from edgemllm.device.memory import human_bytes
from edgemllm.errors import UsageError
from edgemllm.units import clock

if TYPE_CHECKING:
    from rich.live import Live

    from edgemllm.session import Session

Kind = Literal["video", "text"]

HERTZ = 4
PLAIN_SECONDS = 5.0
BAR = 10
IN_USE = {"host": "machine", "unified": "machine, unified", "discrete": "GPU"}
"""Whose memory the line shows, by kind: what all programs together have in use."""


class Display:
    """Shows a session's state as it changes; `mode` is auto, plain or none. `echo` shows or hides what is typed."""

    def __init__(self, mode: str = "auto", device: str = "cpu", echo: Callable[[bool], None] = lambda shown: None) -> None:
        if mode not in ("auto", "plain", "none"):
            raise UsageError(f"--progress {mode} is unknown", "auto, plain or none")
        if mode == "auto":
            mode = "live" if sys.stderr.isatty() else "plain"
        self.mode, self.device, self.echo = mode, device, echo
        self.shown = time.monotonic()
        self.expected: int | None = None
        """Frames the running video will bring."""
        self.expected_bytes: int | None = None
        """Bytes of text that will have been read when the running document ends."""
        self.paused = False
        self._prompt = ""
        self._live: Live | None = None

    def step(self, session: Session) -> None:
        """Show the session; called after every forward pass."""
        self.update(lambda: status(session, self.device, self.expected, self.expected_bytes))

    def update(self, line: Callable[[], str]) -> None:
        """Draw what `line` says, at most a few times a second."""
        now = time.monotonic()
        if self.paused or self.mode == "none" or now - self.shown < (1 / HERTZ if self.mode == "live" else PLAIN_SECONDS):
            return
        self.shown = now
        text = line()
        if self.mode == "plain":
            self.say(text)
            return
        from rich.text import Text

        self._start().update(Text(text, style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)

    def report(self, text: str) -> None:
        """Print lines that were asked for, in every mode."""
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def open_prompt(self, prompt: str) -> None:
        """Ask for input, show what is typed, and draw no live line until `close_prompt`."""
        self.clear()
        self.paused, self._prompt = True, prompt
        self.echo(True)
        print(prompt, end="", file=sys.stderr, flush=True)

    def close_prompt(self) -> None:
        """Hide what is typed, and draw again."""
        self._prompt = ""
        self.echo(False)
        self.resume()

    def hold(self) -> None:
        """Draw no line until `resume` if an answer is about to be written to the same terminal, file or pipe."""
        self.clear()
        self.echo(False)
        self.paused = sys.stdout.isatty() or _same_file(sys.stdout, sys.stderr)

    def resume(self) -> None:
        """Draw again, or repeat the prompt that `hold` has interrupted."""
        self.paused = False
        if self._prompt:
            self.open_prompt(self._prompt)

    def clear(self) -> None:
        """Take the live line away, before anything else is written."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Print a line of our own on stderr, unless the mode is none."""
        self.clear()
        if self.mode != "none":
            print(text, file=sys.stderr, flush=True)

    def _start(self) -> Live:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
            self._live.start()
        return self._live


def _same_file(one: TextIO, other: TextIO) -> bool:
    """Return whether both end up in one place, as after `2>&1`."""
    try:
        return os.path.sameopenfile(one.fileno(), other.fileno())
    except (OSError, ValueError):  # replaced by an embedding program
        return False


def status(session: Session, device: str, expected: int | None = None, expected_bytes: int | None = None) -> str:
    """Return one line: where we are, what the cache holds, what memory and speed are."""
    kv, meter = session.kv(), session.meter
    budget = kv["budget_tokens"]
    kept = round(kv["tokens"])
    full = min(BAR, round(BAR * kept / budget)) if budget else 0
    bar = f" {'▮' * full}{'▯' * (BAR - full)}" if budget else ""
    here = memory.probe(device)
    in_use = f"{IN_USE[here.kind]} {human_bytes(here.used_bytes)}/{human_bytes(here.total_bytes)}"
    focus = f"focus {len(session.focus)}  " if session.focus else ""
    rates = meter.rates()
    speed = f"{rates['decode_tps']:.1f} tok/s" if meter.decode_tokens else f"{rates['prefill_tps']:.0f} tok/s in"
    left_out = [f"{name} {count}" for name, count in (("skipped", meter.skipped), ("dropped", meter.dropped)) if count]
    frames = f"frames {meter.frames}{f'/{expected}' if expected else ''}" if meter.frames else ""
    frames += (f" ({', '.join(left_out)})" if left_out else "") + ("  " if meter.frames else "")
    where = f"line {meter.lines:,}" if meter.lines else ""
    where += f" ({min(1.0, meter.text_bytes / expected_bytes):.0%})" if where and expected_bytes else ""
    where = "  ".join([clock(meter.video_s)] * bool(meter.video_s or not where) + [where] * bool(where))
    return (
        f"{where}  {frames}kv {kept}/{budget or '∞'}{bar} {human_bytes(kv['bytes'])}  "
        f"evicted {kv['evicted_tokens']}  {focus}{in_use}  {speed}"
    )


def remembered(session: Session) -> str:
    """Return what eviction has cost: tokens dropped, and which video and text is still, at least partly, in the cache."""
    kv, meter = session.kv(), session.meter
    if not kv["evicted_tokens"]:
        return f"nothing evicted: all {kv['seen_tokens']} tokens are in the cache"
    text = f"{kv['evicted_tokens']} of {kv['seen_tokens']} tokens evicted"
    if kv["managed_layers"] < len(session.cache.layers):
        text += f" from {kv['managed_layers']} of {len(session.cache.layers)} layers, the only ones that the policy manages"
    kinds: tuple[tuple[int, Kind, str, Callable[[float], str]], ...] = (
        (meter.frames, "video", "frames", clock),
        (meter.lines, "text", "lines", lambda number: f"line {number:,.0f}"),
    )
    for count, kind, what, place in kinds:
        found = session.remembered(kind) if count else []
        if len(found):
            first, last = place(found[0]), place(found[-1])
            text += f"; remembering {first} … {last}, {len(found):,} of {count:,} {what} at least partly"
        elif count:
            text += f"; none of {count:,} {what} is left"
    return text


def spans(session: Session) -> list[list[int]]:
    """Return first and last line of each part of the text that is still in the cache; gaps below 1% of it are closed."""
    lines = map(int, session.remembered("text"))
    found: list[list[int]] = []
    for line in lines:
        if found and line - found[-1][1] <= max(1, session.meter.lines // 100):
            found[-1][1] = line
        else:
            found.append([line, line])
    return found


def changes(run: Mapping[str, Any], session: Session) -> str:
    """Return what is not as in the file of a session that was loaded, as clauses of a sentence: KV budget and vision dtype."""
    budgets = [f"{budget} tokens per layer" if budget else "unbounded" for budget in (session.budget, run.get("kv_budget"))]
    dtypes = [str(session.family.vision_dtype).removeprefix("torch."), run.get("vision_dtype")]
    pairs: dict[str, list[Any]] = {"the KV budget is": budgets, "frames are computed in": dtypes}
    return "".join(f"; {what} {now} now, it was {before}" for what, (now, before) in pairs.items() if now != before)


def strips(session: Session) -> list[str]:
    """Return video and text as rows of blocks, from empty to full by the share of frames or lines still in the cache."""
    meter, rows = session.meter, []
    if meter.frames and meter.video_s > 0:
        rows.append(f"00:00:00 {_strip(session, 'video', meter.video_s, meter.frames)} {clock(meter.video_s)}")
    if meter.lines:
        rows.append(f"line 1 {_strip(session, 'text', meter.lines, meter.lines)} line {meter.lines:,}")
    return rows or ["no video and no text yet"]


def _strip(session: Session, kind: Kind, length: float, count: int, width: int = 60) -> str:
    levels = " ▁▂▃▄▅▆▇█"
    counts = [0] * width
    for place in session.remembered(kind):
        counts[min(width - 1, int(place / (length + 1e-6) * width))] += 1
    each = max(1.0, count / width)
    return f"|{''.join(levels[min(8, -int(-8 * count // each))] for count in counts)}|"
