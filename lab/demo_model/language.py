"""Tokenizer and text phase: a byte-level BPE tokenizer, then the language model alone on English prose."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from edgemllm.media import slides

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
VOCABULARY = 4096
CONTEXT = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'video' %}<video>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def text_config() -> Qwen2Config:
    """Return the language model's shape."""
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        # With 10000, few of a head's 16 pairs turn slowly enough to compare contents over 1024 tokens.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )


def slide_sentences() -> list[str]:
    """Return every question and answer of the slide world once: what the tokenizer must split into whole words."""
    lines = []
    for colour in slides.COLOURS:
        for shape in slides.SHAPES:
            kind = slides.Kind(colour, shape)
            lines += [slides.ask(topic, kind, i) for topic in ("number", "seen") for i in range(len(slides.PHRASINGS[topic]))]
            lines += [slides.describe(slides.Fact(kind, 7)), f"{shape}, {shape}"]
        lines += [slides.ask("list", slides.Kind(colour, "bar"), i) for i in range(len(slides.PHRASINGS["list"]))]
    lines += [
        *slides.PHRASINGS["screen"],
        slides.NOT_SEEN,
        slides.NO_SLIDE,
        "yes",
        "no",
        "none",
        "user",
        "assistant",
        "system",
    ]
    return lines


def train_tokenizer(text: Path, work: Path) -> None:
    """Train the tokenizer on the novels plus repeated slide sentences, so that the slide words are single tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = slide_sentences()
    # One sentence a line would hide the newline before it; 400 rounds put every word above the rarest merge of 25 MB of prose.
    extra = [sentence for sentence in sentences for _ in range(400)]
    novels = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(text.glob("*.txt"))]
    tokenizer.train_from_iterator([*novels, *extra], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(work / "tokenizer")


def encode_text(text: Path, work: Path) -> None:
    """Encode the novels as one array of tokens, an end token after each."""
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    novels = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(text.glob("*.txt"))]
    stream: list[int] = []
    for encoded in tokenizer(novels, add_special_tokens=False)["input_ids"]:
        stream += [*encoded, end]
    np.save(work / "text_tokens.npy", np.array(stream, dtype=np.uint16))
    size = sum(len(novel.encode()) for novel in novels)
    print(f"tokenizer: {len(tokenizer)} entries, {len(stream)} tokens, {size / len(stream):.3f} bytes per token", flush=True)


class Muon(torch.optim.Optimizer):
    """Muon in float32: torch's own orthogonalises in bfloat16, which is slow on processors without bf16 units."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.02) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    gradient, momentum = parameter.grad, group["momentum"]
                    assert gradient is not None
                    buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    buffer.lerp_(gradient, 1 - momentum)
                    updates.append(gradient.lerp(buffer, momentum))
                directions = orthogonalise(torch.stack(updates))
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-scale)


def orthogonalise(batch: torch.Tensor) -> torch.Tensor:
    """Iterate (Newton-Schulz) towards the nearest orthogonal matrices."""
    flip = batch.shape[-2] > batch.shape[-1]
    x: torch.Tensor = batch.mT if flip else batch
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    nearest: torch.Tensor = x.mT if flip else x
    return nearest


class Optimisers:
    """Muon for hidden matrices, AdamW for everything else, one schedule for both."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], muon: float, adam: float, embedding: float) -> None:
        groups: dict[str, list[nn.Parameter]] = {"matrix": [], "embedding": [], "other": []}
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            inside = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
            groups["matrix" if inside else "embedding" if parameter.ndim == 2 else "other"].append(parameter)
        self.parameters = [parameter for group in groups.values() for parameter in group]
        self.muon = Muon(groups["matrix"], lr=muon)
        self.adam = torch.optim.AdamW(
            [{"params": groups["embedding"], "lr": embedding}, {"params": groups["other"], "lr": adam}],
            betas=(0.9, 0.95),
            eps=1e-9,
            weight_decay=0.0,
        )
        self.base = [(group, group["lr"]) for optimiser in (self.muon, self.adam) for group in optimiser.param_groups]

    def step(self, factor: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group, rate in self.base:
            group["lr"] = rate * factor
        self.muon.step()
        self.adam.step()
        self.zero()

    def zero(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.base = [
            (group, rate)
            for (_, rate), group in zip(self.base, [*self.muon.param_groups, *self.adam.param_groups], strict=True)
        ]


def next_token_loss(model: Any, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of every next token of text."""
    logits = model.lm_head(hidden[:, :-1])
    loss: torch.Tensor = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return loss


def text_batch(tokens: np.ndarray, rng: np.random.Generator, rows: int, length: int) -> torch.Tensor:
    """Draw random windows of the novels."""
    starts = rng.integers(0, len(tokens) - length, rows)
    return torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64))


def build_language_model(seed: int) -> Qwen2ForCausalLM:
    """Make a fresh language model with output layers that start small."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(text_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    look_back(model.model)
    return model


@torch.no_grad()
def look_back(model: Any, head: int = 5, amplitudes: tuple[float, ...] = (6.6, 4.7, 4.7)) -> None:
    """Make a head of the first layer look at the token before it, by biases of its fastest rotary pairs alone.

    A question's colour and shape have to be known together before a slide can be looked up by both; left to itself the
    model did not find such a head within an hour.
    """
    attention, size = model.layers[0].self_attn, text_config().head_dim
    speeds, half = model.rotary_emb.inv_freq, size // 2
    group = text_config().num_attention_heads // text_config().num_key_value_heads
    first, key, query = head * size, attention.k_proj, attention.q_proj
    shared = head // group * size
    query.weight[first : first + size] = 0
    query.bias[first : first + size] = 0
    for pair, amplitude in enumerate(amplitudes):
        for row in (pair, pair + half):
            key.weight[shared + row] = key.bias[shared + row] = 0
            for other in range(head // group * group, (head // group + 1) * group):  # they share the keys
                query.weight[other * size + row] = query.bias[other * size + row] = 0
        key.bias[shared + pair] = amplitude
        query.bias[first + pair] = amplitude * math.cos(speeds[pair])
        query.bias[first + pair + half] = -amplitude * math.sin(speeds[pair])


def train_text(work: Path, minutes: float, seed: int, steps: int, rows: int = 24, length: int = 256) -> None:
    """Warm up, stay, and do not decay: the joint phase continues from here and decays at its end."""
    tokens = np.load(work / "text_tokens.npy")
    model = build_language_model(seed)
    optimisers = Optimisers(model.named_parameters(), muon=0.02, adam=2e-3, embedding=3e-3)
    path, first = work / "text.pt", 0
    if path.exists():
        saved = torch.load(path, weights_only=False)
        model.load_state_dict(saved["model"])
        optimisers.load_state_dict(saved["optimisers"])
        first = saved["step"]
    compiled: Any = torch.compile(model.model)
    started, shown = time.time(), 0.0
    held = text_batch(tokens, np.random.default_rng(99), 16, length)
    for step in range(first, steps):
        if time.time() - started > minutes * 60:
            break
        rng = np.random.default_rng([seed, step])
        ids = text_batch(tokens, rng, rows, length)
        loss = next_token_loss(model, compiled(input_ids=ids, use_cache=False).last_hidden_state, ids)
        loss.backward()
        optimisers.step(min(1.0, (step + 1) / 40) * min(1.0, 1.0 - 0.5 * max(0.0, (step / steps - 0.6) / 0.4)))
        shown = loss.item() if not shown else 0.95 * shown + 0.05 * loss.item()
        if step % 20 == 0 or step == steps - 1:
            rate = (step - first + 1) * rows * length / (time.time() - started)
            print(f"text step {step} loss {shown:.3f} {rate:.0f} tokens/s {time.time() - started:.0f} s", flush=True)
        if (step + 1) % 100 == 0 or step == steps - 1:
            torch.save({"model": model.state_dict(), "optimisers": optimisers.state_dict(), "step": step + 1}, path)
    with torch.no_grad():
        print("text: loss on a fixed batch", next_token_loss(model, model.model(held).last_hidden_state, held).item())
