"""What is the same for every video of a batch: model, cache, sampling; and the identity by which a batch is continued."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from edgemllm.batch.weights import fingerprint
from edgemllm.launch import Launch, prepare
from edgemllm.planning.budget import parse_kv_budget
from edgemllm.planning.request import Request
from edgemllm.version import __version__

DECIDED = (
    "model", "profile", "policy", "settings", "kv_budget", "quant", "dtype", "device", "chunk", "offline", "trust_remote_code",
    "known",
)  # fmt: skip
"""Fields of a request that its launch decides, or that change no answer; all others are part of a job's identity."""


@dataclass(frozen=True)
class Job:
    """How every video is watched and answered. It can be pickled, and loads nothing."""

    request: Request
    clip: Mapping[str, Any] = field(default_factory=dict)
    """Which frames: keywords of `Video.open`."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How answers are chosen: keywords of `Sampling`."""
    foresee: bool = True
    """The questions of a video are the focus of its cache, as far as a policy takes one."""
    retries: int = 0
    """How often a video is tried again that failed in a way that may pass."""

    @property
    def shares(self) -> bool:
        """Return whether each video has a KV budget of its own, a share of its length."""
        return parse_kv_budget(self.request.kv_budget).kind == "share"

    def known(self, questions: int) -> tuple[str, ...]:
        """Return stand-ins for the questions of a video, for which the plan makes room."""
        return tuple(f"question {number}" for number in range(questions)) if self.foresee else ()

    def planned(self, questions: int = 1) -> tuple[Job, Launch]:
        """Return its launch for `questions` per video, and the job with a KV budget that no longer depends on free memory.

        Raises as `prepare` does; where it would not fit, the launch's plan says so.
        """
        budget = "auto" if self.shares else self.request.kv_budget  # of a share: what there is room for
        launch = prepare(replace(self.request, kv_budget=budget, known=self.known(questions)))
        if self.shares or launch.budget is None:
            return self, launch
        return replace(self, request=replace(self.request, kv_budget=str(launch.budget))), launch

    def identity(self, launch: Launch) -> dict[str, Any]:
        """Return everything that changes answers, but for the videos and the questions."""
        asked = {key: value for key, value in dataclasses.asdict(self.request).items() if key not in DECIDED}
        return {
            "weights": fingerprint(launch.checkpoint),
            "policy": launch.policy_name,
            "settings": dataclasses.asdict(launch.policy),
            "kv_budget": self.request.kv_budget if self.shares or launch.budget is not None else None,
            "chunk": self.request.chunk or launch.profile.chunk,
            "quant": launch.quant,
            "kv_bits": launch.bits.name,
            "dtype": launch.dtype,
            "vision_dtype": launch.vision_dtype,
            "device": launch.device,
            **asked,
            "foresee": self.foresee,
            "clip": dict(self.clip),
            "sampling": dict(self.sampling),
            "versions": {"edgemllm": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        }


def hashed(identity: Mapping[str, Any]) -> str:
    """Return the identity as a short text."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
