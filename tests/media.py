"""One prompt with text, an image and a video, told twice: to a family, piece by piece, and to the stock model at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tiny import IMAGE, VIDEO, VISION_END, VISION_START, Tiny
from torch import Tensor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from edgemllm.cache.chunk import Chunk, Modality
from edgemllm.media.frame import Frame
from edgemllm.models.families.qwen_vl import STAMPED
from edgemllm.models.vision.naflex import flat_patches, tiles_and_thumbnail
from edgemllm.models.vision.patches import patches
from edgemllm.models.vision.pixels import anyres, pixels
from edgemllm.models.vision.pooled import pooled
from edgemllm.models.vision.tiles import best_grid, split

INTERVAL = 0.5
PIECES = (3, 1, 2)
"""How many frames come at once: odd numbers, so that pairs are cut apart."""


def picture(seed: int, height: int = 24, width: int = 32, time: float = 0.0) -> Frame:
    return Frame(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8), time, seed)


def footage(count: int) -> list[Frame]:
    return [picture(seed + 10, time=seed * INTERVAL) for seed in range(count)]


def letters(count: int, seed: int) -> list[int]:
    return torch.randint(0, 60, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def chunk_of(tiny: Tiny, image: Frame | None, frames: list[Frame]) -> tuple[Chunk, list[int]]:
    """The prompt as the family feeds it, and as token ids with placeholders."""
    family = tiny.family
    chunks: list[Chunk] = []
    ids: list[int] = []

    def place() -> int:
        return chunks[-1].next_position if chunks else 0

    def say(words: list[int]) -> None:
        chunks.append(family.text(words, place()))
        ids.extend(words)

    say([*letters(5, 1), VISION_START])
    if image is not None:
        chunks.append(family.image(image, place()))
        ids.extend(image_text(tiny, image) or [IMAGE] * len(chunks[-1]))
    say([VISION_END, *letters(7, 2)])
    if frames:
        spelt = frame_texts(tiny, frames)
        if not spelt:
            say([VISION_START])
        clip, left, before = family.video(INTERVAL), list(frames), len(chunks)
        for size in (*PIECES, len(frames)):
            batch, left = left[:size], left[size:]
            part = clip.frames(batch, place()) if batch else None
            chunks += [part] if part is not None else []
        last = clip.end(place())
        chunks += [last] if last is not None else []
        if spelt:
            ids.extend(spelt)
        else:
            ids.extend([VIDEO] * sum(len(chunk) for chunk in chunks[before:]))
            say([VISION_END])
    say(letters(6, 3))
    return Chunk.join(chunks), ids


def frame_texts(tiny: Tiny, frames: list[Frame]) -> list[int]:
    """Token ids of a video in families that write between the frames; empty in others."""
    kind, say = tiny.model.config.model_type, tiny.family.tokenize
    ids: list[int] = []
    if kind in STAMPED:
        size = tiny.family.video_spec.temporal
        for first, second in zip(frames[::size], [*frames[size - 1 :: size], frames[-1]], strict=False):
            stamp = say(f"<{(first.time + second.time) / 2:.1f} seconds>")
            ids += [*stamp, VISION_START, *[VIDEO] * tokens_of(tiny, [first]), VISION_END]
    elif kind.startswith("minicpmv"):
        ids = [token for frame in frames for token in sliced(tiny, frame, VIDEO)]
    elif kind == "internvl":
        ids = say("\n".join(f"Frame{number + 1}: <img>{'<image>' * 4}</img>" for number in range(len(frames))))
    elif kind.startswith("gemma4"):
        count = len(pooled([frames[0].pixels], tiny.family.video_spec)[1]) // (1 if kind == "gemma4_unified" else 9)
        ids = say(" ".join(f"00:{int(frame.time):02d} <img>{'<video>' * count}</img>" for frame in frames))
    elif kind == "smolvlm":
        square = f"<fake_token_around_image><global-img>{'<image>' * 4}<fake_token_around_image>"
        ids = say("".join(f"\nFrame from 00:{int(frame.time):02d}:{square}" for frame in frames))
    return ids


def sliced(tiny: Tiny, frame: Frame, token: int) -> list[int]:
    """What MiniCPM-V writes for a picture: the whole, and its slices row by row."""
    found = tiny.family.image_spec(images=[frame.pixels], return_tensors="pt")
    whole, *slices = (found["target_sizes"] // 4).prod(-1).tolist()
    words = f"<img>{'@' * whole}</img>"
    rows, columns = found["grids"][0]
    cut = [f"<slice>{'@' * count}</slice>" for count in slices]
    words += "\n".join("".join(cut[row * columns : (row + 1) * columns]) for row in range(rows if slices else 0))
    before, *after = (tiny.family.tokenize(part) for part in words.replace("@", "<image>").split("<image>"))
    return before + [each for part in after for each in (token, *part)]


def tokens_of(tiny: Tiny, frames: list[Frame]) -> int:
    """How many tokens a pair of frames takes, or one frame where they do not come in pairs."""
    return len(patches([frame.pixels for frame in frames], tiny.family.video_spec)[0]) // 4


def image_text(tiny: Tiny, image: Frame) -> list[int]:
    """Token ids of a still image in families that write around it; empty in others."""
    kind = tiny.model.config.model_type
    if kind == "internvl":
        count = len(best_grid(image.pixels, tiny.family.image_spec, 12))
        return tiny.family.tokenize(f"<img>{'<image>' * 4 * count}</img>")
    if kind.startswith("minicpmv"):
        return sliced(tiny, image, IMAGE)
    if kind == "lfm2_vl":
        parts, columns = tiles_and_thumbnail(image.pixels, tiny.family.image_spec)
        words = []
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            name = "<|img_thumbnail|>" if last else f"<|img_row_{number // columns + 1}_col_{number % columns + 1}|>"
            words += [name if len(parts) > 1 else "", "<image>" * (part[0].numel() // 64)]
        return tiny.family.tokenize("".join(["<|image_start|>", *words, "<|image_end|>"]))
    if kind in ("idefics3", "smolvlm"):
        _, rows, columns = split(image.pixels, tiny.family.image_spec, 64)
        return tiny.family.tokenize(
            get_image_prompt_string(rows, columns, 4, "<fake_token_around_image>", "<image>", "<global-img>")
        )
    return []


def stock_inputs(tiny: Tiny, ids: list[int], image: Frame | None, frames: list[Frame]) -> dict[str, Any]:
    """What the processor of the stock model would make of it."""
    kind = tiny.model.config.model_type
    place = torch.tensor([ids])
    inputs: dict[str, Any] = {"input_ids": place}
    if kind.startswith("qwen") or kind in STAMPED:
        if kind != "lfm3_vl":
            inputs["mm_token_type_ids"] = (place == IMAGE).int() + 2 * (place == VIDEO).int()
        if image is not None:
            flat, grid = patches([image.pixels], tiny.family.image_spec)
            inputs |= {"pixel_values": flat, "image_grid_thw": torch.tensor([grid])}
        if frames:
            flat, grid = patches([frame.pixels for frame in frames], tiny.family.video_spec)
            inputs |= {"pixel_values_videos": flat, "video_grid_thw": torch.tensor([grid])}
            if kind == "qwen2_5_vl":
                inputs["second_per_grid_ts"] = torch.tensor([2 * INTERVAL])
    if kind.startswith("llava"):
        family: Any = tiny.family
        if image is not None and kind == "llava":
            inputs["pixel_values"] = pixels([image.pixels], family.image_spec)
        elif image is not None:
            tiles, size = anyres(image.pixels, family.image_spec, tiny.model.config.image_grid_pinpoints)
            inputs |= {"pixel_values": tiles[None], "image_sizes": torch.tensor([size])}
        if frames:
            inputs["pixel_values_videos"] = pixels([frame.pixels for frame in frames], family.video_spec)[None]
    if kind == "internvl":
        parts = [] if image is None else [best_grid(image.pixels, tiny.family.image_spec, 12)]
        parts += [pixels([frame.pixels for frame in frames], tiny.family.video_spec)] if frames else []
        inputs["pixel_values"] = torch.cat(parts)
    if kind.startswith("minicpmv"):
        for name, pictures in (("", [image] if image is not None else []), ("_videos", frames)):
            if pictures:
                found = [tiny.family.image_spec(images=[picture.pixels], return_tensors="pt") for picture in pictures]
                inputs[f"pixel_values{name}"] = torch.cat([each["pixel_values"] for each in found], -1)
                inputs[f"target_sizes{name}"] = torch.cat([each["target_sizes"] for each in found])
        if kind == "minicpmv4_7":
            inputs["mm_token_type_ids"] = (place == IMAGE).int() + 2 * (place == VIDEO).int()
    if kind == "lfm2_vl" and image is not None:
        parts, _ = tiles_and_thumbnail(image.pixels, tiny.family.image_spec)
        cut = [flat_patches(part, 4) for part in parts]
        most = max(len(flat) for flat, _ in cut)
        inputs["pixel_values"] = torch.stack([torch.nn.functional.pad(flat, (0, 0, 0, most - len(flat))) for flat, _ in cut])
        inputs["spatial_shapes"] = torch.tensor([shape for _, shape in cut])
        inputs["pixel_attention_mask"] = torch.stack([(torch.arange(most) < len(flat)).int() for flat, _ in cut])
    if kind == "gemma3" and image is not None:
        inputs["pixel_values"] = pixels([image.pixels], tiny.family.image_spec)
        inputs["token_type_ids"] = (place == IMAGE).long()
    if kind.startswith("gemma4"):
        inputs["mm_token_type_ids"] = (place == IMAGE).int() + 2 * (place == VIDEO).int()
        if image is not None:
            cells, where = padded([image.pixels], tiny.family.image_spec)
            inputs |= {"pixel_values": cells, "image_position_ids": where}
        if frames:
            cells, where = padded([frame.pixels for frame in frames], tiny.family.video_spec)
            inputs |= {"pixel_values_videos": cells, "video_position_ids": where}
            inputs["num_frames_per_video"] = torch.tensor([len(frames)])
        if kind == "gemma4_unified":  # its own forward lets full layers see both ways too, its own `generate` does not
            inputs["attention_mask"] = tiny.model.create_masks_for_generate(
                tiny.model.config, torch.zeros(*place.shape, 1), None, None, torch.arange(len(ids))[None],
                mm_token_type_ids=inputs["mm_token_type_ids"],
            )  # fmt: skip
    if kind in ("idefics3", "smolvlm"):
        parts = [] if image is None else [split(image.pixels, tiny.family.image_spec, 64)[0]]
        parts += [pixels([frame.pixels for frame in frames], tiny.family.video_spec)] if frames else []
        inputs["pixel_values"] = torch.cat(parts)[None]
    return inputs


def padded(frames: list[Any], spec: Any) -> tuple[Tensor, Tensor]:
    """Gemma 4's patches and where they are, filled up to the most a picture may have, as its processors do."""
    cells, places = pooled(frames, spec)
    missing = spec.patches - cells.shape[1]
    where = torch.nn.functional.pad(places, (0, 0, 0, missing), value=-1)
    return torch.nn.functional.pad(cells, (0, 0, 0, missing)), where.expand(len(frames), -1, -1)


def both(tiny: Tiny, image: Frame | None, frames: list[Frame]) -> tuple[Tensor, Chunk]:
    """The stock model's logits of the whole prompt, and the family's chunk."""
    tiny.use("sdpa")
    with torch.inference_mode():
        chunk, ids = chunk_of(tiny, image, frames)
        assert len(ids) == len(chunk)
        seen = torch.tensor([ids]).eq(IMAGE) | torch.tensor([ids]).eq(VIDEO)
        assert torch.equal(seen, chunk.modality == Modality.VISION)
        inputs = stock_inputs(tiny, ids, image, frames)
        seeing = tiny.family.vision_dtype
        inputs |= {name: value.to(seeing) for name, value in inputs.items() if name.startswith("pixel_values")}
        return tiny.stock(**inputs), chunk
