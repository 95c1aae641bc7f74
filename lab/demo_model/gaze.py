"""Where two heads should look: at the slide that a question asks for, and at the end of the video so far.

From answers alone the model needs many hours to find these two look-ups; shown where to look, it needs minutes. This is used
in training only: the weights that come out are those of a stock model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from edgemllm.media import slides
from lab.demo_model.streams import Stream, Writer


class Head(NamedTuple):
    layer: int
    head: int


HEADS = {"shown": Head(2, 5), "now": Head(3, 3)}


class Gaze:
    """The two heads' attention as a classification: minus the log of the attention that falls on the right tokens."""

    def __init__(self, model: Any, writer: Writer, table_rows: int) -> None:
        self.decoder = model.model.language_model
        self.fact_of_row = np.full(table_rows + 1, -1)  # the last one stands for text
        for (kind, digit), frames in writer.bank.by_fact.items():
            for frame in frames.flat:
                self.fact_of_row[4 * frame : 4 * frame + 4] = kind * 10 + digit
        self.newline = writer.bank.newline
        self.of_words = {
            (writer.encode(f" {kind.colour}")[0], writer.encode(f" {kind.shape}")[0]): number
            for number, kind in enumerate(slides.KINDS)
        }
        self.screen = (writer.encode(slides.describe(slides.Fact(slides.KINDS[0], 0)))[0], writer.encode(slides.NO_SLIDE)[-1])
        """Tokens by which the answers to that question are known: "a", and "slide"."""

    @staticmethod
    @torch.no_grad()
    def begin(model: Any) -> None:
        """Let both heads look everywhere alike: what they looked for in prose is in the way."""
        for which in HEADS.values():
            attention = model.model.language_model.layers[which.layer].self_attn
            mine = slice(which.head * attention.head_dim, (which.head + 1) * attention.head_dim)
            attention.q_proj.weight[mine] = attention.q_proj.bias[mine] = 0

    def forward(self, embeds: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the last hidden state, and those before the layers of the two heads."""
        places = torch.arange(embeds.shape[1])[None]
        turns = self.decoder.rotary_emb(embeds, places)
        hidden, before = embeds, dict[str, Tensor]()
        for number, layer in enumerate(self.decoder.layers):
            before |= {name: hidden for name, head in HEADS.items() if head.layer == number}
            hidden = layer(hidden, attention_mask=None, position_ids=places, position_embeddings=turns)
        return self.decoder.norm(hidden), before

    def targets(self, batch: Stream) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return, by head, places (n, 2) of queries in the batch and which tokens (n, length) each should look at.

        A kind that was not shown looks at itself: the answer "not seen" has a sign of its own. What is on the screen is
        known to the newline after the last frame, which is easier to find than the frame: there is one in each round.
        """
        asked = np.full(batch.ids.shape, -1)
        for (colour, shape), kind in self.of_words.items():
            asked[:, 1:][(batch.ids[:, :-1] == colour) & (batch.ids[:, 1:] == shape)] = kind
        asked[batch.labels >= 0] = -1
        fact, column = self.fact_of_row[batch.rows], np.arange(batch.ids.shape[1])
        queries = np.argwhere(asked >= 0)
        row, place = queries.T
        same = (fact[row] // 10 == asked[row, place][:, None]) & (column < place[:, None])
        latest = np.where(same, column, -1).max(1)
        look = same & (fact[row] == fact[row, latest][:, None])
        look[latest < 0] = column == place[latest < 0][:, None]
        found = {"shown": (queries, look)}
        learnt = batch.labels >= 0
        answer = np.cumsum(learnt & ~np.pad(learnt, ((0, 0), (1, 0)))[:, :-1], axis=1)
        screen = np.zeros(batch.ids.shape, bool)
        for r, c in np.argwhere(np.isin(batch.labels, self.screen)):
            screen[r, :-1] |= (learnt[r] & (answer[r] == answer[r, c]))[1:]  # the token before each of the answer's
        queries = np.argwhere(screen)
        row, place = queries.T
        last = np.where((batch.rows[row] == self.newline) & (column < place[:, None]), column, -1).max(1)
        found["now"] = (queries, column == last[:, None])
        return found

    def losses(self, before: dict[str, Tensor], batch: Stream) -> dict[str, Tensor]:
        """Return the loss of each head for which the batch has a question."""
        found = {}
        for name, (queries, look) in self.targets(batch).items():
            if len(queries):
                scores = self.scores(before[name], torch.from_numpy(queries), HEADS[name])
                right = scores.masked_fill(~torch.from_numpy(look), -torch.inf)
                found[name] = (scores.logsumexp(-1) - right.logsumexp(-1)).mean()
        return found

    def scores(self, hidden: Tensor, queries: Tensor, which: Head) -> Tensor:
        """Return attention scores (n, length) of one head for queries (n, 2) in hidden states (rows, length, E)."""
        layer = self.decoder.layers[which.layer]
        attention, hidden = layer.self_attn, layer.input_layernorm(hidden)
        size, group = attention.head_dim, which.head // attention.num_key_value_groups
        cos, sin = self.decoder.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])

        def turned(linear: nn.Linear, head: int) -> Tensor:
            mine = slice(head * size, (head + 1) * size)
            states = nn.functional.linear(hidden, linear.weight[mine], linear.bias[mine])
            rotated: Tensor = states * cos + rotate_half(states) * sin
            return rotated

        query, key = turned(attention.q_proj, which.head), turned(attention.k_proj, group)
        row, place = queries.T
        scores: Tensor = torch.einsum("nd,nkd->nk", query[row, place], key[row]) * attention.scaling
        return scores.masked_fill(torch.arange(hidden.shape[1]) > place[:, None], -torch.inf)
