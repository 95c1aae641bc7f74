"""Every family from a saved folder: the same answer, quantised where it should be, and clear words where it cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media import footage, picture
from test_model_spec import real_bytes
from tiny import (
    FEW,
    MODELS,
    TEXT_MODELS,
    Tiny,
    cosmos3_edge,
    gemma3,
    gemma4,
    gemma4_unified,
    lfm2,
    lfm3_vl,
    llama,
    llava,
    minicpmv4_6,
    minicpmv4_7,
    qwen2_5_vl,
    qwen3_5,
    smollm3,
    smolvlm,
    tokenizer,
)  # fmt: skip
from transformers import AutoModelForImageTextToText, LlavaConfig, PixtralVisionConfig

from edgemllm import policies
from edgemllm.errors import DoesNotFitError, MissingError, UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.models import loading, shipped
from edgemllm.models.chat import Sampling
from edgemllm.models.facts import recorded
from edgemllm.models.families import families, family_of
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.random_weights import byte_tokenizer, random_model
from edgemllm.models.spec import ModelSpec
from edgemllm.policies.inf_mllm import InfMLLM
from edgemllm.session import Session

SMALL = {"nf4": "Linear4bit"}  # packed weights: tests/test_packed.py
quantising = pytest.mark.filterwarnings("ignore")  # bitsandbytes tells what it casts


def saved(tiny: Tiny, folder: Path) -> str:
    tiny.model.save_pretrained(folder)
    tiny.family.tokenizer.save_pretrained(folder)
    if tiny.family.image_token and hasattr(tiny.family.image_spec, "save_pretrained"):  # transformers' own processor
        tiny.family.image_spec.save_pretrained(folder)
    if hasattr(tiny, "processor"):
        (folder / "preprocessor_config.json").write_text(json.dumps(tiny.processor))
    return str(folder)


def opened(tiny: Tiny, folder: str, quant: str = "none") -> ModelFamily:
    family = loading.load(loading.locate(folder), quant, detail=tiny.family.detail)
    if type(family.tokenizer) is not type(tiny.family.tokenizer):  # a class of the model's own cuts our toy words otherwise
        family.tokenizer = tiny.family.tokenizer
    return family


def asked(family: ModelFamily) -> tuple[str, torch.Tensor]:
    """An answer about whatever the model can see, and the logits before it."""
    session = Session(family, InfMLLM(), 600, chunk=50)
    if family.image_token:
        session.show(picture(1))
    if family.video_token:
        session.watch(footage(3))
    for _ in session.put("What is there?"):
        pass
    assert session.last is not None
    with torch.inference_mode():
        logits = family.logits(session.last)[:, 0]
    return "".join(session.answer(Sampling(max_tokens=5))), logits


@quantising
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_saved_folder_gives_the_same_answer_and_quantises_the_language_model_alone(make, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tiny = make()
    folder = saved(tiny, tmp_path)
    want = asked(tiny.use("edgemllm").family)
    got = asked(opened(tiny, folder))
    assert got[0] == want[0]
    torch.testing.assert_close(got[1], want[1], atol=1e-5, rtol=1e-5)
    for quant, kind in SMALL.items():
        family = opened(tiny, folder, quant)
        names = {name for name, module in family.model.named_modules() if type(module).__name__ == kind}
        inside = {id(module) for module in family.text_model.modules()}
        linear = {n for n, m in family.model.named_modules() if id(m) in inside and isinstance(m, torch.nn.Linear)}
        assert names == linear
        assert not any(name.startswith(family.vision_modules) or "lm_head" in name for name in names if family.vision_modules)
        assert asked(family)[1].isfinite().all()


PLANNED = [
    qwen2_5_vl, gemma3, gemma4, gemma4_unified, smolvlm, llama, qwen3_5, lfm3_vl, cosmos3_edge, minicpmv4_7, lfm2, smollm3,
]  # fmt: skip


@quantising
@pytest.mark.parametrize("quant", ["none", "nf4", "int8", "int4"])
@pytest.mark.parametrize("make", PLANNED, ids=lambda make: make.__name__)
def test_the_plan_is_what_a_loaded_random_model_takes(make, quant: str) -> None:
    if quant == "nf4":
        pytest.importorskip("bitsandbytes")
    config = make().model.config
    config.get_text_config().vocab_size = 400  # room for a token a byte
    family = loading.load(loading.Checkpoint("random", None, config), quant, detail=ANY)
    planned = replace(ModelSpec.from_config(config), on_cpu=True).weights_bytes(quant, "float32")
    assert planned == pytest.approx(real_bytes(family.model), rel=0.05)
    for name in ("inf-mllm", "streaming-llm"):
        policy = policies.build(name)
        session = Session(family, policy, 256, chunk=32)
        session.feed(family.text([1] * 300, 0))
        shape = family.cache_spec(config.get_text_config(), 4)
        assert 256 * shape.token_bytes(policy) + shape.fixed_bytes(policy, 32) == pytest.approx(session.kv()["bytes"], rel=0.05)


def test_still_images_are_numbered_where_the_model_was_trained_so() -> None:
    tiny = minicpmv4_6().use("edgemllm")
    session, fed = Session(tiny.family, InfMLLM(), 600, chunk=50), []
    session._text = lambda text: fed.append(text) or Session._text(session, text)  # type: ignore[method-assign]
    for number in range(2):
        session.show(picture(number))
    assert [text for text in fed if "image_id" in text] == ["<image_id>0</image_id>", "<image_id>1</image_id>"]
    assert llava().family.label(0) == ""


def test_the_recorded_facts_of_the_demo_are_those_of_its_configuration() -> None:
    assert loading.locate("demo").facts() == recorded("demo"), "python -m lab.facts"


@pytest.mark.parametrize("name", shipped.names())
def test_shipped_configurations_are_whole(name: str) -> None:
    checkpoint = loading.locate(f"random:{name}")
    config, family, facts = checkpoint.config, checkpoint.family, checkpoint.facts()
    assert facts.spec.parameters == shipped.parameters(name)
    assert facts == recorded(f"random:{name}"), "python -m lab.facts"
    family.check(config)
    sizes = facts.sizes
    assert bool(sizes.image_tokens) == hasattr(config, "vision_config")
    words = byte_tokenizer(config)
    text = "How many? Zwölf.\n"
    assert words.decode(words(text)["input_ids"]) == text
    for kind, count in (("image", sizes.image_tokens), ("video", sizes.frame_tokens)):
        if count:
            message = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "?"}]}]
            assert "<" in words.apply_chat_template(message, tokenize=False)


def test_random_weights_are_the_same_every_time_and_tied_where_the_configuration_says() -> None:
    config = qwen2_5_vl().model.config
    first, second = (random_model(AutoModelForImageTextToText, config, "none", torch.float32, "cpu", "sdpa") for _ in range(2))
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    tied = random_model(AutoModelForImageTextToText, config, "none", torch.float32, "cpu", "sdpa")
    assert tied.lm_head.weight is tied.get_input_embeddings().weight


def test_a_random_model_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'qwen2.5-vl-7b'") as error:
        loading.locate("random:qwen2.5-vl-7")
    assert "vicuna-7b" in error.value.hint


def test_what_is_not_known_to_run_rightly_is_refused() -> None:
    with pytest.raises(UsageError, match="mamba") as error:
        family_of("mamba")
    assert all(kind in error.value.hint for kind in families())
    pixtral = LlavaConfig(vision_config=PixtralVisionConfig())
    with pytest.raises(UsageError, match="vision tower of type 'pixtral'"):
        family_of("llava").check(pixtral)


def test_every_model_type_has_a_tiny_model_that_is_compared_with_stock() -> None:
    assert {make().model.config.model_type for make in MODELS} == set(families())


def test_pictures_that_see_themselves_both_ways_are_never_cut() -> None:
    tiny = gemma3()
    chunk = tiny.family.compose(["ab"], 0)
    whole = chunk.join([chunk, tiny.family.image(picture(1), 2), tiny.family.compose(["cd"], 6)])
    assert [len(part) for part in whole.split(3)] == [2, 4, 2]
    assert [len(part) for part in whole.split(6)] == [6, 2]
    with pytest.raises(DoesNotFitError, match="4 tokens see each other"):
        Session(tiny.family, InfMLLM(), 600, chunk=3)


def test_detail_is_traded_for_length() -> None:
    tiny = qwen2_5_vl()
    family: Any = type(tiny.family)(tiny.model, tokenizer(), detail=Detail(tokens_per_frame=3))
    big = [picture(1, 64, 64), picture(2, 64, 64)]
    assert len(family.frames(big, 0)) <= 6
    few = type(tiny.family)(tiny.model, tokenizer(), detail=Detail(max_pixels=256)).image(picture(1, 64, 64), 0)
    assert len(few) <= 4
    assert family.sizes(tiny.model.config, Detail(tokens_per_frame=3)).frame_tokens == 3
    with pytest.raises(UsageError, match="less than one token"):
        family.sizes(tiny.model.config, Detail(max_pixels=9))
    with pytest.raises(UsageError, match="pictures of one size"):
        llava().family.sizes(llava().model.config, Detail(max_pixels=100))


def test_gemma_knows_a_few_sizes_of_pictures() -> None:
    config = loading.locate("random:gemma-4-e2b").config
    family = family_of("gemma4")
    whole, less = family.sizes(config), family.sizes(config, Detail(max_pixels=400_000, tokens_per_frame=100))
    assert (whole.image_tokens, whole.frame_tokens) == (282, 80)
    assert (less.image_tokens, less.frame_tokens) == (142, 80)
    with pytest.raises(UsageError, match="frame 50 allows 50 tokens, and this model knows pictures of 70") as error:
        family.sizes(config, Detail(tokens_per_frame=50))
    assert error.value.hint == "--tokens-per-frame 70 or more"


def test_an_audio_tower_is_neither_counted_nor_loaded(tmp_path: Path) -> None:
    hears = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32}
    deaf, config = gemma4(), gemma4().model.config.to_dict()
    model = type(deaf.model)(type(deaf.model.config)(**{**config, "audio_config": hears}))
    assert not model.load_state_dict(deaf.model.state_dict(), strict=False).unexpected_keys
    folder = saved(Tiny(model=model, family=deaf.family), tmp_path)
    family = opened(deaf, folder)
    assert family.model.model.audio_tower is None
    assert loading.locate(folder).spec == ModelSpec.from_config(deaf.model.config)
    assert asked(family)[0] == asked(deaf.use("edgemllm").family)[0]


def test_a_damaged_folder_names_the_file(tmp_path: Path) -> None:
    tiny = TEXT_MODELS[1]()
    tiny.model.save_pretrained(tmp_path, max_shard_size="50KB")
    tiny.family.tokenizer.save_pretrained(tmp_path)
    assert asked(opened(tiny, str(tmp_path)))[1].isfinite().all()  # several files are one model
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:-100])
    with pytest.raises(MissingError, match=rf"{shards[0].name} has {len(whole) - 100} of {len(whole)} bytes"):
        loading.locate(str(tmp_path))
    shards[0].write_bytes(b"<html>not found</html>")
    with pytest.raises(MissingError, match=f"{shards[0].name} .* is damaged"):
        loading.locate(str(tmp_path))
    shards[0].unlink()
    with pytest.raises(MissingError, match=f"lacks {shards[0].name} of {len(shards)} weight files"):
        loading.locate(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map"')
    with pytest.raises(MissingError, match=r"model\.safetensors\.index\.json"):
        loading.locate(str(tmp_path))


def test_a_checkpoint_quantised_beforehand_is_taken_as_it_is(tmp_path: Path) -> None:
    from edgemllm.launch import prepare
    from edgemllm.planning.request import Request

    tiny = llama()
    folder = saved(tiny, tmp_path)
    file = tmp_path / "config.json"
    found = json.loads(file.read_text())
    found["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    file.write_text(json.dumps(found))
    checkpoint = loading.locate(folder)
    assert checkpoint.prequantised_with == "awq"
    launch = prepare(Request(folder))
    assert launch.quant == "awq"
    stored = (tmp_path / "model.safetensors").read_bytes()
    assert launch.plan.weights_bytes == len(stored) - 8 - int.from_bytes(stored[:8], "little")  # without its header
    with pytest.raises(UsageError, match="already quantised with awq"):
        prepare(Request(folder, quant="nf4"))


@quantising
def test_a_checkpoint_in_four_bits_is_loaded_by_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    first = opened(qwen2_5_vl(), saved(qwen2_5_vl(), tmp_path / "whole"), "nf4")
    first.model.save_pretrained(tmp_path / "small")
    first.tokenizer.save_pretrained(tmp_path / "small")
    checkpoint = loading.locate(str(tmp_path / "small"))
    assert checkpoint.prequantised_with == "bitsandbytes"
    again = loading.load(checkpoint, detail=FEW)
    assert checkpoint.stored_as == "nf4"
    assert any(type(module).__name__ == SMALL["nf4"] for module in again.model.modules())
    assert asked(again)[0] == asked(first)[0]


@quantising
def test_four_bits_are_computed_alike_on_every_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes repacks 4-bit weights where it finds AVX512-BF16, and 96 inputs are not a multiple of its 64."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    folder, answers = saved(llama(), tmp_path), []
    for found in (False, True):
        monkeypatch.setattr(modules, "has_avx512bf16", lambda found=found: found)
        answers.append(asked(opened(llama(), folder, "nf4"))[1])
    assert (answers[0] == answers[1]).all()
