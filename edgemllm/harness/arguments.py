"""The model arguments of a harness, which are words, as keywords of `edgemllm.open`."""

from __future__ import annotations

from typing import Any

from edgemllm.api import request
from edgemllm.planning.request import Request


def asked(pretrained: str, options: dict[str, Any]) -> Request:
    """Return what to prepare. `settings` may be a text, recent=0.5;sinks=8.

    Raises UsageError for values that mean nothing, TypeError for unknown arguments.
    """
    settings = options.pop("settings", None)
    if isinstance(settings, str):
        settings = dict(setting.partition("=")[::2] for setting in settings.split(";"))
    device = str(options.pop("device", None) or "auto").partition(":")[0]
    device = "auto" if device == "cuda" else device  # the harnesses' own default, also where there is none
    return request(pretrained, settings=settings, device=device, **options)


def sampling(given: dict[str, Any], most: int) -> tuple[dict[str, Any], list[str]]:
    """Return the keywords of `Sampling`, and the texts at which an answer ends, of a task's generation arguments."""
    until = given.get("until") or []
    length = next((given[name] for name in ("max_new_tokens", "max_gen_toks", "max_tokens") if given.get(name)), most)
    keywords: dict[str, Any] = {"max_tokens": int(length)}
    if given.get("do_sample", True) and given.get("temperature"):
        keywords |= {"temperature": float(given["temperature"]), "top_p": float(given.get("top_p") or 1.0)}
    return keywords, [until] if isinstance(until, str) else list(until)
