"""`edgemllm.open`: a session in one call, planned as by the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgemllm.launch import prepare
from edgemllm.media.detail import Detail
from edgemllm.planning.request import Request

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
    kv_bits: str | int = "auto",
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
    options = dict(locals())
    return prepare(request(**options)).open()


def request(
    model: str = "demo",
    *,
    settings: Mapping[str, object] | None = None,
    kv_budget: str | int = "auto",
    kv_bits: str | int = "auto",
    max_pixels: int | None = None,
    tokens_per_frame: int | None = None,
    **fields: object,
) -> Request:
    """Return what the keywords of `open` ask for. Raises TypeError for any other keyword."""
    return Request(
        model=model,
        settings=[f"{key}={value}" for key, value in (settings or {}).items()],
        kv_budget=str(kv_budget),
        kv_bits=str(kv_bits),
        detail=Detail(max_pixels, tokens_per_frame),
        **fields,  # type: ignore[arg-type]
    )
