"""The perplexity of one endless stream under one policy: chunks go in, the policy evicts between them, losses are summed.

Everything that decides the numbers is in `Run.state()`, so that a run can stop anywhere between two chunks and continue in
another process with the same digits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgemllm.commands.perplexity.curve import Curve, Point, perplexity
from edgemllm.commands.perplexity.scoring import losses
from edgemllm.device import memory
from edgemllm.errors import EdgeError, MissingError, OutOfMemoryError, UsageError, out_of_memory
from edgemllm.models.tokens import TokenStream
from edgemllm.models.weights import not_finite
from edgemllm.session import Session

STRIDES = 200
"""Points that the curve of a run of known length begins with."""

UNKNOWN_STRIDE = 1000
"""Tokens between the first points of a run whose length is not known."""


@dataclasses.dataclass
class Sums:
    """What a run has counted so far."""

    fed: int = 0
    """Tokens that went in; one more than were scored, since the first has nothing before it."""
    tokens: int = 0
    nll: float = 0.0
    bytes: int = 0
    seconds: float = 0.0
    full_at: int | None = None
    """Scored tokens when the cache evicted for the first time."""
    digest: str = ""
    """Of the ids that went in, each chunk hashed with the digest before it."""


class Run:
    """Scores `stream` with `session` until `target` tokens are scored, or the text ends where `target` is None.

    `limit`: the most tokens that a cache without bound may hold here.
    """

    def __init__(
        self, policy: str, session: Session, stream: TokenStream, target: int | None, limit: int | None = None
    ) -> None:
        self.policy, self.session, self.stream, self.target, self.limit = policy, session, stream, target, limit
        self.sums = Sums()
        self.curve = Curve(max(1, -(-target // STRIDES)) if target else UNKNOWN_STRIDE)
        self.agreement: dict[str, Any] | None = None
        """What `--compare-full` found."""
        self.failure: EdgeError | None = None
        """Why it ended early."""
        self.ended = False
        self.broken = False
        """A pass has failed and left a cache that nothing can continue from."""

    def go(self, pause: Callable[[Run], bool]) -> None:
        """Score until the end, a failure, or until `pause`, asked between chunks, says so."""
        try:
            with out_of_memory():
                while not pause(self) and self.step():
                    pass
        except EdgeError as error:
            self.failure = error

    def step(self) -> bool:
        """Score one chunk; False at the end."""
        began, sums = time.perf_counter(), self.sums
        want = self.session.chunk
        if self.target is not None:
            want = min(want, self.target - sums.tokens + (sums.fed == 0))
        if self.limit is not None and want > self.limit - sums.fed:
            raise OutOfMemoryError(
                f"policy {self.policy} never evicts: {self.limit} tokens per layer are what memory has room for"
            )
        ids, sizes = self.stream.take(want) if want > 0 else ([], [])
        if len(ids) < want and self.stream.stopped():  # in the middle of the text
            return False
        if not ids:
            self._end(short=want > 0)
            return False
        self.broken = True
        found = losses(self.session, ids)
        total = sums.nll + found.cumsum(0)
        if len(found) and not math.isfinite(float(total[-1])):
            family = self.session.family
            raise not_finite(family.name, family.model, family.dtype)
        self.broken = False
        sizes = sizes[len(ids) - len(found) :]
        before = dataclasses.replace(sums)
        self._count(ids)
        sums.tokens += len(found)
        sums.bytes += sum(sizes)
        sums.nll = float(total[-1]) if len(found) else sums.nll
        sums.seconds += time.perf_counter() - began
        for mark in self.curve.marks(before.tokens, sums.tokens):
            count = mark - before.tokens
            seconds = before.seconds + (sums.seconds - before.seconds) * count / len(found)
            size = before.bytes + sum(sizes[:count])
            kv, rss = self.session.cache.nbytes, memory.rss_bytes()
            self.curve.add(Point(mark, float(total[count - 1]), size, seconds, kv, rss))
        if sums.full_at is None and self.session.cache.managed[0].counts.evicted:
            sums.full_at = before.tokens
        return True

    def _end(self, short: bool) -> None:
        self.ended = True
        if self.sums.fed == 0:
            raise MissingError("there is no text: what was named is empty", "--text book.txt")
        if short and self.target is not None:
            raise MissingError(
                f"the text has {self.sums.tokens} tokens to score, --tokens asked for {self.target}", "--loop, or more --text"
            )

    def skip(self, count: int, digest: str) -> None:
        """Pass over the tokens scored before. Raises UsageError where the text is not the one that was scored."""
        wanted = dataclasses.replace(self.sums)
        self.sums.fed, self.sums.digest = 0, ""
        while self.sums.fed < count:
            ids, _ = self.stream.take(min(self.session.chunk, count - self.sums.fed))
            if not ids:
                break
            self._count(ids)
        if (self.sums.fed, self.sums.digest) != (count, digest):
            raise UsageError(
                f"the text is not the one of the checkpoint: its first {count} tokens differ",
                "the same --text, in the same order",
            )
        self.sums = wanted

    def _count(self, ids: list[int]) -> None:
        self.sums.fed += len(ids)
        self.sums.digest = hashlib.sha256((self.sums.digest + repr(ids)).encode()).hexdigest()

    # ---- stopping and continuing -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything besides the session that the numbers still to come depend on."""
        return {
            "sums": dataclasses.asdict(self.sums),
            "stride": self.curve.stride,
            "points": [list(point) for point in self.curve.points],
            "agreement": self.agreement,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()`; the session has been loaded already."""
        self.sums = Sums(**state["sums"])
        self.curve = Curve(state["stride"], [Point(*point) for point in state["points"]])
        self.agreement = state["agreement"]
        self.skip(self.sums.fed, self.sums.digest)

    # ---- what came out -----------------------------------------------------------------------------------------

    def point(self) -> Point:
        """Return where the run is now."""
        sums = self.sums
        return Point(sums.tokens, sums.nll, sums.bytes, sums.seconds, self.session.cache.nbytes, memory.rss_bytes())

    def notes(self) -> list[str]:
        """Return what a reader of the number has to know."""
        session, trained = self.session, self.trained
        found = []
        if trained and self.highest_position >= trained:
            found.append(
                f"positions ran to {self.highest_position}, the model was trained to {trained - 1}: "
                "perplexity rises where it was never trained"
            )
        if self.sums.full_at is not None and not self.sinks_kept:
            found.append("the first tokens of the stream (attention sinks) were evicted")
        if self.sums.full_at is None and session.policy.bounded and self.sums.tokens:
            found.append("nothing was evicted: the text fits in the cache")
        if self.stream.loops:
            found.append(f"the text was started again {self.stream.loops} times: repeated text is easier")
        return found

    @property
    def trained(self) -> int | None:
        """Return how many positions the model was trained on."""
        return getattr(self.session.family.config, "max_position_embeddings", None)

    @property
    def highest_position(self) -> int:
        """Return the highest position that rotated a key."""
        session = self.session
        renumbered = session.policy.positions == "cache"
        longest = max(layer.length for layer in session.cache.managed)
        if session.policy.bounded and renumbered and self.sums.full_at is not None and session.budget is not None:
            longest = session.budget
        return max(0, (longest if renumbered else self.sums.fed) - 1)

    @property
    def sinks_kept(self) -> bool:
        """Return whether every layer that the policy governs still holds the first token of the stream."""
        layers = [layer for layer in self.session.cache.managed if layer.length]
        return all(bool((layer.positions == 0).any()) for layer in layers)

    def as_json(self, device: str) -> dict[str, Any]:
        """Return one of the `runs` of the JSON output."""
        sums, last = self.sums, self.point()
        return {
            "policy": self.policy,
            "settings": dataclasses.asdict(self.session.policy),
            "tokens": sums.tokens,
            "nll_nats": sums.nll,
            "perplexity": perplexity(sums.nll, sums.tokens),
            "bits_per_byte": sums.nll / math.log(2) / sums.bytes if sums.bytes else None,
            "tokens_per_s": round(sums.tokens / sums.seconds, 2) if sums.seconds else 0.0,
            "bytes": sums.bytes,
            "seconds": round(sums.seconds, 3),
            "last_tenth_perplexity": self.curve.perplexity(round(0.9 * sums.tokens), sums.tokens, last),
            "chunk": self.session.chunk,
            "full_at": sums.full_at,
            "loops": self.stream.loops,
            "trained_tokens": self.trained,
            "highest_position": self.highest_position,
            "stopped": self.failure.message if self.failure else None if self.ended else "interrupted",
            "exit_code": self.failure.exit_code if self.failure else 0,
            "notes": self.notes(),
            "compare_full": self.agreement,
            "kv": self.session.kv(),
            "memory": memory.report(device),
            "curve": self.curve.as_json(last),
        }
