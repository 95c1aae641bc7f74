"""The planner: budgets as people write them, exact weight bytes, sums that add up, advice that fits."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
from transformers import Qwen2_5_VLConfig, Qwen2Config

from edgemllm import policies
from edgemllm.cache.scratch import Scratch
from edgemllm.cache.size import CacheSpec, LayerSpec
from edgemllm.commands.events import headed
from edgemllm.device import profiles
from edgemllm.device.memory import Memory, human_bytes
from edgemllm.errors import DoesNotFitError, UsageError
from edgemllm.models.spec import ModelSpec
from edgemllm.planning.budget import KVBudget, parse_kv_budget
from edgemllm.planning.case import Case
from edgemllm.planning.peaks import activation_bytes, vision_bytes
from edgemllm.planning.plan import Plan
from edgemllm.planning.planner import plan
from edgemllm.policies.base import CachePolicy

GIB = 2**30
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}
CONTRACT = [
    "schema", "command", "fits", "weights_bytes", "vision_bytes", "activation_bytes", "kv_bytes", "margin_bytes",
    "total_bytes", "free_bytes", "kv_budget_tokens", "kv_bytes_per_token", "suggestions",
]  # fmt: skip


@pytest.fixture(scope="module")
def qwen_7b() -> ModelSpec:
    """The published sizes of Qwen2.5-VL-7B-Instruct."""
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return ModelSpec.from_config(Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False))


@dataclass(frozen=True)
class Keeps(CachePolicy):
    """Always keeps so many tokens."""

    least: int = 127

    def minimum(self) -> int:
        return self.least


FULL = {"policy": policies.build("full"), "policy_name": "full"}


def cache_of(spec: ModelSpec) -> CacheSpec:
    return CacheSpec((LayerSpec("full", spec.heads, spec.kv_heads, spec.head_dim),) * spec.layers, itemsize=2)


def kv_per_token(spec: ModelSpec) -> int:
    """Keys and values in 16 bits; a position, a time and a modality for every KV head."""
    return spec.layers * spec.kv_heads * (2 * spec.head_dim * 2 + 4 + 4 + 1)


def make(spec: ModelSpec, name: str = "orin-nx-16gb", **changes: Any) -> Plan:
    profile = profiles.load(name)
    arguments: dict[str, Any] = {
        "profile": profile,
        "memory": profile.idle_memory(),
        "spec": spec,
        "quant": profile.weights,
        "dtype": profile.dtype,
        "chunk": profile.chunk,
        "budget": KVBudget(),
        "shape": cache_of(spec),
        "policy": Keeps(),
        "policy_name": "keeps",
    }
    return plan(Case(**{**arguments, **changes}))


@pytest.mark.parametrize(
    ("text", "kind", "amount", "shown"),
    [
        ("2048", "tokens", 2048, "2048"),
        ("512MiB", "bytes", 512 * 2**20, "512.0MiB"),
        ("1.5g", "bytes", 3 * 2**29, "1.5GiB"),
        ("25%", "share", 250_000, "25%"),
        ("0.5 %", "share", 5_000, "0.5%"),
        ("100%", "share", 1_000_000, "100%"),
        ("auto", "auto", 0, "auto"),
    ],
)
def test_budgets(text: str, kind: str, amount: int, shown: str) -> None:
    budget = parse_kv_budget(text)
    assert (budget.kind, budget.amount, str(budget)) == (kind, amount, shown)
    assert parse_kv_budget(str(budget)) == budget


@pytest.mark.parametrize("text", ["0", "-5", "abc", "200%", "0%", "-1MiB", "0MiB", "2048.5", "%", "10 parsecs", "nan", "1e3"])
def test_budgets_that_mean_nothing(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_kv_budget(text)
    assert error.value.hint


def test_published_sizes_of_qwen_7b(qwen_7b: ModelSpec) -> None:
    assert qwen_7b.parameters == 8_292_166_656  # the checkpoint's own count
    assert qwen_7b.weights_bytes("none", "bfloat16") == 2 * qwen_7b.parameters
    assert qwen_7b.not_quantised == ("model.visual", "lm_head")
    assert 6 * GIB < qwen_7b.weights_bytes("nf4", "bfloat16") < 7 * GIB


@pytest.mark.parametrize("name", profiles.names())
def test_parts_sum_up(qwen_7b: ModelSpec, name: str) -> None:
    made = make(qwen_7b, name, policy=policies.build("inf-mllm"), budget=KVBudget("tokens", 2048))
    parts = made.weights_bytes + made.vision_bytes + made.activation_bytes + made.kv_bytes + made.margin_bytes
    assert made.total_bytes == parts
    assert made.kv_bytes == 28 * 32 * 3584 * 2 + 2048 * kv_per_token(qwen_7b)  # the window's queries, and the tokens
    assert made.fits == (made.total_bytes <= made.free_bytes)
    assert list(headed("plan", made.as_json())) == CONTRACT
    assert bool(made.decode_tps_ceiling) == (profiles.load(name).bandwidth_gb_s is not None)


def test_auto_fills_what_is_left_and_no_more(qwen_7b: ModelSpec) -> None:
    base = profiles.load("orin-nx-16gb")
    profile = replace(base, cache=replace(base.cache, memory=None))
    needed = make(qwen_7b, profile=profile, budget=KVBudget("tokens", 4096)).total_bytes
    free = Memory("unified", needed, 16 * GIB)
    assert make(qwen_7b, profile=profile, memory=free).kv_budget_tokens == 4096
    assert make(qwen_7b, profile=profile, memory=replace(free, free_bytes=needed - 1)).kv_budget_tokens == 4032
    assert make(qwen_7b, profile=profile, memory=replace(free, free_bytes=99 * GIB)).kv_budget_tokens == 16384
    wide = replace(cache_of(qwen_7b), layers=cache_of(qwen_7b).layers[:1] * 500)
    assert 0.9 * GIB < make(qwen_7b, memory=replace(free, free_bytes=99 * GIB), shape=wide).kv_bytes <= GIB


def test_auto_stays_in_the_trained_context() -> None:
    spec = ModelSpec.from_config(Qwen2Config(**TEXT, max_position_embeddings=1000))
    assert make(spec).kv_budget_tokens == 960
    assert make(spec, policy=Keeps(positions="original")).kv_budget_tokens == 16384


def test_bytes_and_shares(qwen_7b: ModelSpec) -> None:
    size = 2048 * kv_per_token(qwen_7b)
    made = make(qwen_7b, budget=parse_kv_budget(f"{size}b"))
    assert (made.kv_budget_tokens, made.kv_bytes) == (2048, size)
    made = make(qwen_7b, budget=parse_kv_budget(f"{size}b"), policy=policies.build("inf-mllm"))
    assert made.kv_budget_tokens < 2048
    assert size - kv_per_token(qwen_7b) < made.kv_bytes <= size
    assert make(qwen_7b, budget=parse_kv_budget("25%"), input_tokens=10_000).kv_budget_tokens == 2500
    with pytest.raises(UsageError, match="length is not known"):
        make(qwen_7b, budget=parse_kv_budget("25%"))


def test_budget_below_the_minimum_of_the_policy(qwen_7b: ModelSpec) -> None:
    with pytest.raises(DoesNotFitError) as error:
        make(qwen_7b, budget=parse_kv_budget("100"), policy=Keeps(least=259))
    assert error.value.exit_code == 4
    assert "keeps needs at least 260" in error.value.message
    assert "--kv-budget 260" in error.value.hint
    with pytest.raises(DoesNotFitError):
        make(qwen_7b, budget=parse_kv_budget("1KiB"), policy=Keeps(least=0))


def test_full_needs_the_whole_input(qwen_7b: ModelSpec) -> None:
    made = make(qwen_7b, "orin-nx-16gb", input_tokens=230_400, **FULL)
    assert not made.fits
    assert made.kv_bytes == 230_400 * kv_per_token(qwen_7b)
    assert made.suggestions[-1].startswith("--policy inf-mllm --kv-budget 8192   needs ")
    assert make(qwen_7b, "h200-141gb", input_tokens=230_400, **FULL).fits
    longest = make(qwen_7b, "h200-141gb", **FULL)
    assert longest.fits
    assert longest.kv_budget_tokens > 230_400
    with pytest.raises(DoesNotFitError, match="full never evicts"):
        make(qwen_7b, "h200-141gb", input_tokens=5000, budget=KVBudget("tokens", 2048), **FULL)


def test_advice_fits_when_followed(qwen_7b: ModelSpec) -> None:
    made = make(qwen_7b, "rtx-laptop-12gb", quant="none")
    assert not made.fits
    assert made.suggestions
    assert made.suggestions[0].startswith("--quant ")
    words = made.suggestions[0].split()
    assert make(qwen_7b, "rtx-laptop-12gb", quant=words[1]).fits


def follow(spec: ModelSpec, line: str, **arguments: Any) -> Plan:
    """The plan of a run with a suggestion's options typed."""
    words = line.partition("   needs ")[0].split()
    typed = dict(zip(words[::2], words[1::2], strict=True))
    read = {"--quant": ("quant", str), "--chunk": ("chunk", int), "--kv-budget": ("budget", parse_kv_budget)}
    read["--policy"] = ("policy", policies.build)
    return make(spec, **{**arguments, **{read[key][0]: read[key][1](value) for key, value in typed.items()}})


@pytest.mark.parametrize("budget", ["auto", "16384", "300"])
@pytest.mark.parametrize("bounded", [True, False])
def test_every_suggestion_fits_with_room_for_its_chunk(qwen_7b: ModelSpec, budget: str, bounded: bool) -> None:
    seen = 0
    for quant, gib in itertools.product(("none", "int8", "nf4"), range(6, 24)):
        arguments: dict[str, Any] = {
            "memory": Memory("unified", gib * GIB, 32 * GIB, "MemAvailable"),
            "quant": quant,
            "chunk": 2048,
            "budget": parse_kv_budget(budget),
            **({} if bounded else FULL),
            "input_tokens": None if bounded else 250,
        }
        made = make(qwen_7b, **arguments)
        for line in made.suggestions:
            seen += 1
            followed = follow(qwen_7b, line, **arguments)
            assert followed.fits, line
            if "--chunk" in line and (bounded or "--policy" in line):
                least = Keeps().least if bounded else policies.build("inf-mllm").minimum()
                assert int(line.partition("--chunk ")[2].split()[0]) + least <= followed.kv_budget_tokens, line
    assert seen > 5


def test_half_precision_halves_the_cache_as_well(qwen_7b: ModelSpec) -> None:
    wide = {"shape": replace(cache_of(qwen_7b), itemsize=4), "dtype": "float32", "quant": "none"}
    wide["memory"] = Memory("host", 32 * GIB, 64 * GIB)
    made = make(qwen_7b, "cpu", budget=KVBudget("tokens", 16384), **wide)
    line = next(line for line in made.suggestions if line.startswith("--dtype bfloat16 "))
    typed = {**wide, "shape": cache_of(qwen_7b), "dtype": "bfloat16"}
    followed = make(qwen_7b, "cpu", budget=KVBudget("tokens", 16384), **typed)
    assert line == f"--dtype bfloat16   needs {human_bytes(followed.total_bytes)}"


def test_several_changes_together_and_a_model_that_is_too_large(qwen_7b: ModelSpec) -> None:
    tight = Memory("discrete", 9 * GIB, 12 * GIB, "GPU memory")
    made = make(qwen_7b, "rtx-laptop-12gb", memory=tight, quant="none", chunk=2048, budget=KVBudget("tokens", 16384))
    assert not made.fits
    assert made.suggestions
    assert all(line.count("--") >= 2 for line in made.suggestions)
    hopeless = make(qwen_7b, "orin-nano-8gb")
    assert (hopeless.fits, hopeless.suggestions) == (False, ())
    assert "smaller model" in hopeless.error().hint


def test_error_says_what_is_needed_what_is_free_and_what_to_type(qwen_7b: ModelSpec) -> None:
    error = make(qwen_7b, "orin-nx-16gb", quant="none").error()
    assert error.exit_code == 4
    assert "needed   weights 15.4 GiB + kv " in error.message
    assert "free     13.2 GiB" in error.message
    assert "unified memory, NVIDIA Jetson Orin NX 16 GB" in error.message
    assert "needs" in error.hint
    assert "--quant" in error.hint


def test_roofline(qwen_7b: ModelSpec) -> None:
    made = make(qwen_7b, "agx-orin-64gb", budget=KVBudget("tokens", 2048))
    read = 2 * (qwen_7b.linear_parameters + qwen_7b.other_text_parameters + 152064 * 3584) + made.kv_bytes
    assert made.decode_tps_ceiling == pytest.approx(204.8e9 / read)


def test_peaks_grow_with_what_they_depend_on(qwen_7b: ModelSpec) -> None:
    watching = Scratch(watched=128)
    small = activation_bytes(qwen_7b, "none", "bfloat16", 256, 2048, watching)
    assert activation_bytes(qwen_7b, "none", "bfloat16", 512, 2048, watching) > small
    assert activation_bytes(qwen_7b, "none", "bfloat16", 256, 4096, watching) > small
    assert activation_bytes(qwen_7b, "nf4", "bfloat16", 256, 2048, watching) - small == 18944 * 3584 * 2
    assert small - activation_bytes(qwen_7b, "none", "bfloat16", 256, 2048, Scratch()) == 28 * 128 * (2048 + 256) * 12
    assert activation_bytes(qwen_7b, "none", "bfloat16", 256, 2048, Scratch(window=1024)) > small
    assert activation_bytes(qwen_7b, "none", "bfloat16", 256, 2048, Scratch(compaction_copies=1000)) > small
    one = vision_bytes(qwen_7b.vision, 3584, "bfloat16")
    assert vision_bytes(qwen_7b.vision, 3584, "bfloat16", frames=2) == 2 * one
    assert vision_bytes(None, 3584, "bfloat16") == 0


def test_names_that_mean_nothing() -> None:
    spec = ModelSpec.from_config(Qwen2Config(**TEXT))
    with pytest.raises(UsageError, match="quantisation"):
        make(spec, quant="q4")
    with pytest.raises(UsageError, match="dtype"):
        make(spec, dtype="int3")
