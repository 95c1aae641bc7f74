"""How a conversation is written and read: the chat template, how the next token is chosen, and text from tokens.

The template is applied one turn at a time, so that a conversation of any length needs no history.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgemllm.errors import MissingError, UsageError

QUESTION, ANSWER = "\ufdd0question\ufdd1", "\ufdd0answer\ufdd1"
"""Stand-ins that no text contains (Unicode noncharacters)."""


class ChatFormat:
    """Splits the template's output into what goes before, between and after media and question."""

    def __init__(
        self, tokenizer: Any, tokens: dict[str, str | None], media_wrappers: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        """The placeholder token of each kind of media, `image` and `video`."""
        self.media_wrappers = media_wrappers or {}
        """Text before and after media of a kind, in place of the placeholder."""
        if not getattr(tokenizer, "chat_template", None):
            raise MissingError(
                "this model has no chat template, so it cannot chat",
                "use an instruction-tuned checkpoint (one with chat_template in its tokenizer files)",
            )

    def turn(self, media: Sequence[str], first: bool, system: str | None = None) -> list[str]:
        """The texts around the media of a user's turn, then the text before and after the question: len(media) + 2.

        The last starts after the question and ends where the answer begins. Later turns begin by closing the answer
        before them.
        """
        content: Any = QUESTION
        if media:
            content = [*({"type": kind} for kind in media), {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        if first and system:
            messages.insert(0, {"role": "system", "content": system})
        if not first:
            earlier = {"role": "assistant", "content": ANSWER if not media else [{"type": "text", "text": ANSWER}]}
            messages = [
                {"role": "user", "content": "?" if not media else [{"type": "text", "text": "?"}]},
                earlier,
                *messages,
            ]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            if not first:
                text = text.split(ANSWER, 1)[1]
            before, after = text.split(QUESTION)
        except Exception as error:  # a template is a program: it may raise anything, also on purpose
            folder = Path(self.tokenizer.name_or_path)
            file = "chat_template.jinja" if (folder / "chat_template.jinja").is_file() else "tokenizer_config.json"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise MissingError(
                f"the chat template of {folder / file} cannot write this turn: {reason}",
                "fetch it again" + ("; or omit --system" if system else ""),
            ) from error
        pieces = []
        for kind in media:
            token = self.tokens[kind]
            assert token is not None
            piece, before = before.split(token, 1)
            opening, closing = self.media_wrappers.get(kind, ("", ""))
            pieces.append(piece + opening)
            before = closing + before
        return [*pieces, before, after]


@dataclass(frozen=True)
class Sampling:
    """What is asked of an answer's tokens."""

    max_tokens: int = 512
    temperature: float = 0.0
    """Sampling temperature; 0 always picks the likeliest token."""
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and 0 <= self.top_p <= 1):
            raise UsageError(
                f"--temperature {self.temperature:g} with --top-p {self.top_p:g} chooses nothing",
                "a temperature from 0 upwards and a --top-p from 0 to 1",
            )


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token of logits (1, V)."""
    if sampling.temperature <= 0:
        return int(logits.argmax(-1))
    chances = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ranked, order = chances.sort(dim=-1, descending=True)
        # A token stays if the ones before it have not yet filled top_p; the likeliest always stays.
        ranked[ranked.cumsum(-1) - ranked >= sampling.top_p] = 0
        chances = torch.zeros_like(chances).scatter(-1, order, ranked)
    return int(torch.multinomial(chances, 1, generator=generator))


class Detokenizer:
    """Turns tokens into text as they come, holding back half characters; remembers a handful of tokens only."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.told = 0
        """How many of `ids` are already part of the text given out."""

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def add(self, token: int) -> str:
        """What became readable with this token."""
        self.ids.append(token)
        known, text = self._text(self.ids[: self.told]), self._text(self.ids)
        if text.endswith("\ufffd") and len(self.ids) - self.told < 8:
            return ""
        # The last tokens stay as context: some tokenizers write a space only between two of them.
        self.ids, self.told = self.ids[self.told :], len(self.ids) - self.told
        return text[len(known) :]

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._text(self.ids)[len(self._text(self.ids[: self.told])) :]
