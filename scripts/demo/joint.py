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
    """The seeing part of the vision phase with the language part of the text phase."""
    model = LlavaOnevisionForConditionalGeneration(config())
    seeing = torch.load(work / "vision.pt", weights_only=True)["model"]
    model.load_state_dict(seeing)
    language = build_language_model(0)
    language.load_state_dict(torch.load(work / "text.pt", weights_only=False)["model"])
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    return model


@torch.no_grad()
def feature_table(model: Any, work: Path) -> tuple[Tensor, Bank]:
    """Every pooled frame token of the pools as one table (rows, E), and where to find what. Scales vision to text."""
    pool = np.load(work / "slides.npz")
    frames, labels = pool["frames"], pool["labels"]
    scenes = np.load(work / "scenes.npy")
    every = np.concatenate([frames.reshape(-1, *frames.shape[2:]), scenes.reshape(-1, *scenes.shape[2:])])
    projector = model.model.multi_modal_projector.linear_2
    probe = frame_tokens(model, every[:: len(every) // 512])
    scale = model.model.language_model.embed_tokens.weight.std() / probe.std()
    projector.weight.mul_(scale)
    projector.bias.mul_(scale)
    model.model.image_newline.mul_(model.model.language_model.embed_tokens.weight.std() / model.model.image_newline.std())
    table = torch.cat([frame_tokens(model, every[i : i + 512]).half() for i in range(0, len(every), 512)])
    by_fact: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, (kind, digit) in enumerate(labels):
        by_fact.setdefault((int(kind), int(digit)), []).append((2 * i, 2 * i + 1))
    first = 2 * len(frames)
    where = np.arange(first, first + scenes.shape[0] * scenes.shape[1]).reshape(scenes.shape[:2])
    flat = torch.cat([table.flatten(0, 1).float(), model.model.image_newline[None]])
    return flat, Bank({fact: np.array(rows) for fact, rows in by_fact.items()}, where, len(flat) - 1)


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


def stage(progress: float) -> tuple[int, int, int]:
    """Rows of a batch, their length, and the most slides of a stream: short and easy first, full context at the end."""
    for until, rows, length, most in ((0.15, 20, 256, 6), (0.3, 20, 256, 9), (0.5, 20, 256, 14), (0.8, 10, 512, 26)):
        if progress < until:
            return rows, length, most
    return 5, 1024, 44


def train_joint(work: Path, minutes: float, seed: int, text_rows: int | None = None) -> None:
    """Runs by the clock: the learning rate falls to zero at the end of `minutes`. A fifth of the rows is prose."""
    del text_rows
    tokens = np.load(work / "text_tokens.npy")
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    model = assemble(work)
    table, bank = feature_table(model, work)
    if (work / "joint.pt").exists():
        model.load_state_dict(torch.load(work / "joint.pt", weights_only=True))
    writer = Writer(tokenizer, bank)
    optimisers = Optimisers(
        [(n, p) for n, p in model.named_parameters() if "language_model" in n], muon=0.015, adam=1.5e-3, embedding=2e-3
    )
    text_model, head = model.model.language_model, model.lm_head
    # One compilation a length pays for itself except for the last, short stage.
    compiled = torch.compile(text_model, dynamic=False)
    started, shown, step = time.time(), {"text": 0.0, "answer": 0.0}, 0
    while (progress := (time.time() - started) / (minutes * 60)) < 1:
        rng = np.random.default_rng([seed, step])
        rows, length, most = stage(progress)
        prose = max(1, rows // 5)
        batch = writer.batch(rng, rows - prose, length, most)
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
