"""Pools of 64 x 64 training frames: slides in many fonts and shapes of damage, scenes of footage, drawn and real."""

from __future__ import annotations

import glob
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgemllm.media import slides

SIDE = 64
SCENE = 6
"""Consecutive frames of one scene."""
ASPECTS = (9 / 16, 9 / 16, 3 / 4, 1.0, 4 / 3, 4 / 3, 3 / 2, 16 / 9, 16 / 9, 16 / 9, 21 / 9)


def fonts() -> list[str]:
    """Return every TrueType font of this machine that draws plain digits."""
    found = sorted(glob.glob("/usr/share/fonts/**/*.[to]tf", recursive=True))
    skip = ("Math", "Symbol", "Emoji", "Dingbat")
    return [path for path in found if not any(word in path for word in skip)]


def glyph(digit: int, path: str) -> np.ndarray:
    """Return the alpha mask of a digit in a font, cropped to its ink."""
    font = ImageFont.truetype(path, 96)
    image = Image.new("L", (160, 160))
    ImageDraw.Draw(image).text((30, 10), str(digit), fill=255, font=font)
    mask: np.ndarray = np.asarray(image)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def damage(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, blur, noise and compression, then squash to the model's square as the product does."""
    x: Any = image.astype(np.float32)
    x = (x - 128) * rng.uniform(0.85, 1.15) + 128 if rng.random() < 0.3 else x
    x = x * rng.uniform(0.72, 1.28)
    if rng.random() < 0.3:
        x = x * rng.uniform(0.93, 1.07, 3)
    if rng.random() < 0.35:
        x = x + rng.normal(0, rng.uniform(1, 10), x.shape)
    x = np.clip(x, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.3, 1.6))
    if rng.random() < 0.6:
        quality = int(rng.integers(15, 95))
        x = cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    return np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def size(rng: np.random.Generator) -> tuple[int, int]:
    """Return height and width of the video a frame comes from."""
    height = int(rng.choice([72, 96, 120, 144, 180, 240]))
    return height, int(height * rng.choice(ASPECTS) * rng.uniform(0.97, 1.03))


def slide_pool(arguments: tuple[int, int, list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` slides, each in two differently damaged frames (n, 2, 64, 64, 3), and their kind and digit (n, 2)."""
    seed, count, paths = arguments
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    glyphs = {path: [glyph(digit, path) for digit in range(10)] for path in paths}
    frames, labels = np.empty((count, 2, SIDE, SIDE, 3), np.uint8), np.empty((count, 2), np.int64)
    for i in range(count):
        kind, digit = int(rng.integers(48)), int(rng.integers(10))
        mask = None if rng.random() < 0.2 else glyphs[paths[int(rng.integers(len(paths)))]][digit]
        image = slides.draw(slides.Fact(slides.KINDS[kind], digit), *size(rng), rng, mask)
        if rng.random() < 0.15:  # a background that is not plain
            shade = cv2.resize(rng.integers(0, 25, (3, 3, 3)).astype(np.uint8), image.shape[1::-1])
            image = cv2.add(image, shade)
        seed_of_tone = int(rng.integers(1 << 31))
        for k in range(2):
            frames[i, k] = damage(image, np.random.default_rng(seed_of_tone + (k if rng.random() < 0.7 else 0)))
        labels[i] = kind, digit
    return frames, labels


def scene_pool(arguments: tuple[int, int]) -> np.ndarray:
    """Draw `count` scenes (n, SCENE, 64, 64, 3)."""
    seed, count = arguments
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    out = np.empty((count, SCENE, SIDE, SIDE, 3), np.uint8)
    for i in range(count):
        tone = int(rng.integers(1 << 31))
        for k, image in enumerate(slides.footage(rng, SCENE, *size(rng))):
            out[i, k] = damage(image, np.random.default_rng(tone))
    return out


def real_pool(folder: Path, held_out: tuple[str, ...], count: int, seed: int) -> np.ndarray:
    """Cut `count` scenes of real videos at about 1 frame per second, cropped, mirrored and damaged."""
    rng = np.random.default_rng(seed)
    clips = []
    for path in sorted(folder.glob("*.*")):
        if path.name in held_out:
            continue
        capture, frames, number = cv2.VideoCapture(str(path)), [], 0
        step = max(1, round((capture.get(cv2.CAP_PROP_FPS) or 25) / 2))
        while capture.grab():
            if number % step == 0:
                image = capture.retrieve()[1]
                scale = 200 / max(image.shape[0], 1)
                frames.append(
                    cv2.cvtColor(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
                )
            number += 1
        if len(frames) > 2:
            clips.append(frames)
    out = np.empty((count, SCENE, SIDE, SIDE, 3), np.uint8)
    for i in range(count):
        clip = clips[int(rng.integers(len(clips)))]
        first, stride = int(rng.integers(len(clip))), int(rng.choice([1, 2]))
        tone, mirror = int(rng.integers(1 << 31)), rng.random() < 0.5
        high, wide = clip[0].shape[:2]
        top, left = int(rng.uniform(0, 0.3) * high), int(rng.uniform(0, 0.3) * wide)
        for k in range(SCENE):
            image = clip[min(first + k * stride, len(clip) - 1)][top : top + int(0.7 * high), left : left + int(0.7 * wide)]
            out[i, k] = damage(image[:, ::-1] if mirror else image, np.random.default_rng(tone))
    return out


def make_pools(footage: Path | None, held_out: tuple[str, ...], work: Path, seed: int) -> None:
    """Write slides.npz and scenes.npy under `work`."""
    paths = fonts()
    rng = np.random.default_rng(seed)
    chosen = [[paths[i] for i in rng.permutation(len(paths))[:60]] for _ in range(2)]
    with Pool(2) as pool:
        made = pool.map(slide_pool, [(seed + k, 12000, chosen[k]) for k in range(2)])
        drawn = pool.map(scene_pool, [(seed + 10 + k, 1500) for k in range(2)])
    scenes = list(drawn)
    if footage is not None:
        scenes.append(real_pool(footage, held_out, 3000, seed + 20))
    np.savez(work / "slides.npz", frames=np.concatenate([m[0] for m in made]), labels=np.concatenate([m[1] for m in made]))
    np.save(work / "scenes.npy", np.concatenate(scenes))
    print(f"frames: {len(paths)} fonts, {2 * 12000} slides, {sum(map(len, scenes))} scenes", flush=True)
