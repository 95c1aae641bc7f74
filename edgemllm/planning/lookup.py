"""What a request names, looked up: profile, policy and KV budget, and its model."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from edgemllm import policies
from edgemllm.device import detect
from edgemllm.media.detail import ANY
from edgemllm.models import shipped
from edgemllm.models.facts import ModelFacts, recorded
from edgemllm.planning.budget import KVBudget, parse_kv_budget

if TYPE_CHECKING:
    from edgemllm.device.profiles import DeviceProfile
    from edgemllm.models.loading import Checkpoint
    from edgemllm.planning.request import Request
    from edgemllm.policies.base import CachePolicy


class Terms(NamedTuple):
    """What needs no model."""

    profile: DeviceProfile
    policy_name: str
    policy: CachePolicy
    budget: KVBudget


def terms_of(request: Request) -> Terms:
    """Look up profile, policy and KV budget. Raises UsageError."""
    request.check()
    profile = detect.profile(request.profile)
    name = request.policy or profile.cache.policy
    return Terms(profile, name, policies.build(name, request.settings), parse_kv_budget(request.kv_budget))


def checkpoint_of(request: Request) -> Checkpoint:
    """Find the request's model, and report on stderr what is fetched. Raises MissingError and UsageError."""
    from edgemllm.models.loading import locate

    return locate(request.model, request.offline, request.trust_remote_code, _say)


def facts_of(request: Request) -> ModelFacts:
    """Return what planning has to know of the request's model: of one that comes with edgemllm, without importing torch.

    Any other model, and pictures of a chosen detail, take its configuration. Raises MissingError and UsageError.
    """
    name = shipped.architecture(request.model)
    found = recorded(name) if request.detail == ANY else None
    return found or checkpoint_of(replace(request, model=name)).facts(request.detail)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
