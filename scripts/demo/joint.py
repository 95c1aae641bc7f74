"""Joint phase: the language model learns to look slides up in a stream while it goes on reading prose."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo.language import Optimisers, build_language_model, text_batch
from demo.streams import Bank, Stream, Writer
from demo.vision import config, frame_tokens
from torch import Tensor, nn
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration


def assemble(work: Path) -> LlavaOnevisionForConditionalGeneration:
    """The seeing part of the align phase with the language part of the text phase."""
    model = LlavaOnevisionForConditionalGeneration(config())
    seeing = torch.load(work / "aligned.pt", weights_only=True)["model"]
    model.load_state_dict(seeing)
    language = build_language_model(0)
    language.load_state_dict(torch.load(work / "text.pt", weights_only=False)["model"])
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    return model


@torch.no_grad()
def feature_table(model: Any, work: Path, scale: bool) -> tuple[Tensor, Bank]:
    """Every pooled frame token of the pools as one table (rows, E), and where to find what."""
    pool = np.load(work / "slides.npz")
    frames, labels = pool["frames"], pool["labels"]
    scenes = np.load(work / "scenes.npy")
    every = np.concatenate([frames.reshape(-1, *frames.shape[2:]), scenes.reshape(-1, *scenes.shape[2:])])
    if scale:
        match_scale(model, frame_tokens(model, every[:: len(every) // 512]))
    table = torch.cat([frame_tokens(model, every[i : i + 512]).half() for i in range(0, len(every), 512)])
    by_fact: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, (kind, digit) in enumerate(labels):
        by_fact.setdefault((int(kind), int(digit)), []).append((2 * i, 2 * i + 1))
    first = 2 * len(frames)
    where = np.arange(first, first + scenes.shape[0] * scenes.shape[1]).reshape(scenes.shape[:2])
    flat = torch.cat([table.flatten(0, 1).float(), model.model.image_newline[None]])
    return flat, Bank({fact: np.array(rows) for fact, rows in by_fact.items()}, where, len(flat) - 1)


def match_scale(model: Any, probe: Tensor) -> None:
    """Give the projector's output and `image_newline` the spread of the word embeddings."""
    wanted = model.model.language_model.embed_tokens.weight.std()
    projector = model.model.multi_modal_projector.linear_2
    for parameter, spread in ((projector.weight, probe), (projector.bias, probe), (model.model.image_newline,) * 2):
        parameter.mul_(wanted / spread.std())


def embed(model: Any, table: Tensor, batch: Stream) -> Tensor:
    """Token embeddings with frame tokens in their places."""
    embeds = model.model.language_model.embed_tokens(torch.from_numpy(batch.ids))
    seen = torch.from_numpy(batch.rows >= 0)
    rows = torch.from_numpy(batch.rows)[seen]
    return torch.where(seen[..., None], torch.zeros_like(embeds).masked_scatter(seen[..., None], table[rows]), embeds)


def answers_right(logits: Tensor, labels: Tensor, starts: Tensor) -> Tensor:
    """For every answer, whether all its tokens are the likeliest ones."""
    right = logits.argmax(-1) == labels
    ends = torch.cat([starts[1:], torch.tensor([len(labels)])])
    return torch.tensor([bool(right[a:b].all()) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)])


class Course:
    """Short and easy streams first: a level is left when 92 % of its last answers are right, or late by the clock.

    Levels are rows of a batch, their length, the most slides of a stream, and the latest progress to leave it at.
    """

    LEVELS = (
        (10, 128, 1, 0.2), (10, 128, 2, 0.3), (10, 128, 3, 0.4), (8, 256, 5, 0.5),
        (8, 256, 9, 0.6), (8, 256, 14, 0.7), (5, 512, 26, 0.85), (4, 1024, 44, 2.0),
    )  # fmt: skip
    EASY = 3
    """Levels with hardly a question about things never shown: refusals too early become the only answer."""

    def __init__(self) -> None:
        self.level = 0
        self.marks: list[float] = []

    def stage(self, progress: float) -> tuple[int, int, int]:
        while progress > self.LEVELS[self.level][3]:
            self.level += 1
        return self.LEVELS[self.level][:3]

    def known(self) -> float | None:
        """Share of number questions about shown slides, where it is not the usual one."""
        return None if self.level >= self.EASY else 1.0 if self.level == 0 else 0.9

    def mark(self, right: float) -> None:
        self.marks = [*self.marks[-2:], right]
        if len(self.marks) == 3 and sum(self.marks) > 3 * 0.92 and self.level < len(self.LEVELS) - 1:
            self.level += 1
            self.marks = []


def train_joint(work: Path, minutes: float, seed: int, start: Path | None = None) -> None:
    """Runs by the clock: the learning rate falls to zero at the end of `minutes`. A fifth of the rows is prose.

    `start`: a finished checkpoint folder to go on from, instead of the earlier phases.
    """
    tokens = np.load(work / "text_tokens.npy")
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(start, dtype=torch.float32) if start else assemble(work)
    table, bank = feature_table(model, work, scale=start is None)
    if (work / "joint.pt").exists():
        model.load_state_dict(torch.load(work / "joint.pt", weights_only=True))
    writer = Writer(tokenizer, bank)
    optimisers = Optimisers(
        [(n, p) for n, p in model.named_parameters() if "language_model" in n], muon=0.004, adam=1e-3, embedding=1e-3
    )
    text_model, head = model.model.language_model, model.lm_head
    # One compilation a length pays for itself except for the last, short stage.
    compiled = torch.compile(text_model, dynamic=False)
    course = Course()
    started, shown, step = time.time(), {"text": 0.0, "answer": 0.0}, 0
    while (progress := (time.time() - started) / (minutes * 60)) < 1:
        rng = np.random.default_rng([seed, step])
        rows, length, most = course.stage(progress)
        prose = max(1, rows // 5)
        batch = writer.batch(rng, rows - prose, length, most, course.known())
        ids = text_batch(tokens, rng, prose, length)
        inputs = torch.cat([embed(model, table, batch), text_model.embed_tokens(ids)])
        run = compiled if length in (128, 256, 512) else text_model
        hidden = run(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, :-1]
        labels = torch.from_numpy(batch.labels)[:, 1:]
        wanted = labels >= 0
        logits = head(hidden[:-prose][wanted])
        loss_answer = nn.functional.cross_entropy(logits, labels[wanted])
        loss_text = nn.functional.cross_entropy(head(hidden[-prose:]).flatten(0, 1), ids[:, 1:].flatten())
        (loss_answer + 0.5 * loss_text).backward()
        optimisers.step(min(1.0, (step + 1) / 30) * min(1.0, max(0.0, (1 - progress) / 0.45)))
        for name, value in (("text", loss_text), ("answer", loss_answer)):
            shown[name] = value.item() if step == 0 else 0.95 * shown[name] + 0.05 * value.item()
        if step % 10 == 0:
            before = torch.nn.functional.pad(wanted, (1, 0))[:, :-1]
            starts = (wanted & ~before)[wanted].nonzero().flatten()
            right = answers_right(logits, labels[wanted], starts)
            course.mark(float(right.float().mean()))
            numbers = torch.tensor([tokenizer.decode([int(t)]).isdigit() for t in labels[wanted][starts]])
            print(
                f"joint step {step} {progress:.3f} length {length} answer {shown['answer']:.3f} text {shown['text']:.3f} "
                f"right {right.float().mean():.3f} digits {right[numbers].float().mean():.3f} {time.time() - started:.0f} s",
                flush=True,
            )
        step += 1
        if step % 100 == 0:
            torch.save(model.state_dict(), work / "joint.pt")
    torch.save(model.state_dict(), work / "joint.pt")
    torch.save(model.state_dict(), work / "joint.pt")
