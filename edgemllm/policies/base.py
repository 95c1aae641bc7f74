"""The contract of a policy, under the name by which policy files import it."""

from edgemllm.cache.one_shot import OneShot, fit
from edgemllm.cache.policy import ALL, PROTECTED_SCORE, CachePolicy
from edgemllm.cache.scratch import Scratch
from edgemllm.cache.settings import Count, Range, Share

__all__ = ["ALL", "PROTECTED_SCORE", "CachePolicy", "Count", "OneShot", "Range", "Scratch", "Share", "fit"]
