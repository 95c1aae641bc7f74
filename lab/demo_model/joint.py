"""Joint phase: the language model learns to look slides up in a stream while it continues to read prose."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from lab.demo_model.gaze import Gaze
from lab.demo_model.language import Optimisers, build_language_model, text_batch
from lab.demo_model.streams import Bank, Stream, Writer
from lab.demo_model.vision import config, frame_tokens


def assemble(work: Path) -> LlavaOnevisionForConditionalGeneration:
    """Join the vision part of the align phase with the language part of the text phase."""
    model = LlavaOnevisionForConditionalGeneration(config())
    seeing = torch.load(work / "aligned.pt", weights_only=True)["model"]
    model.load_state_dict(seeing)
    language = build_language_model(0)
    language.load_state_dict(torch.load(work / "text.pt", weights_only=False)["model"])
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    Gaze.begin(model)
    return model


@torch.no_grad()
def feature_table(model: Any, work: Path, scale: bool) -> tuple[Tensor, Bank]:
    """Return every pooled frame token of the pools as one table (rows, E), and where to find what."""
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
    """Return token embeddings with frame tokens in their places."""
    embeds = model.model.language_model.embed_tokens(torch.from_numpy(batch.ids))
    seen = torch.from_numpy(batch.rows >= 0)
    rows = torch.from_numpy(batch.rows)[seen]
    return torch.where(seen[..., None], torch.zeros_like(embeds).masked_scatter(seen[..., None], table[rows]), embeds)


def answers_right(logits: Tensor, labels: Tensor, starts: Tensor) -> Tensor:
    """Return for every answer whether all its tokens are the likeliest ones."""
    right = logits.argmax(-1) == labels
    ends = [*starts.tolist(), len(labels)][1:]
    return torch.tensor([bool(right[a:b].all()) for a, b in zip(starts.tolist(), ends, strict=False)], dtype=torch.bool)


TOPICS = {"not": "absent", "yes": "seen", "no": "no", "a": "screen", "none": "list"}
"""What an answer that begins with this word is about; "no" begins those to two topics."""


class Level(NamedTuple):
    """One stage of the course, or one turn of the mixture that follows it."""

    length: int
    """Tokens of a row; a batch has about 4096 tokens."""
    slides: int
    """The most slides of a stream."""
    drills: float
    """Share of the rows that are drills."""
    shown: float | None
    """Share of the number questions about shown slides (None: the usual). Refusals too early become the only answer."""
    dense: float
    """Share of the conversations that are mostly questions."""
    until: float = 2.0
    """Left at this progress at the latest, earlier when 95% of the last drills, or 92% of the last answers, are right."""


LEVELS = (
    Level(32, 4, 1.0, None, 0, 0.06),
    Level(64, 9, 1.0, None, 0, 0.12),
    Level(256, 4, 0.3, 0.92, 0.8, 0.2),
    Level(256, 9, 0.2, 0.85, 0.6, 0.3),
)
MIXTURE = (
    Level(256, 14, 0.5, None, 0.6),
    Level(768, 16, 0.4, None, 0.5),
    Level(256, 12, 0.38, None, 0.3),
    Level(512, 16, 0.38, None, 0.5),
    Level(1024, 16, 0.25, None, 0.3),
)
"""Lengths in turn: with long streams alone at the end, the short ones are forgotten and the steps are few."""


class Course:
    """Short and easy streams first, then all lengths in turn."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.marks: list[float] = []

    def at(self, progress: float, step: int) -> Level:
        while self.number < len(LEVELS) and progress > LEVELS[self.number].until:
            self.number += 1
        return LEVELS[self.number] if self.number < len(LEVELS) else MIXTURE[step % len(MIXTURE)]

    def mark(self, right: float, wanted: float) -> None:
        self.marks = [*self.marks[-3:], right]
        if len(self.marks) == 4 and sum(self.marks) > 4 * wanted:
            self.number += 1
            self.marks = []


class Report:
    """Running means of what the training prints: losses, and the share of right answers by topic."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.losses: dict[str, float] = {}
        self.marks: dict[str, float] = {}

    def add(self, losses: dict[str, Tensor | None]) -> None:
        """Count the losses of one step."""
        for name, loss in losses.items():
            if loss is not None:
                self.losses[name] = 0.95 * self.losses.get(name, loss.item()) + 0.05 * loss.item()

    def grade(self, logits: Tensor, labels: Tensor, wanted: Tensor, talk: Tensor) -> tuple[float, float]:
        """Return shares of right tokens of the drills, and of right number answers of the conversations, the rows of `talk`."""
        drilled = float((logits.argmax(-1) == labels)[~talk].float().mean())
        before = nn.functional.pad(wanted, (1, 0))[:, :-1]
        starts = (wanted & ~before)[wanted].nonzero().flatten()
        starts = starts[: int((starts < int(talk.sum())).sum())]
        right = answers_right(logits[talk], labels[talk], starts)
        words = [self.tokenizer.decode([int(first)]).strip() for first in labels[talk][starts]]
        by_topic: dict[str, list[bool]] = {}
        for word, good in zip(words, right.tolist(), strict=True):
            by_topic.setdefault(TOPICS.get(word, "number" if word.isdigit() else "list"), []).append(good)
        for topic, goods in by_topic.items():
            share = float(np.mean(goods))
            self.marks[topic] = 0.8 * self.marks.get(topic, share) + 0.2 * share
        return drilled, float(np.mean(by_topic.get("number", [float("nan")])))

    def __str__(self) -> str:
        losses = " ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        return f"{losses} right " + " ".join(f"{topic} {mark:.3f}" for topic, mark in sorted(self.marks.items()))


def train_joint(work: Path, minutes: float, seed: int, start: Path | None = None) -> None:
    """Train by the clock: the learning rate falls to zero at the end of `minutes`. A fifth of the tokens is prose.

    `start`: a finished checkpoint folder to continue from, instead of the earlier phases; the course begins with its mixture.
    """
    tokens = np.load(work / "text_tokens.npy")
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(start, dtype=torch.float32) if start else assemble(work)
    checkpoint = work / "joint.pt"
    if checkpoint.exists():
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
    table, bank = feature_table(model, work, scale=start is None and not checkpoint.exists())
    writer, report = Writer(tokenizer, bank), Report(tokenizer)
    optimisers = Optimisers(
        [(n, p) for n, p in model.named_parameters() if "language_model" in n], muon=0.004, adam=1e-3, embedding=1e-3
    )
    gaze = Gaze(model, writer, len(table))
    compiled: Any = torch.compile(gaze.forward, dynamic=False)
    course = Course(len(LEVELS) if start else 0)
    started, step = time.time(), 0
    while (progress := (time.time() - started) / (minutes * 60)) < 1:
        rng = np.random.default_rng([seed, step])
        stage = course.at(progress, step)
        rows = 4096 // stage.length
        drills = round(rows * stage.drills)
        batch = writer.batch(rng, rows - drills, drills, stage.length, stage.slides, stage.shown, stage.dense)
        hidden, before = compiled(embed(model, table, batch))
        labels = torch.from_numpy(batch.labels)[:, 1:]
        wanted = labels >= 0
        logits, labels = model.lm_head(hidden[:, :-1][wanted]), labels[wanted]
        each = nn.functional.cross_entropy(logits, labels, reduction="none")
        talk = wanted.nonzero()[:, 0] < rows - drills
        # A drill has many more answers than a conversation: each kind counts as its own mean.
        losses = {"talk": each[talk].mean() if drills < rows else None, "drill": each[~talk].mean() if drills else None}
        ids = text_batch(tokens, rng, 1, 1024)
        prose, _ = compiled(model.model.language_model.embed_tokens(ids))
        losses["text"] = nn.functional.cross_entropy(model.lm_head(prose[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        losses |= gaze.losses(before, batch)
        torch.stack([loss for loss in losses.values() if loss is not None]).sum().backward()
        optimisers.step(min(1.0, (step + 1) / 30) * min(1.0, max(0.0, (1 - progress) / 0.85)))
        report.add(losses)
        if step % 11 == 0:  # every turn of the mixture is shown in time
            drilled, digits = report.grade(logits, labels, wanted, talk)
            course.mark(*((drilled, 0.95) if drills == rows else (digits, 0.92)))
            level = f"length {stage.length} slides {stage.slides} drilled {drilled:.3f}"
            print(f"joint step {step} {progress:.3f} {level} {report} {time.time() - started:.0f} s", flush=True)
        step += 1
        if step % 100 == 0:
            torch.save(model.state_dict(), checkpoint)
    torch.save(model.state_dict(), checkpoint)
