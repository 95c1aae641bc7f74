"""How well a session predicts a text: losses and agreement, from logits that are made a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgemllm.session import Session

LOGITS = 1 << 22
"""Logits that exist at once: 16 MiB in float32, whatever vocabulary and chunk are."""


@torch.inference_mode()
def predictions(session: Session, ids: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Feed tokens; for each forward pass the hidden states (n, E) and the tokens (n,) that they have to predict.

    The state before the first token is that of the session's newest one. The very first token of a stream has nothing
    before it and is not predicted.
    """
    targets = torch.tensor(list(ids), dtype=torch.long, device=session.family.device)
    before, start = session.last, 0
    for hidden in session.passes(session.family.text(ids, session.position)):
        stop = start + hidden.shape[1]
        if before is None:
            yield hidden[0, :-1], targets[start + 1 : stop]
        else:
            yield torch.cat((before[0], hidden[0, :-1])), targets[start:stop]
        before, start = session.last, stop


@torch.inference_mode()
def losses(session: Session, ids: Sequence[int]) -> Tensor:
    """Return the negative log-likelihoods in nats, (n,) float64 on the CPU, of the tokens `ids`, which are fed."""
    found = [torch.empty(0, dtype=torch.float64)]
    for states, targets in predictions(session, ids):
        for rows in _slices(session, len(targets)):
            logits = session.family.logits(states[None, rows])[0].float()
            found.append(F.cross_entropy(logits, targets[rows], reduction="none").double().cpu())
    return torch.cat(found)


@dataclass
class Agreement:
    """Sums over tokens of how a session's predictions differ from those of the full cache."""

    tokens: int = 0
    kl: float = 0.0
    """Kullback-Leibler divergence of the session's distribution from the full cache's, in nats."""
    same: int = 0
    """Tokens for which both hold the same one for the likeliest."""
    nll: float = 0.0
    full_nll: float = 0.0

    def add(self, kl: Tensor, same: Tensor, nll: Tensor, full_nll: Tensor) -> None:
        """Add the values (n,) of tokens."""
        self.tokens += len(kl)
        self.kl += float(kl.double().sum())
        self.same += int(same.sum())
        self.nll += float(nll.double().sum())
        self.full_nll += float(full_nll.double().sum())


@torch.inference_mode()
def compare(full: Session, session: Session, ids: Sequence[int], whole: Agreement, evicted: Agreement) -> None:
    """Feed the same tokens to both and add up: `whole` every token, `evicted` those predicted after an eviction."""
    gone = session.cache.managed[0].counts.evicted > 0
    for (reference, targets), (states, _) in zip(predictions(full, ids), predictions(session, ids), strict=True):
        now = session.cache.managed[0].counts.evicted > 0
        after = torch.full((len(targets),), now)
        after[:1] = gone  # the first state comes from the pass before this one
        for rows in _slices(session, len(targets)):
            p = full.family.logits(reference[None, rows])[0].float().log_softmax(-1)
            q = session.family.logits(states[None, rows])[0].float().log_softmax(-1)
            wanted = targets[rows, None]
            divergence, same = (p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)
            values = (divergence, same, -q.gather(-1, wanted)[:, 0], -p.gather(-1, wanted)[:, 0])
            whole.add(*values)
            chosen = after[rows].to(p.device)
            evicted.add(*(value[chosen] for value in values))
        gone = now


def _slices(session: Session, count: int) -> Iterator[slice]:
    rows = max(1, LOGITS // session.family.config.vocab_size)
    return (slice(start, start + rows) for start in range(0, count, rows))
