"""Counts, texts and their tokens: the same tokens as of the whole text, in constant memory."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from edgemllm.errors import MissingError, UsageError
from edgemllm.media.text import BLOCK_BYTES, Text
from edgemllm.models import tokens
from edgemllm.models.loading import DEMO
from edgemllm.models.tokens import TokenStream
from edgemllm.units import parse_count, short_count

LICENSE = Path(__file__).parents[1] / "LICENSE"
FOREIGN = "Ein schöner Tag, «naïve café» … 漢字とかな交じり文。" * 40 + "3.14159265358979 " * 99 + "\n\n\n   x\ty\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO)


@pytest.mark.parametrize(
    ("text", "count"),
    [("4M", 4_000_000), ("250k", 250_000), ("1e6", 1_000_000), ("1.5m", 1_500_000), ("4_000", 4000), ("7", 7), ("1G", 10**9)],
)
def test_counts_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "-4k", "1.5", "many", "4MM", "nan", "inf", "k", "1e-3"])
def test_what_is_no_count_is_refused_with_the_option_and_examples(text: str) -> None:
    with pytest.raises(UsageError, match="--tokens") as raised:
        parse_count(text, "--tokens")
    assert "4M" in raised.value.hint


def test_short_counts() -> None:
    assert [short_count(count) for count in (7, 999, 1000, 1_250_000, 4_000_000)] == ["7", "999", "1k", "1.25M", "4M"]


def test_pieces_give_the_tokens_and_bytes_of_the_whole_text(tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tokens, "PIECE", 300)
    (tmp_path / "a.txt").write_text(LICENSE.read_text()[:9000])
    stream = TokenStream(Text([str(tmp_path / "a.txt")]), tokenizer)
    taken = [stream.take(70) for _ in range(200)]
    ids = [token for part, _ in taken for token in part]
    assert ids == tokenizer(LICENSE.read_text()[:9000])["input_ids"]
    assert sum(size for _, sizes in taken for size in sizes) == 9000


def test_text_without_words_loses_nothing(tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Cut where no cut is safe, a token may differ, but every byte is there."""
    monkeypatch.setattr(tokens, "PIECE", 300)
    (tmp_path / "a.txt").write_text(FOREIGN)
    ids, sizes = TokenStream(Text([str(tmp_path / "a.txt")]), tokenizer).take(10**6)
    assert sum(sizes) == len(FOREIGN.encode())
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == tokenizer.decode(
        tokenizer(FOREIGN)["input_ids"], clean_up_tokenization_spaces=False
    )


def test_files_folders_and_standard_input_follow_each_other(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "books" / "more").mkdir(parents=True)
    (tmp_path / "books" / "b.txt").write_text("two ")
    (tmp_path / "books" / "more" / "c.md").write_text("three ")
    (tmp_path / "books" / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "a").write_text("\ufeffone ")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO("vier ä".encode())))
    text = Text([str(tmp_path / "a"), str(tmp_path / "books"), "-"], again=True)
    assert "".join(text.blocks()) == "one two three vier ä"
    assert "".join(text.blocks()) == "one two three vier ä", "standard input is kept for a second reading"
    assert text.size is None


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(50 * BLOCK_BYTES)
    assert max(len(block) for block in Text([str(tmp_path / "a.txt")]).blocks()) <= BLOCK_BYTES


def test_the_text_begins_again_only_where_that_was_asked_for(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One two three four five.")
    once = TokenStream(Text([str(tmp_path / "a.txt")]), tokenizer)
    ids, _ = once.take(100)
    assert once.take(100) == ([], [])
    looped = TokenStream(Text([str(tmp_path / "a.txt")]), tokenizer, loop=True)
    assert looped.take(3 * len(ids))[0] == 3 * ids
    assert looped.loops == 2


def test_what_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"a" * (BLOCK_BYTES - 1) + "ä".encode() + b"caf\xe9 au lait")
    with pytest.raises(MissingError, match=f"latin.txt is not UTF-8 text: byte {BLOCK_BYTES + 4}"):
        "".join(Text([str(tmp_path / "latin.txt")]).blocks())


def test_data_sets_by_name(monkeypatch: Any) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((*arguments, options))
        if not options["streaming"]:
            raise ConnectionError("Couldn't reach 'Salesforce/wikitext' on the Hub\nand more lines")
        return [{"text": " = A heading = \n"}, {"text": ""}, {"text": "Words."}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "")
    assert "".join(Text(["wikitext103/validation"]).blocks()) == " = A heading = \n\nWords.\n"
    assert asked[0] == ("Salesforce/wikitext", "wikitext-103-raw-v1", {"split": "validation", "streaming": True})
    with pytest.raises(MissingError, match="pg19 is neither fetched before nor to be reached: Couldn't reach") as raised:
        Text(["pg19"], offline=True)
    assert "\n" not in raised.value.message
    assert "online" in raised.value.hint


def test_data_sets_need_their_package(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="needs the package `datasets`") as raised:
        Text(["wikitext103"])
    assert "edgemllm[datasets]" in raised.value.hint
    with pytest.raises(MissingError, match="did you mean 'wikitext103'"):
        Text(["wikitext"])
