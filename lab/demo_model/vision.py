"""Vision phase: the tower and projector learn to read a slide, through the four pooled tokens of a video frame."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig

from lab.demo_model.frames import SIDE
from lab.demo_model.language import SPECIAL, Optimisers, text_config

TOKENS = 4


def config() -> LlavaOnevisionConfig:
    """Return the whole model's shape."""
    vision = SiglipVisionConfig(
        hidden_size=96, intermediate_size=288, num_hidden_layers=4, num_attention_heads=3, image_size=SIDE, patch_size=16,
        vision_use_head=False,
    )  # fmt: skip
    return LlavaOnevisionConfig(
        text_config=text_config(),
        vision_config=vision,
        image_token_id=SPECIAL.index("<image>"),
        video_token_id=SPECIAL.index("<video>"),
        image_grid_pinpoints=[[SIDE, SIDE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )


def normalised(frames: np.ndarray) -> Tensor:
    """Turn uint8 (n, 64, 64, 3) into what the pre-processor gives, (n, 3, 64, 64)."""
    return (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def frame_tokens(model: Any, frames: np.ndarray) -> Tensor:
    """Return (n, 4, E) as a video would give them."""
    output = model.model.get_video_features(normalised(frames)[None], return_dict=True)
    tokens: Tensor = output.pooler_output.flatten(0, -2)[: len(frames) * TOKENS].view(len(frames), TOKENS, -1)
    return tokens


class Reader(nn.Module):
    """Linear heads on the four tokens: slide or not, kind, digit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind, self.digit = nn.Linear(TOKENS * width, 48 + 1), nn.Linear(TOKENS * width, 10)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        flat = tokens.flatten(1)
        return self.kind(flat), self.digit(flat)


def shift(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move the batch by up to three pixels and change its brightness a little: cheap variety on top of the pool."""
    down, right = (int(k) for k in rng.integers(-3, 4, 2))
    moved = np.roll(np.roll(frames, down, 1), right, 2)
    return np.clip(moved * rng.uniform(0.9, 1.1, (len(frames), 1, 1, 1)), 0, 255).astype(np.uint8)


def train_vision(work: Path, steps: int, seed: int, rows: int = 192, peak: float = 1.0) -> None:
    """Train at a rate that falls to zero; save the full model with an untrained language part."""
    slides_file = np.load(work / "slides.npz")
    slide_frames, labels = slides_file["frames"], slides_file["labels"]
    scenes = np.load(work / "scenes.npy")
    scenes = scenes.reshape(-1, *scenes.shape[2:])
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config())
    reader = Reader(192)
    if (work / "vision.pt").exists():
        saved = torch.load(work / "vision.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        reader.load_state_dict(saved["reader"])
    seeing = [(n, p) for n, p in model.named_parameters() if "vision_tower" in n or "multi_modal_projector" in n]
    optimisers = Optimisers([*seeing, *reader.named_parameters()], muon=0.02, adam=2e-3, embedding=2e-3)
    started, right = time.time(), 0.0
    held = slice(len(slide_frames) - 800, None)
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        picks, footage = (
            rng.integers(0, len(slide_frames) - 800, rows * 7 // 8),
            rng.integers(0, len(scenes), rows // 8),
        )
        frames = np.concatenate([slide_frames[picks, rng.integers(0, 2, len(picks))], scenes[footage]])
        kinds = torch.from_numpy(np.concatenate([labels[picks, 0], np.full(len(footage), 48)]))
        digits = torch.from_numpy(labels[picks, 1])
        kind, digit = reader(frame_tokens(model, shift(frames, rng)))
        loss = nn.functional.cross_entropy(kind, kinds) + 2 * nn.functional.cross_entropy(digit[: len(picks)], digits)
        loss.backward()
        optimisers.step(min(1.0, (step + 1) / 50) * peak * 0.5 * (1 + np.cos(np.pi * step / steps)))
        with torch.no_grad():
            right = 0.95 * right + 0.05 * float((kind.argmax(-1) == kinds).float().mean())
        if step % 100 == 0 or step == steps - 1:
            with torch.no_grad():
                k, d = reader(frame_tokens(model, slide_frames[held, 0]))
                both = (k.argmax(-1).numpy() == labels[held, 0]) & (d.argmax(-1).numpy() == labels[held, 1])
            print(
                f"vision step {step} loss {loss.item():.3f} kind {right:.4f} held {both.mean():.4f} "
                f"{time.time() - started:.0f} s",
                flush=True,
            )
            torch.save({"model": model.state_dict(), "reader": reader.state_dict()}, work / "vision.pt")
