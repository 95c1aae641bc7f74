"""Alignment phase: every token of a frame says colour, shape and digit, in the directions of the model's own words.

The reader of the vision phase sees all four tokens at once, so the shape ends in two of them and the digit in the
others: a look-up then takes two hops over a foreign code. After this phase it is one hop, and it finds a word.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from edgemllm.media import slides
from lab.demo_model.language import Optimisers
from lab.demo_model.vision import config, frame_tokens, shift

SHARPNESS = 24.0
WORDS = (
    tuple(f" {colour}" for colour in slides.COLOURS),
    tuple(f" {shape}" for shape in slides.SHAPES),
    tuple(str(digit) for digit in range(10)),
)


class WordReader(nn.Module):
    """Cosines of a token with the words of each attribute; each one's last class is footage, by a learned threshold."""

    def __init__(self, embedding: Tensor, tokenizer: Any) -> None:
        super().__init__()
        self.words: list[Tensor] = []
        for words in WORDS:
            ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
            assert all(len(one) == 1 for one in ids), words
            rows = embedding[[one[0] for one in ids]]
            self.words.append(nn.functional.normalize(rows - rows.mean(0), dim=-1))
        self.floor = nn.Parameter(torch.full((3,), 5.0))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        unit = SHARPNESS * nn.functional.normalize(tokens, dim=-1)
        floors = [floor.expand(*tokens.shape[:-1], 1) for floor in self.floor]
        return [torch.cat([unit @ rows.T, floor], -1) for rows, floor in zip(self.words, floors, strict=True)]


def attributes(labels: np.ndarray) -> np.ndarray:
    """Turn (n, 2) kind and digit into (n, 3) colour, shape and digit."""
    shapes = len(slides.SHAPES)
    return np.stack([labels[:, 0] // shapes, labels[:, 0] % shapes, labels[:, 1]], 1)


def train_align(work: Path, source: Path, steps: int, seed: int, rows: int = 192, peak: float = 0.6) -> None:
    """Continue from the vision checkpoint `source`; write aligned.pt under `work`."""
    pool = np.load(work / "slides.npz")
    frames_of, wanted = pool["frames"], attributes(pool["labels"])
    scenes = np.load(work / "scenes.npy")
    scenes = scenes.reshape(-1, *scenes.shape[2:])
    held_slides, held_scenes = frames_of[-800:, 0], scenes[-800:]
    none = np.array([len(words) for words in WORDS])
    model = LlavaOnevisionForConditionalGeneration(config())
    model.load_state_dict(torch.load(source, weights_only=True)["model"])
    embedding = torch.load(work / "text.pt", weights_only=False)["model"]["model.embed_tokens.weight"]
    reader = WordReader(embedding, AutoTokenizer.from_pretrained(work / "tokenizer"))
    seeing = [(n, p) for n, p in model.named_parameters() if "vision_tower" in n or "multi_modal_projector" in n]
    optimisers = Optimisers([*seeing, *reader.named_parameters()], muon=0.02, adam=2e-3, embedding=2e-3)
    started = time.time()
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        picks = rng.integers(0, len(frames_of) - 800, rows * 3 // 4)
        footage = rng.integers(0, len(scenes) - 800, rows - len(picks))
        frames = np.concatenate([frames_of[picks, rng.integers(0, 2, len(picks))], scenes[footage]])
        truth = torch.from_numpy(np.concatenate([wanted[picks], np.tile(none, (len(footage), 1))]))
        said = reader(frame_tokens(model, shift(frames, rng)))
        losses = [
            nn.functional.cross_entropy(logits.flatten(0, 1), truth[:, k, None].expand(-1, 4).flatten())
            for k, logits in enumerate(said)
        ]
        (losses[0] + losses[1] + 1.5 * losses[2]).backward()
        optimisers.step(min(1.0, (step + 1) / 20) * peak * (1 - step / steps))
        if step % 50 == 49 or step == steps - 1:
            with torch.no_grad():
                held = reader(frame_tokens(model, np.concatenate([held_slides, held_scenes])))
            seen = [logits.argmax(-1).numpy() for logits in held]
            right = np.stack([seen[k][:800] == wanted[-800:, k, None] for k in range(3)])
            quiet = np.stack([seen[k][800:] == none[k] for k in range(3)])
            print(
                f"align step {step} loss {sum(x.item() for x in losses):.3f} each {right.mean((1, 2)).round(3)} whole "
                f"{right.all(0).mean():.3f} quiet {quiet.all(0).mean():.3f} {time.time() - started:.0f} s",
                flush=True,
            )
            torch.save({"model": model.state_dict()}, work / "aligned.pt")
