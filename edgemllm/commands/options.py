"""Options that several commands have: each declared once, with type, default, help and names, in groups taken whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemllm.commands.events import Events
from edgemllm.errors import UsageError
from edgemllm.media.detail import Detail
from edgemllm.screen import Display
from edgemllm.units import parse_time

if TYPE_CHECKING:
    from edgemllm.planning.request import Request

# What only a run or a completion needs is imported there: help pages import this file, and are to come at once.

MODEL, MEDIA, MEMORY, ANSWER, OUTPUT = "Model", "Media", "Memory", "Answer", "Output"
TEXT, RUN, ASKING = "Text", "Long runs", "Asking"

LARGEST_SEED = 2**63 - 1
"""What torch's and numpy's generators take."""


def option(*names: str, help: str, panel: str, **more: Any) -> Any:
    """Declare an option that is also read from the environment, under the heading `panel` of the help page."""
    environment = "EDGEMLLM_" + names[0].partition("/")[0].strip("-").upper().replace("-", "_")
    return typer.Option(*names, help=help, rich_help_panel=panel, envvar=environment, show_envvar=False, **more)


def listed(text: str, option: str) -> list[str]:
    """Return the values of an option that takes several, a,b,c. Raises UsageError where one is empty."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UsageError(f"{option} {text!r} has an empty value", f"{option} a,b")
    return words


def _complete_policy(incomplete: str) -> list[str]:
    from edgemllm import policies

    return [name for name in policies.names() if name.startswith(incomplete)]


def _complete_profile(incomplete: str) -> list[str]:
    from edgemllm.device import profiles

    return [name for name in ["auto", *profiles.names()] if name.startswith(incomplete)]


def _policy(help: str) -> Any:
    return option("--policy", help=f"{help} [default: the profile's]", panel=MEMORY, autocompletion=_complete_policy)


@dataclass(frozen=True)
class RequestOptions:
    """The model, where it runs, and what its cache keeps."""

    model: Annotated[
        str, option("--model", "-m", help="A name of `models`, random:NAME, a hub id, a folder or a .gguf file.", panel=MODEL)
    ] = "demo"
    profile: Annotated[
        str, option("--profile", "-p", help="auto, a name or a file.", panel=MEMORY, autocompletion=_complete_profile)
    ] = "auto"
    policy: Annotated[str | None, _policy("Which tokens the cache keeps: a name of `edgemllm policies`, or file.py:Class.")] = (
        None
    )
    set: Annotated[list[str], option("--set", help="A policy's own setting, key=value; repeatable.", panel=MEMORY)] = field(
        default_factory=list
    )
    kv_budget: Annotated[
        str,
        option(
            "--kv-budget", help="2048 tokens per layer, 512MiB in total, 25% of what full would hold, or auto.", panel=MEMORY
        ),
    ] = "auto"
    quant: Annotated[str, option("--quant", help="Weights: auto, none, nf4, int8 or (on a CPU) int4.", panel=MODEL)] = "auto"
    kv_bits: Annotated[
        str, option("--kv-bits", help="Bits of cached keys and values: 16, 8, 4, k8v4; auto: 16.", panel=MEMORY)
    ] = "auto"
    dtype: Annotated[str, option("--dtype", help="auto, bfloat16, float16 or float32.", panel=MODEL)] = "auto"
    device: Annotated[str, option("--device", help="auto, cpu, cuda or mps.", panel=MODEL)] = "auto"
    chunk: Annotated[
        int | None,
        option("--chunk", help="Prefill chunk in tokens. Try 128 or 64 if memory runs out during prefill.", panel=MEMORY),
    ] = None
    offline: Annotated[bool, option("--offline", help="Never touch the network.", panel=MODEL)] = False
    trust_remote_code: Annotated[
        bool, option("--trust-remote-code", help="Allow the checkpoint's own code to run.", panel=MODEL)
    ] = False

    def request(self, **more: Any) -> Request:
        """Return what to prepare; `more` are fields of the request that the command decides itself."""
        from edgemllm.planning.request import Request

        return Request(**(self._fields() | more))

    def _fields(self) -> dict[str, Any]:
        fields = dict(vars(self))
        return {"settings": fields.pop("set"), **fields}


@dataclass(frozen=True)
class ComparedOptions(RequestOptions):
    """The same for a command that runs several policies side by side."""

    policy: Annotated[str | None, _policy("One or more names of `edgemllm policies`, a,b,c, at equal KV bytes.")] = None

    @property
    def policies(self) -> list[str]:
        """Return the names; where there are none, that of the profile."""
        from edgemllm.device import detect

        return listed(self.policy if self.policy is not None else detect.profile(self.profile).cache.policy, "--policy")


@dataclass(frozen=True)
class SamplingOptions:
    """How densely videos are sampled."""

    fps: Annotated[float, option("--fps", help="Frames per second to look at.", panel=MEDIA)] = 1.0
    max_frames: Annotated[
        int | None, option("--max-frames", help="Maximum number of frames, spread evenly over the video.", panel=MEDIA)
    ] = None

    def sampling(self) -> dict[str, Any]:
        """Return it as keywords of `Video.open`, without a span."""
        return {"fps": self.fps, "max_frames": self.max_frames}


@dataclass(frozen=True)
class ClipOptions(SamplingOptions):
    """Which frames of a recording."""

    start: Annotated[str | None, option("--start", help="Start at this time: 90, 1:30 or 1m30s.", panel=MEDIA)] = None
    end: Annotated[str | None, option("--end", help="Stop at this time.", panel=MEDIA)] = None

    def of(self) -> dict[str, Any]:
        """Return them as keywords of `Video.open` and `Source`, times in seconds."""
        start = parse_time(self.start) if self.start else 0.0
        end = parse_time(self.end) if self.end else None
        return {**self.sampling(), "start": start, "end": end}


@dataclass(frozen=True)
class DetailOptions:
    """How large pictures are."""

    max_pixels: Annotated[
        int | None,
        option("--max-pixels", help="Downscale larger pictures to this many pixels: fewer tokens, less detail.", panel=MEDIA),
    ] = None
    tokens_per_frame: Annotated[
        int | None,
        option("--tokens-per-frame", help="Maximum tokens per video frame; fewer tokens fit a longer video.", panel=MEDIA),
    ] = None

    def detail(self) -> Detail:
        """Return what the family is asked for."""
        return Detail(self.max_pixels, self.tokens_per_frame)


@dataclass(frozen=True)
class FocusOptions:
    """What the cache looks out for before it is asked."""

    focus: Annotated[
        list[str],
        option(
            "--focus",
            help="What matters, such as 'people at the door'; repeatable. [default: questions that are known beforehand]",
            panel=MEMORY,
        ),
    ] = field(default_factory=list)
    no_focus: Annotated[
        bool, option("--no-focus", help="Keep what the stream itself looks at, until something is asked.", panel=MEMORY)
    ] = False

    def of(self, known: Sequence[str]) -> dict[str, Any]:
        """Return fields of the request, for a run in which the questions `known` will be asked. Raises UsageError."""
        if self.focus and self.no_focus:
            raise UsageError("--focus and --no-focus contradict each other", "one of them")
        return {"focus": self.focus, "known": [] if self.no_focus else list(dict.fromkeys(known))}


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are made."""

    system: Annotated[str | None, option("--system", "-s", help="A system prompt.", panel=ANSWER)] = None
    max_tokens: Annotated[int, option("--max-tokens", help="Maximum length of an answer in tokens.", panel=ANSWER, min=1)] = 512
    temperature: Annotated[
        float,
        option("--temperature", "-t", help="Sampling temperature; 0 always picks the likeliest token.", panel=ANSWER, min=0),
    ] = 0.0
    top_p: Annotated[
        float,
        option("--top-p", help="Sample from the likeliest tokens with this total probability.", panel=ANSWER, min=0, max=1),
    ] = 1.0
    seed: Annotated[int, option("--seed", help="Random seed for sampling.", panel=ANSWER, min=0, max=LARGEST_SEED)] = 0


Json = Annotated[bool, option("--json", help="One JSON object on stdout at the end.", panel=OUTPUT)]


@dataclass(frozen=True)
class JsonOptions:
    """JSON on standard output."""

    json: Json = False
    jsonl: Annotated[bool, option("--jsonl", help="One JSON object per event on stdout.", panel=OUTPUT)] = False

    @property
    def either(self) -> bool:
        """Return whether standard output is JSON."""
        return self.json or self.jsonl

    def events(self, command: str) -> Events:
        """Return the writer of a command's events and result."""
        return Events(command, self.json, self.jsonl)


Quiet = Annotated[bool, option("--quiet", "-q", help="Print only the answers.", panel=OUTPUT)]
Verbose = Annotated[bool, option("--verbose", "-v", help="Also print tracebacks and the libraries' warnings.", panel=OUTPUT)]


@dataclass(frozen=True)
class ScreenOptions:
    """What stderr shows."""

    quiet: Quiet = False
    verbose: Verbose = False
    progress: Annotated[str, option("--progress", help="auto, plain or none.", panel=OUTPUT)] = "auto"

    def display(self, echo: Callable[[bool], None] = lambda shown: None) -> Display:
        """Return the live line; `echo` switches the terminal's. Raises UsageError for an unknown mode."""
        return Display("none" if self.quiet else self.progress, echo=echo)


Videos = Annotated[list[str], option("--video", help="A video, or a folder of images; repeatable.", panel=MEDIA)]
Subtitles = Annotated[
    str | None,
    option("--subtitles", help="Its .srt or .vtt; auto: the one of its name beside it. [default: none]", panel=MEDIA),
]


@dataclass(frozen=True)
class WordOptions:
    """What is read, beside what is seen."""

    text: Annotated[
        list[str], option("--text", help="A text file of any length, or - for standard input; repeatable.", panel=MEDIA)
    ] = field(default_factory=list)
    subtitles: Subtitles = None


Questions = Annotated[list[str] | None, typer.Argument(metavar="QUESTION", help="One or more, in quotes.", show_default=False)]
Plot = Annotated[Path | None, option("--plot", help="Draw the run: a .png, .svg or .pdf.", panel=OUTPUT)]
DryRun = Annotated[bool, option("--dry-run", help="Print the plan and stop: exit 0 if it fits, 4 if not.", panel=OUTPUT)]
