"""The embedded demo model: a stock checkpoint folder, small, and right about a clip it never saw."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from edgemllm.media import slides
from edgemllm.models import loading
from lab.demo_model import renderer

FOLDER = loading.DEMO


@pytest.fixture(scope="module")
def model() -> Any:
    return LlavaOnevisionForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def say(model: Any, tokenizer: Any, frames: list[np.ndarray], question: str) -> str:
    """Greedy answer of stock transformers; its own video processor would need torchvision, so frames are squashed here."""
    content = [{"type": "video"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = prompt.replace("<video>", "<video>" * (4 * len(frames) + 1))
    small = [np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BICUBIC)) for frame in frames]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=pixels,
            max_new_tokens=16,
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_the_folder_holds_no_code_and_is_small() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "lecture.mp4",
        "lecture.json",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert (FOLDER / "model.safetensors").stat().st_size < 16_000_000
    assert (FOLDER / "lecture.mp4").stat().st_size < 3_000_000


def test_weights_are_half_precision_and_embeddings_are_stored_once() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} <= {"F16", "BF16"}
        assert not [name for name in names if "lm_head" in name]
        assert all(torch.isfinite(weights.get_tensor(name)).all() for name in names)


def test_stock_transformers_loads_it_tied(model: Any) -> None:
    assert model.lm_head.weight.data_ptr() == model.model.language_model.embed_tokens.weight.data_ptr()
    assert 3e6 < sum(parameter.numel() for parameter in model.parameters()) < 8e6
    assert model.config.text_config.max_position_embeddings == 1024


@pytest.mark.parametrize(
    "text", ["", "plain", "naïve café", "日本語 🙂 \u200d", "\t a\n\n b \r\n", "\x00\x7f", "x" * 500, "1234567890"]
)
def test_the_tokenizer_gives_every_text_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_the_chat_template(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "\nQ"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
    ]
    text = "<|im_start|>user\n<video>\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    assert tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False).endswith(
        "<|im_start|>assistant\n"
    )


def test_the_processor_files_say_what_the_model_was_trained_with() -> None:
    read = {name: json.loads((FOLDER / name).read_text()) for name in ("preprocessor_config.json", "processor_config.json")}
    read["video"] = json.loads((FOLDER / "video_preprocessor_config.json").read_text())
    for name in ("preprocessor_config.json", "video"):
        assert read[name]["size"] == {"height": 64, "width": 64}
        assert read[name]["image_mean"] == read[name]["image_std"] == [0.5, 0.5, 0.5]
    assert read["processor_config.json"]["vision_feature_select_strategy"] == "full"


def test_it_answers_about_a_clip_of_another_renderer(model: Any, tokenizer: Any) -> None:
    right = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        kinds = [slides.KINDS[int(k)] for k in rng.permutation(len(slides.KINDS))[:4]]
        facts = [slides.Fact(kind, int(rng.integers(10))) for kind in kinds[:3]]
        dark = np.zeros((90, 160, 3), np.uint8)
        frames = [dark]
        for fact in facts:
            frames += [renderer.slide(*fact.kind, fact.digit, 160, 90, rng)] * 2 + [dark]
        for topic, kind in [("number", kinds[seed % 3]), ("seen", kinds[1]), ("number", kinds[3])]:
            answer = say(model, tokenizer, frames, slides.ask(topic, kind))
            right.append(answer == slides.answer(topic, kind, facts))
    assert np.mean(right) >= 0.9, right


def test_the_sample_lecture_is_of_this_world() -> None:
    rounds = json.loads((FOLDER / "lecture.json").read_text())
    assert 10 <= len(rounds) <= 14
    known = {slides.ask(topic, kind) for topic in slides.PHRASINGS for kind in slides.KINDS}
    assert all(one["question"] in known for one in rounds)
    assert {"not seen", "no"} <= {one["answer"] for one in rounds}


def test_right_answers() -> None:
    red, blue = slides.Kind("red", "circle"), slides.Kind("blue", "bar")
    shown = [slides.Fact(red, 3), slides.Fact(slides.Kind("red", "ring"), 1), slides.Fact(red, 5)]
    assert slides.answer("number", red, shown) == "5"  # the later digit counts
    assert slides.answer("number", blue, shown) == "not seen"
    assert slides.answer("seen", red, shown) == "yes"
    assert slides.answer("seen", blue, shown) == "no"
    assert slides.answer("list", red, shown) == "circle, ring"
    assert slides.answer("list", blue, shown) == "none"
    assert slides.answer("screen", red, shown, shown[1]) == "a red ring with number 1"
    assert slides.answer("screen", red, shown) == "no slide"


@pytest.mark.parametrize("size", [(36, 64), (180, 320), (320, 180), (270, 640), (64, 64)])
def test_slides_are_drawn_at_any_size(size: tuple[int, int]) -> None:
    for number, kind in enumerate(slides.KINDS):
        image = slides.draw(slides.Fact(kind, number % 10), *size, np.random.default_rng(number))
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8
        assert image[0, 0].max() < 70
        assert image[:, size[1] // 2 :].min(-1).max() > 150  # a white digit on the right


def test_footage_is_drawn_at_any_size() -> None:
    for seed in range(30):
        frames = list(slides.footage(np.random.default_rng(seed), 3, 48, 80))
        assert [frame.shape for frame in frames] == [(48, 80, 3)] * 3
