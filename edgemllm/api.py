"""`edgemllm.open`: a session in one call, planned as by the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgemllm.launch import Request, prepare
from edgemllm.media.detail import Detail

if TYPE_CHECKING:
    from edgemllm.session import Session


def open(
    model: str = "demo",
    *,
    profile: str = "auto",
    policy: str | None = None,
    settings: Mapping[str, object] | None = None,
    kv_budget: str | int = "auto",
    quant: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    chunk: int | None = None,
    system: str | None = None,
    focus: Sequence[str] = (),
    max_pixels: int | None = None,
    tokens_per_frame: int | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
) -> Session:
    """Plan, load the weights, and begin an empty session.

    The keywords are the options of `edgemllm chat`, with its defaults; `settings` are those of the policy (`--set`).
    Environment variables (EDGEMLLM_*) and configuration files are not read. Raises UsageError for a value that means
    nothing, MissingError for a model that is not there, and DoesNotFitError before loading anything; all are EdgeErrors.
    """
    request = Request(
        model=model,
        profile=profile,
        policy=policy,
        settings=[f"{key}={value}" for key, value in (settings or {}).items()],
        kv_budget=str(kv_budget),
        quant=quant,
        dtype=dtype,
        device=device,
        chunk=chunk,
        offline=offline,
        trust_remote_code=trust_remote_code,
        system=system,
        focus=focus,
        detail=Detail(max_pixels, tokens_per_frame),
    )
    return prepare(request).open()
