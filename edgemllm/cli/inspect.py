"""`edgemllm inspect`: pictures of attention, its entropy by layer, and of the slots that a policy kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemllm.cli import options
from edgemllm.errors import DoesNotFitError, MissingError, UsageError
from edgemllm.units import parse_time

if TYPE_CHECKING:
    from edgemllm.session import Session


def inspect(
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION", help="One or more, in quotes.", show_default=False)
    ] = None,
    video: options.Videos = [],  # noqa: B006
    text: Annotated[list[Path], options.option("--text", help="A text file; repeatable.", panel=options.MEDIA)] = [],  # noqa: B006
    fps: options.Fps = 1.0,
    max_frames: options.MaxFrames = None,
    start: options.Start = None,
    end: options.End = None,
    layer: Annotated[
        list[int],
        options.option("--layer", help="Layers to draw. [default: three]", panel=options.OUTPUT),
    ] = [],  # noqa: B006
    out: Annotated[Path, options.option("--out", "-o", help="Folder for the pictures.", panel=options.OUTPUT)] = Path(
        "inspect"
    ),
    model: options.Model = "demo",
    profile: options.Profile = "auto",
    policy: options.Policies = None,
    set: options.Settings = [],  # noqa: B006
    kv_budget: options.KvBudget = "auto",
    quant: options.Quant = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    chunk: options.ChunkSize = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    offline: options.Offline = False,
    trust_remote_code: options.Trust = False,
) -> None:
    """Draw what attention looks at and what policies keep.

    Writes attention.png, entropy.png (how spread attention is in each layer) and kept.png.
    --kv-budget auto is half of the input, or as much as the policies need at least.
    """
    from edgemllm.commands import figures
    from edgemllm.commands.events import headed, write
    from edgemllm.screen import Display

    if not video and not text:
        raise UsageError("nothing to look at", "--video clip.mp4 or --text page.txt")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file", "name a folder")
    figures.check(out.parent / "attention.png", "inspect")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {out}: {error.strerror}", "another folder for --out") from error
    from edgemllm.cache.chunk import Modality
    from edgemllm.commands.inspect import pictures
    from edgemllm.commands.inspect.watch import LONGEST, Kept, Watcher, entropies
    from edgemllm.commands.lineup import half_or_least, line_up
    from edgemllm.commands.perplexity.text import Text
    from edgemllm.device import profiles
    from edgemllm.launch import Request, out_of_memory, prepare
    from edgemllm.media.video import Video
    from edgemllm.models.chat import Sampling
    from edgemllm.policies.window import Window
    from edgemllm.session import Session

    display = Display("none" if quiet else "auto")
    times: dict[str, Any] = {"start": parse_time(start) if start else 0.0, "end": parse_time(end) if end else None}
    words = "".join(Text([str(path) for path in text], offline).blocks()) if text else ""
    if text and not words:
        raise MissingError("there is no text: what --text names is empty", "--text page.txt")

    def feed(session: Session) -> None:
        with out_of_memory():
            for source in video:
                opened = Video.open(source, fps=fps, max_frames=max_frames, **times)
                with opened:
                    session.watch(opened)
            if words:
                session.feed(session.family.text(session.family.tokenize(words), session.position))
            for question in questions or ["What do you see?"] * bool(video):
                for _ in session.ask(question, Sampling(max_tokens=1)):
                    pass

    names = options.listed(policy or profiles.load(profile).cache.policy, "--policy")
    request = Request(model, profile, "window", (), "auto", quant, dtype, device, chunk, offline, trust_remote_code)
    whole = prepare(request)
    probe = dataclasses.replace(whole, policy=Window(), budget=LONGEST).open()
    probe.on_step = lambda session: _short(session, LONGEST)
    feed(probe)
    length = probe.cache.seen
    watcher = Watcher()
    session = Session(probe.family, watcher, None, whole.chunk)
    feed(session)
    layers = session.cache.managed
    chosen = layer or sorted({0, len(layers) // 2, len(layers) - 1})
    if any(number not in range(len(layers)) for number in chosen):
        raise UsageError(f"--layer {chosen}: the model has layers 0 to {len(layers) - 1}")
    budget = dataclasses.replace(request, policy=None, settings=set, kv_budget=kv_budget)
    launches = half_or_least(budget, names, length) if kv_budget == "auto" else line_up(budget, names, length)
    found = entropies(session)
    vision = layers[0].modality[0, 0, :length] == Modality.VISION
    pictures.attention({number: watcher.map(layers[number]) for number in chosen}, vision.cpu(), out / "attention.png")
    pictures.entropy(found, out / "entropy.png")
    runs: dict[str, Kept] = {}
    for launch in launches:
        runs[launch.policy_name] = kept = Kept(length)
        feed(launch.open(kept.step, session.family))
    pictures.kept(runs, out / "kept.png")
    files = [str(out / name) for name in ("attention.png", "entropy.png", "kept.png")]
    if json:
        described = [{"layer": number, **dataclasses.asdict(each)} for number, each in enumerate(found)]
        write(headed("inspect", {"tokens": length, "entropy": described, "files": files}))
        return
    display.say(f"{length} tokens, {int(vision.sum())} of them video; entropy in nats")
    print("| layer | self | cross | of at most |\n|---|---|---|---|")
    for number, each in enumerate(found):
        print(f"| {number} | {each.own:.2f} | {'–' if each.cross is None else f'{each.cross:.2f}'} | {each.most:.2f} |")
    print("\n".join(files))


def _short(session: Session, longest: int) -> None:
    if session.cache.seen > longest:
        raise DoesNotFitError(
            f"the input has more than {longest} tokens, too many for an attention map",
            "a shorter input: --end, --max-frames or a lower --fps",
        )
