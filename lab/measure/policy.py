"""A policy with its settings in one word, as every measurement spells it: `meda/rho=0.2`, `inf-mllm/window=8/recent=0.5`."""

from __future__ import annotations

from edgemllm import policies
from edgemllm.policies.base import CachePolicy


def split(spelled: str) -> tuple[str, list[str]]:
    """Take the name apart from the settings. A name may be a file: `./mine.py:Mine/every=4`."""
    parts = spelled.split("/")
    settings = [part for part in parts if "=" in part]
    return "/".join(part for part in parts if "=" not in part), settings


def build(spelled: str, *further: str) -> CachePolicy:
    """Make the policy; `further` settings count after its own. Raises UsageError for an unknown name or setting."""
    name, settings = split(spelled)
    made: CachePolicy = policies.build(name, [*settings, *further])
    return made
