"""Write the trained model as a checkpoint folder like any LLaVA-OneVision one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from lab.demo_model.frames import SIDE

PIXELS = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "LlavaOnevisionProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": SIDE, "width": SIDE},
}
FILES: dict[str, dict[str, Any]] = {
    "preprocessor_config.json": {
        **PIXELS,
        "do_pad": True,
        "image_grid_pinpoints": [[SIDE, SIDE]],
        "image_processor_type": "LlavaOnevisionImageProcessor",
    },
    "video_preprocessor_config.json": {**PIXELS, "video_processor_type": "LlavaOnevisionVideoProcessor"},
    "processor_config.json": {
        "image_token": "<image>",
        "num_image_tokens": (SIDE // 16) ** 2,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": "<video>",
        "vision_feature_select_strategy": "full",
    },
}


def export(model: Any, work: Path, folder: Path) -> None:
    """Write half precision, tied embeddings stored once."""
    model = model.to(torch.float16)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    for path in (work / "tokenizer").iterdir():
        shutil.copy(path, folder / path.name)
    for name, content in FILES.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    size = (folder / "model.safetensors").stat().st_size
    print(f"export: {sum(p.numel() for p in model.parameters())} parameters, {size} bytes", flush=True)
