"""How far a policy's predictions are from those of the full cache, over the span where the full cache fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edgemllm.commands.perplexity.curve import perplexity
from edgemllm.commands.perplexity.scoring import Agreement, compare
from edgemllm.models.tokens import TokenStream
from edgemllm.session import Session


def measure(full: Session, session: Session, stream: TokenStream, span: int, stop: Callable[[], bool]) -> dict[str, Any]:
    """Feed the first `span` tokens to both sessions, which end up used; the `compare_full` object of the JSON output."""
    whole, evicted = Agreement(), Agreement()
    left = span
    while left > 0 and not stop():
        ids, _ = stream.take(min(session.chunk, left))
        if not ids:
            break
        compare(full, session, ids, whole, evicted)
        left -= len(ids)
    return {**_as_json(whole), "after_eviction": _as_json(evicted) if evicted.tokens else None}


def _as_json(sums: Agreement) -> dict[str, Any]:
    return {
        "tokens": sums.tokens,
        "kl_nats": sums.kl / sums.tokens if sums.tokens and math.isfinite(sums.kl) else None,
        "same_top": sums.same / sums.tokens if sums.tokens else None,
        "perplexity": perplexity(sums.nll, sums.tokens),
        "full_perplexity": perplexity(sums.full_nll, sums.tokens),
    }
