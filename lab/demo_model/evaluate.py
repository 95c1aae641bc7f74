"""Measure the demo model with stock transformers on clips of another renderer, and write its model card's numbers.

    python -m lab.demo_model.evaluate edgemllm/assets/demo [--footage videos/] [--text novels/] [--streams 40]

Slides are drawn by lab/demo_model/renderer.py, which the training never uses; footage is drawn, or frames of held-out videos.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from edgemllm.media import slides
from lab.demo_model import renderer
from lab.demo_model.train import HELD_OUT

HEIGHT, WIDTH = 180, 320


def real_frames(folder: Path | None) -> list[np.ndarray]:
    """Return one frame per second of the held-out videos."""
    frames: list[np.ndarray] = []
    if folder is None:
        return frames
    for name in HELD_OUT:
        capture, number = cv2.VideoCapture(str(folder / name)), 0
        step = max(1, round(capture.get(cv2.CAP_PROP_FPS) or 25))
        while capture.grab():
            if number % step == 0:
                image = cv2.resize(capture.retrieve()[1], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
                frames.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            number += 1
    return frames


def clip(
    rng: np.random.Generator, facts: list[slides.Fact], real: list[np.ndarray], gain: float
) -> tuple[np.ndarray, slides.Fact | None]:
    """Return frames of a short lecture, and what the last one shows."""
    frames: list[np.ndarray] = []

    def footage() -> None:
        count = int(rng.integers(1, 5))
        if real:
            first = int(rng.integers(len(real) - count))
            frames.extend(real[first : first + count])
        else:
            frames.extend(slides.footage(rng, count, HEIGHT, WIDTH))

    footage()
    for fact in facts:
        frames += [renderer.slide(*fact.kind, fact.digit, WIDTH, HEIGHT, rng)] * int(rng.integers(2, 5))
        footage()
    now = None
    if rng.random() < 0.5:
        now = facts[-1]
        frames += [renderer.slide(*now.kind, now.digit, WIDTH, HEIGHT, rng)] * 2
    return np.clip(np.stack(frames) * gain, 0, 255).astype(np.uint8), now


class Asker:
    """One question at a time after a clip, with greedy decoding."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answers(self, frames: np.ndarray, questions: list[str]) -> list[str]:
        """Ask every question alone after the clip."""
        small = [np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BICUBIC)) for frame in frames]
        pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
        said = []
        for question in questions:
            content = [{"type": "video"}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            prompt = prompt.replace("<video>", "<video>" * (4 * len(frames) + 1))
            ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
            mask = torch.ones_like(ids)
            out = self.model.generate(input_ids=ids, attention_mask=mask, pixel_values_videos=pixels, max_new_tokens=20)
            said.append(str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip())
        return said

    @torch.inference_mode()
    def nats(self, text: str, length: int = 1024) -> float:
        """Sum over the text, in windows of the trained length that overlap by half."""
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        total, done = 0.0, 1
        while done < len(ids):
            first = max(0, done - length // 2)
            window = ids[first : first + length]
            logits = self.model(input_ids=window[None]).logits[0, done - first - 1 : -1]
            total += float(torch.nn.functional.cross_entropy(logits, window[done - first :], reduction="sum"))
            done = first + len(window)
        return total


def ask_clips(asker: Asker, real: list[np.ndarray], streams: int, gain: float, seed: int) -> dict[str, tuple[int, int]]:
    """Count right and asked for every kind of question; refusals count apart."""
    score: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for number in range(streams):
        rng = np.random.default_rng([seed, number])
        kinds = [slides.KINDS[int(k)] for k in rng.permutation(len(slides.KINDS))]
        facts = [slides.Fact(kind, int(rng.integers(10))) for kind in kinds[: int(rng.integers(2, 13))]]
        frames, now = clip(rng, facts, real, gain)
        asked = [("number", facts[0].kind), ("number", facts[len(facts) // 2].kind), ("number", kinds[-1])]
        asked += [("seen", facts[-1].kind), ("seen", kinds[-2]), ("screen", kinds[0]), ("list", facts[0].kind)]
        said = asker.answers(frames, [slides.ask(topic, kind) for topic, kind in asked])
        for (topic, kind), words in zip(asked, said, strict=True):
            right = slides.answer(topic, kind, facts, now)
            name = "refusal (not seen)" if right == slides.NOT_SEEN else topic
            score[name][0] += words == right
            score[name][1] += 1
    return {name: (right, asked) for name, (right, asked) in sorted(score.items())}


CARD = """# The demo model

A LLaVA-OneVision (SigLIP tower, Qwen2 language model) of 3-4 million parameters, 4 tokens a frame, trained context 1024 tokens.
It reads English prose and knows one small world: slides of a coloured shape and a digit among other footage
(`edgemllm/media/slides.py`). Made by `python -m lab.demo_model.train`; {text} It is a test bed, not an assistant.

Measured by `python -m lab.demo_model.evaluate` on {streams} clips of each condition (2 to 12 slides, another renderer,
everything kept):

| condition | question | right | asked | share |
|---|---|---|---|---|
{rows}

Frames are squashed to 64 x 64; digits and shapes much smaller than half the frame, and more than 44 slides, were not trained.
"""


def read_novels(asker: Asker, folder: Path, characters: int) -> dict[str, float]:
    """Return bits per byte of the model and of `xz -9` on a piece of every novel, from its first third on."""
    size, packed, nats = 0, 0.0, 0.0
    for path in sorted(folder.glob("*.txt")):
        whole = path.read_text(encoding="utf-8", errors="replace")
        part = whole[len(whole) // 3 :][:characters]
        size += len(part.encode())
        nats += asker.nats(part)
        packed += len(lzma.compress(whole.encode(), preset=9)) * len(part) / len(whole)
    model, xz = nats / math.log(2) / size, 8 * packed / size
    print(f"text {model:.3f} bits per byte, xz -9 {xz:.3f}, {100 * (1 - model / xz):.1f}% better", flush=True)
    return {"model": model, "xz -9": xz}


def card(score: dict[str, dict[str, tuple[int, int]]], bits: dict[str, float] | None, streams: int) -> str:
    """Write the model card with what was measured."""
    rows = [
        f"| {condition} | {kind} | {right} | {asked} | {100 * right / asked:.1f}% |"
        for condition, kinds in score.items()
        for kind, (right, asked) in kinds.items()
    ]
    text = "its text side was not measured."
    if bits is not None:
        text = f"{bits['model']:.3f} bits per byte on unseen novels (`xz -9`: {bits['xz -9']:.3f})."
    return CARD.format(text=text, streams=streams, rows="\n".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--footage", type=Path, help="folder with the held-out videos")
    parser.add_argument("--text", type=Path, help="folder of novels the training never saw")
    parser.add_argument("--streams", type=int, default=40, help="clips of each condition; 7 questions each")
    parser.add_argument("--characters", type=int, default=60000, help="of each novel, for bits per byte")
    parser.add_argument("--card", type=Path, help="write the model card here")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asker, score = Asker(options.model), {}
    conditions: list[tuple[str, list[np.ndarray], float]] = [("drawn footage", [], 1.0)]
    if options.footage:
        conditions.append(("held-out real footage", real_frames(options.footage), 1.0))
    conditions += [("brightness -20%", [], 0.8), ("brightness +20%", [], 1.2)]
    for number, (name, real, gain) in enumerate(conditions):
        score[name] = ask_clips(asker, real, options.streams, gain, number)
        print(name, "; ".join(f"{k} {r}/{n} {r / n:.3f}" for k, (r, n) in score[name].items()), flush=True)
    bits = read_novels(asker, options.text, options.characters) if options.text else None
    print(json.dumps({**score, "bits per byte": bits}))
    if options.card:
        options.card.write_text(card(score, bits, options.streams))


if __name__ == "__main__":
    main()
