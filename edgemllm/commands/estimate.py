"""How long a question will be, about: only for planning, before there is a tokenizer."""

from __future__ import annotations

TURN_TOKENS = 16
"""What a chat template adds to a turn, about."""

TOKEN_BYTES = 4
"""Bytes of a text that a token stands for, about."""


def question_tokens(question: str) -> int:
    """Return the tokens of a question in its turn."""
    return len(question) // 3 + TURN_TOKENS
