"""The options that mean the same in every command, and where else their values come from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgemllm.errors import UsageError, nearest, opening

MODEL, MEDIA, MEMORY, ANSWER, OUTPUT = "Model", "Media", "Memory", "Answer", "Output"
TEXT, RUN, ASKING = "Text", "Long runs", "Asking"


LARGEST_SEED = 2**63 - 1
"""What torch's and numpy's generators take."""


def option(*names: str, help: str, panel: str, **more: Any) -> Any:
    """An option that is also read from the environment, under the heading `panel` of the help page."""
    environment = "EDGEMLLM_" + names[0].strip("-").upper().replace("-", "_")
    return typer.Option(*names, help=help, rich_help_panel=panel, envvar=environment, show_envvar=False, **more)


def listed(text: str, option: str) -> list[str]:
    """The values of an option that takes several, a,b,c. Raises UsageError where one is empty."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UsageError(f"{option} {text!r} has an empty value", f"{option} a,b")
    return words


def complete_policy(incomplete: str) -> list[str]:
    """Names for the shell, without importing a policy."""
    from edgemllm import policies

    return [name for name in policies.names() if name.startswith(incomplete)]


def complete_profile(incomplete: str) -> list[str]:
    """Names for the shell."""
    from edgemllm.device import profiles

    return [name for name in ["auto", *profiles.names()] if name.startswith(incomplete)]


Model = Annotated[str, option("--model", "-m", help="A name of `models`, random:NAME, a hub id or a folder.", panel=MODEL)]
Quant = Annotated[str, option("--quant", help="Weights: auto, none, nf4 or int8.", panel=MODEL)]
Dtype = Annotated[str, option("--dtype", help="auto, bfloat16, float16 or float32.", panel=MODEL)]
Device = Annotated[str, option("--device", help="auto, cpu, cuda or mps.", panel=MODEL)]
Offline = Annotated[bool, option("--offline", help="Never touch the network.", panel=MODEL)]
Trust = Annotated[bool, option("--trust-remote-code", help="Let the checkpoint's own code run.", panel=MODEL)]
Profile = Annotated[
    str, option("--profile", "-p", help="auto, a name or a file.", panel=MEMORY, autocompletion=complete_profile)
]
Policy = Annotated[
    str | None,
    option(
        "--policy",
        help="Which tokens the cache keeps: a name of `edgemllm policies`, or file.py:Class. [default: the profile's]",
        panel=MEMORY,
        autocompletion=complete_policy,
    ),
]
Settings = Annotated[list[str], option("--set", help="A policy's own setting, key=value; repeatable.", panel=MEMORY)]
KvBudget = Annotated[
    str,
    option("--kv-budget", help="2048 tokens a layer, 512MiB over all, 25% of what full would hold, or auto.", panel=MEMORY),
]
ChunkSize = Annotated[
    int | None,
    option("--chunk", help="Prefill chunk in tokens. Try 128 or 64 if memory runs out during prefill.", panel=MEMORY),
]
Videos = Annotated[list[str], option("--video", help="A video, or a folder of images; repeatable.", panel=MEDIA)]
Images = Annotated[list[str], option("--image", help="A still image; repeatable.", panel=MEDIA)]
Fps = Annotated[float, option("--fps", help="Frames a second to look at.", panel=MEDIA)]
MaxFrames = Annotated[int | None, option("--max-frames", help="At most so many frames, spread over the video.", panel=MEDIA)]
MaxPixels = Annotated[
    int | None, option("--max-pixels", help="Larger pictures are made smaller: fewer tokens, less detail.", panel=MEDIA)
]
TokensPerFrame = Annotated[
    int | None, option("--tokens-per-frame", help="At most so many a video frame: the video may be longer.", panel=MEDIA)
]
Start = Annotated[str | None, option("--start", help="Begin there: 90, 1:30 or 1m30s.", panel=MEDIA)]
End = Annotated[str | None, option("--end", help="Stop there.", panel=MEDIA)]
StreamSource = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A video, /dev/video0, rtsp:// or http://, a GStreamer pipeline, a folder that grows, or - for JPEG and PNG "
        "images on standard input.",
        show_default=False,
    ),
]
Ask = Annotated[list[str], option("--ask", help="A standing question; repeatable. See --every.", panel=ASKING)]
Every = Annotated[
    list[str],
    option("--every", help="How often: 30s, 5m; one for all standing questions or one for each. [default: 30s]", panel=ASKING),
]
At = Annotated[
    list[str],
    option(
        "--at",
        help="A question at a time of the stream, or at its end: --at 00:10:00 'Who came?'; repeatable.",
        panel=ASKING,
        metavar="TIME QUESTION",
    ),
]
Live = Annotated[
    bool | None,
    option(
        "--live/--no-live",
        help="Watch by the clock and drop what the model is too slow for. [default: only what does not wait]",
        panel=MEDIA,
    ),
]
Retries = Annotated[
    int, option("--retries", help="Attempts to connect to a lost source again; -1: for ever.", panel=MEDIA, min=-1)
]
Timeout = Annotated[
    str | None,
    option("--timeout", help="Silence after which an address is lost (10s), or a folder has ended (never).", panel=MEDIA),
]
SkipSimilar = Annotated[
    float | None,
    option("--skip-similar", help="Skip frames this similar to the last one seen, such as 0.98. [default: none]", panel=MEDIA),
]
Save = Annotated[
    Path | None,
    option("--save", help="Write the session there at the end, and on SIGTERM and SIGUSR1.", panel=RUN),
]
ResumeFrom = Annotated[
    Path | None,
    option("--resume", help="Go on from a saved session; where --save names the same file, it need not exist.", panel=RUN),
]
Srt = Annotated[bool, option("--srt", help="The answers as SRT subtitles on stdout.", panel=OUTPUT)]
Vtt = Annotated[bool, option("--vtt", help="The answers as WebVTT subtitles on stdout.", panel=OUTPUT)]
Texts = Annotated[
    list[str],
    option("--text", help="A file, a folder, - for standard input, wikitext103 or pg19; repeatable.", panel=TEXT),
]
Tokens = Annotated[str | None, option("--tokens", help="How many to score: 4M, 250k, 1e6. [default: all]", panel=TEXT)]
Loop = Annotated[bool, option("--loop", help="Begin the text again where it ends.", panel=TEXT)]
Policies = Annotated[
    str | None,
    option(
        "--policy",
        help="One or more names of `edgemllm policies`, a,b,c, at equal KV bytes. [default: the profile's]",
        panel=MEMORY,
        autocompletion=complete_policy,
    ),
]
CompareFull = Annotated[
    bool, option("--compare-full", help="Also the KL divergence from the full cache, as far as that fits.", panel=RUN)
]
CheckpointFile = Annotated[
    Path | None, option("--checkpoint", help="Write the state of the run to this file, for --resume.", panel=RUN)
]
CheckpointEvery = Annotated[str, option("--checkpoint-every", help="Tokens between two checkpoints.", panel=RUN)]
Resume = Annotated[bool, option("--resume", help="Go on from the checkpoint, if there is one.", panel=RUN)]
Plot = Annotated[Path | None, option("--plot", help="Draw the run: a .png, .svg or .pdf.", panel=OUTPUT)]
Contexts = Annotated[str, option("--context", help="Tokens of the prompt, one or more: 2k,32k.", panel=RUN)]
NewTokens = Annotated[int, option("--new-tokens", help="Tokens decoded behind the first.", panel=RUN, min=1)]
Repeat = Annotated[int, option("--repeat", help="How often a cell is measured, after a warm-up.", panel=RUN, min=1)]
CompareStock = Annotated[
    bool, option("--compare-stock", help="Also transformers' own generate with its growing cache.", panel=RUN)
]
OutputFormat = Annotated[str, option("--output", "-o", help="md, json, jsonl or csv.", panel=OUTPUT)]
System = Annotated[str | None, option("--system", "-s", help="A system prompt.", panel=ANSWER)]
MaxTokens = Annotated[int, option("--max-tokens", help="Longest answer in tokens.", panel=ANSWER, min=1)]
Temperature = Annotated[float, option("--temperature", "-t", help="0 takes the likeliest token.", panel=ANSWER, min=0)]
TopP = Annotated[float, option("--top-p", help="Sample among the likeliest that fill this share.", panel=ANSWER, min=0, max=1)]
Seed = Annotated[int, option("--seed", help="Of the sampling.", panel=ANSWER, min=0, max=LARGEST_SEED)]
Json = Annotated[bool, option("--json", help="One JSON object on stdout at the end.", panel=OUTPUT)]
Jsonl = Annotated[bool, option("--jsonl", help="One JSON object an event on stdout.", panel=OUTPUT)]
Quiet = Annotated[bool, option("--quiet", "-q", help="Only the answers.", panel=OUTPUT)]
Verbose = Annotated[bool, option("--verbose", "-v", help="Also tracebacks and the libraries' warnings.", panel=OUTPUT)]
Progress = Annotated[str, option("--progress", help="auto, plain or none.", panel=OUTPUT)]
DryRun = Annotated[bool, option("--dry-run", help="Plan and stop: exit 0 if it fits, 4 if not.", panel=OUTPUT)]


def config_files() -> list[Path]:
    """`./edgemllm.toml` and the user's, the first of them wins."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [path for path in (Path("edgemllm.toml"), home / "edgemllm" / "config.toml") if path.is_file()]


def defaults_from_files(commands: dict[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Option values of the configuration files for every command, as click's `default_map`.

    `commands` maps a command to its option names. Top-level keys count for every command that has the option, a table
    `[chat]` for that one. Raises UsageError for an unknown key.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in commands}
    known = {option for options in commands.values() for option in options}
    for path in reversed(config_files()):
        for key, value in _read(path).items():
            if isinstance(value, dict) and key in commands:
                for inner, setting in value.items():
                    _known(inner, commands[key], path)
                    found[key][inner.replace("-", "_")] = setting
                continue
            _known(key, known, path)
            for name, options in commands.items():
                if key.replace("-", "_") in options:
                    found[name][key.replace("-", "_")] = value
    return found


def written(command: str, name: str) -> tuple[Path | None, Any]:
    """The configuration file that an option's value comes from, and that value; (None, None) where there is none."""
    for path in config_files():
        table = _read(path)
        own = table.get(command)
        for values in (own if isinstance(own, dict) else {}, table):
            for key, value in values.items():
                if key.replace("-", "_") == name:
                    return path, value
    return None, None


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with opening(path, UsageError):
            return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def _known(key: str, known: set[str], path: Path) -> None:
    if key.replace("-", "_") not in known:
        names = [name.replace("_", "-") for name in known]
        raise UsageError(f"{path}: unknown key {key!r}{nearest(key, names)}", "keys are option names without the dashes")
