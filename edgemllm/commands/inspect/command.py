"""What `edgemllm inspect` does with its options: run the same input several times, and draw what was seen."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemllm.cache.chunk import Modality
from edgemllm.commands import figures, options
from edgemllm.commands.events import headed, write
from edgemllm.commands.inspect import pictures
from edgemllm.commands.inspect.options import InputOptions, PictureOptions
from edgemllm.commands.inspect.watch import LONGEST, Kept, LayerEntropy, Watcher, entropies
from edgemllm.commands.lineup import half_or_least, line_up
from edgemllm.commands.tables import markdown
from edgemllm.errors import DoesNotFitError, MissingError, UsageError, out_of_memory
from edgemllm.launch import Launch, prepare
from edgemllm.media.text import Text
from edgemllm.media.video import Video
from edgemllm.models.chat import Sampling
from edgemllm.policies.window import Window
from edgemllm.screen import Display
from edgemllm.session import Session

FILES = ("attention.png", "entropy.png", "kept.png")


def inspect(
    questions: Sequence[str],
    shown: InputOptions,
    clip: options.ClipOptions,
    drawn: PictureOptions,
    run: options.ComparedOptions,
    json: bool,
    quiet: bool,
) -> None:
    """Run the command."""
    _check(shown, drawn.out)
    with _folder(drawn.out):
        _draw(questions, shown, clip, drawn, run, json, quiet)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder before a long run rather than after it; where nothing comes to be drawn, none is left."""
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {path}: {error.strerror}", "another folder for --out") from error
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # pictures are in it
                path.rmdir()
        raise


def _draw(
    questions: Sequence[str],
    shown: InputOptions,
    clip: options.ClipOptions,
    drawn: PictureOptions,
    run: options.ComparedOptions,
    json: bool,
    quiet: bool,
) -> None:
    display, names = Display("none" if quiet else "auto"), run.policies
    words = "".join(Text([str(path) for path in shown.text], run.offline).blocks()) if shown.text else ""
    if shown.text and not words:
        raise MissingError("there is no text: what --text names is empty", "--text page.txt")
    source = Input(shown.video, clip, words, questions or ["What do you see?"] * bool(shown.video))
    whole = prepare(run.request(policy="window", settings=(), kv_budget="auto"))
    session, watcher = _watched(whole, source)
    layers = session.cache.managed
    chosen = drawn.layer or sorted({0, len(layers) // 2, len(layers) - 1})
    if any(number not in range(len(layers)) for number in chosen):
        raise UsageError(f"--layer {chosen}: the model has layers 0 to {len(layers) - 1}")
    length = session.cache.seen
    launches = _launches(run, names, length)
    attention, entropy, kept = files = [drawn.out / name for name in FILES]
    found = entropies(session)
    vision = (layers[0].modality[0, 0, :length] == Modality.VISION).cpu()
    pictures.attention({number: watcher.map(layers[number]) for number in chosen}, vision, attention)
    pictures.entropy(found, entropy)
    pictures.kept({launch.policy_name: _kept(launch, session, source, length) for launch in launches}, kept)
    if not json:
        display.say(f"{length} tokens, {int(vision.sum())} of them video; entropy in nats")
    _write(found, length, [str(path) for path in files], json)


@dataclass(frozen=True)
class Input:
    """What every session is shown: videos, text, and questions of which only the first token is answered."""

    videos: Sequence[str]
    clip: options.ClipOptions
    words: str
    questions: Sequence[str]

    def feed(self, session: Session) -> None:
        """Show it to a session."""
        with out_of_memory():
            for source in self.videos:
                with Video.open(source, **self.clip.of()) as video:
                    session.watch(video)
            if self.words:
                session.feed(session.family.text(session.family.tokenize(self.words), session.position))
            for question in self.questions:
                for _ in session.ask(question, Sampling(max_tokens=1)):
                    pass


def _check(shown: InputOptions, out: Path) -> None:
    if not shown.video and not shown.text:
        raise UsageError("nothing to look at", "--video clip.mp4 or --text page.txt")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file", "name a folder")
    figures.check(out.parent / FILES[0], "inspect")


def _watched(whole: Launch, source: Input) -> tuple[Session, Watcher]:
    """Run the input once to count its tokens, in a cache of as many as a map can show, and once with all of them watched."""
    probe = dataclasses.replace(whole, policy=Window(), budget=LONGEST).open()
    probe.on_step = _short
    source.feed(probe)
    watcher = Watcher()
    session = Session(probe.family, watcher, None, whole.chunk)
    source.feed(session)
    return session, watcher


def _short(session: Session) -> None:
    if session.cache.seen > LONGEST:
        raise DoesNotFitError(
            f"the input has more than {LONGEST} tokens, too many for an attention map",
            "a shorter input: --end, --max-frames or a lower --fps",
        )


def _launches(run: options.ComparedOptions, names: Sequence[str], length: int) -> list[Launch]:
    """Line the policies up over an input of `length` tokens."""
    request = run.request(policy=None)
    if run.kv_budget == "auto":
        return half_or_least(request, names, length)
    return line_up(request, names, length)


def _kept(launch: Launch, session: Session, source: Input, length: int) -> Kept:
    """Run the input under a policy, with the weights of `session`."""
    kept = Kept(length)
    source.feed(launch.open(kept.step, session.family))
    return kept


def _write(found: Sequence[LayerEntropy], length: int, files: Sequence[str], json: bool) -> None:
    if json:
        described = [{"layer": number, **dataclasses.asdict(each)} for number, each in enumerate(found)]
        write(headed("inspect", {"tokens": length, "entropy": described, "files": files}))
        return
    rows = [
        (str(number), f"{each.own:.2f}", "–" if each.cross is None else f"{each.cross:.2f}", f"{each.most:.2f}")
        for number, each in enumerate(found)
    ]
    print("\n".join([markdown([("layer", "self", "cross", "of at most"), *rows]), *files]))
