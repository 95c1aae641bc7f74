"""The loaded model and what all that use it share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from edgemllm.commands.serve.archives import Archives
from edgemllm.commands.serve.media import Media
from edgemllm.commands.serve.memory_plan import MemoryPlan
from edgemllm.commands.serve.metrics import Metrics
from edgemllm.commands.serve.refusal import Refusal
from edgemllm.commands.serve.schema import Sampled
from edgemllm.commands.serve.turns import Turns, Work
from edgemllm.errors import out_of_memory
from edgemllm.launch import Launch
from edgemllm.models.chat import Sampling
from edgemllm.models.families.base import ModelFamily
from edgemllm.session import Session

T = TypeVar("T")


class Output(Generic[T]):
    """What work in the model's thread brings, for a coroutine. Putting never waits: a slow reader holds nobody up."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()

    def put(self, item: T) -> None:
        """Add something; called in the model's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (item,))

    def end(self, failure: BaseException | None) -> None:
        """Say that nothing more comes, and why; called in the model's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close, failure)

    def close(self, failure: BaseException | None = None) -> None:
        """Do the same in the loop's own thread."""
        self._queue.put_nowait(failure)

    async def __aiter__(self) -> AsyncIterator[T]:
        while isinstance(item := await self._queue.get(), tuple):
            yield item[0]
        if item is not None:
            raise item


@dataclass
class Engine:
    """One model, loaded once."""

    launch: Launch
    family: ModelFamily
    sampling: Sampling
    """How answers are made where a request says nothing."""
    media: Media
    memory: MemoryPlan
    say: Callable[[str], None]
    """Reports a line to whoever runs the server."""
    archives: Archives | None = None
    """None: nothing is kept."""
    metrics: Metrics = field(default_factory=Metrics)
    turns: Turns = field(default_factory=Turns)

    def __post_init__(self) -> None:
        self._seeds = itertools.count(self.sampling.seed)

    @property
    def name(self) -> str:
        """Return what clients call the model: the end of a path, which says nothing of this machine."""
        name = self.launch.request.model
        return Path(name).name if Path(name).exists() else name

    def keeps_archive(self, wanted: bool | None) -> bool:
        """Return whether an archive is kept where that is `wanted`, or nothing is said. Raises Refusal where none can be."""
        if wanted and self.archives is None:
            raise Refusal(400, "this server keeps no archives", "edgemllm serve --archive FOLDER", param="archive")
        return self.archives is not None and wanted is not False

    def session(self, system: str | None, question: str | None = None, make: Callable[..., Session] = Session) -> Session:
        """Return an empty session as it was planned; `question`: what will be asked after what is shown."""
        launch = self.launch
        focus = (question,) if question and launch.focus else ()
        return launch.session(self.family, make, system=system or launch.request.system, focus=focus)

    def sampling_of(self, request: Sampled) -> Sampling:
        """Return how to answer a request. One without a seed gets the next: the same question may be answered differently."""
        own, seed = self.sampling, request.seed
        return Sampling(
            request.max_completion_tokens or request.max_tokens or own.max_tokens,
            own.temperature if request.temperature is None else request.temperature,
            own.top_p if request.top_p is None else request.top_p,
            next(self._seeds) % (1 << 63) if seed is None else seed % (1 << 63),
        )


async def take_turns(turns: Turns, steps: Work) -> None:
    """Let steps take turns until they end. Cancelled, it ends them before the next one, and waits until their cache is gone."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[BaseException | None] = loop.create_future()

    def ended(failure: BaseException | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set_result, failure)

    turn = turns.add(_guarded(steps), ended)
    try:
        failure = await asyncio.shield(done)
    except asyncio.CancelledError:
        turn.cancel()
        await done
        raise
    if failure is not None:
        raise failure


def _guarded(steps: Work) -> Work:
    """Give the same steps, with one error for every shape in which memory runs out."""
    with out_of_memory():
        yield from steps
