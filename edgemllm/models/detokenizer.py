"""Text from tokens, as they come."""

from __future__ import annotations

from typing import Any


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
