"""What the words of a command line name: files, folders, patterns, and lists of works in JSON lines or Parquet."""

from __future__ import annotations

import glob
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemllm.batch.work import Work
from edgemllm.errors import MissingError, UsageError, opening, shortened
from edgemllm.media.images import is_image

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp", ".ogv")
"""What is taken of a folder. A folder without any, but with images, is one video."""
TEXTS = (".txt", ".md")
LISTS = (".jsonl", ".ndjson", ".parquet")


def find(words: Sequence[str], questions: Sequence[str]) -> list[Work]:
    """Return every work that `words` name; `questions` are asked where a list brings none of its own.

    Raises MissingError for patterns and folders without a video and for damaged lists, UsageError for two works of one id
    and for works without a question. A file that is not there is a work, which will fail.
    """
    works = [work for word in words for work in _named(word, tuple(questions))]
    seen: dict[str, Work] = {}
    for work in works:
        if not work.questions:
            raise UsageError(f"nothing is asked about {work.id}", '--ask "What is there?"')
        if work.id in seen:
            raise UsageError(f"two videos have the id {shortened(work.id)}", "name each once, or give them ids in a JSONL list")
        seen[work.id] = work
    return works


def _named(word: str, questions: tuple[str, ...]) -> Iterator[Work]:
    path = Path(word)
    with opening(word, MissingError):
        exists = path.exists()
    if path.suffix.lower() in LISTS:
        yield from _listed(path, questions)
    elif path.is_dir():
        yield from (_file(str(each), questions) for each in _videos_in(path))
    elif not exists and "://" not in word and glob.has_magic(word):
        found = sorted(glob.glob(word, recursive=True))
        if not found:
            raise MissingError(f"no file matches {word}", "a file, a folder, a pattern such as 'clips/*.mp4', or a JSONL list")
        yield from (_file(each, questions) for each in found)
    else:
        yield _file(word, questions)


def _file(name: str, questions: tuple[str, ...]) -> Work:
    place = name if "://" in name else str(Path(name).absolute())  # a worker may run in another folder
    is_text = Path(name).suffix.lower() in TEXTS
    return Work(name, questions, None if is_text else place, place if is_text else None)


def _videos_in(folder: Path) -> list[Path]:
    files = sorted(each for each in folder.rglob("*") if each.is_file() and not each.name.startswith("."))
    videos = [each for each in files if each.suffix.lower() in VIDEOS]
    if videos:
        return videos
    if any(is_image(each.name) for each in folder.iterdir()):
        return [folder]
    raise MissingError(f"folder {folder} has no videos", f"it is searched for {', '.join(VIDEOS)}, and for images")


def _listed(path: Path, questions: tuple[str, ...]) -> Iterator[Work]:
    with opening(path, MissingError):
        if not path.is_file():
            raise MissingError(f"no list {path}", 'lines such as {"id": "a", "video": "a.mp4", "questions": ["..."]}')
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _lines(path)
    for where, row in rows:
        yield _row(row, questions, path.absolute().parent, where)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise MissingError(f"{path} is not UTF-8: byte {error.start}", "iconv -f LATIN1 -t UTF-8") from error
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise MissingError(f"{path}, line {number}: {error}", "one JSON object per line") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    require_pyarrow(path)
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise MissingError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}", "write it again") from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def require_pyarrow(path: Path) -> None:
    """Raise UsageError where Parquet cannot be read or written."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(f"{path}: Parquet needs pyarrow, which is not installed", "pip install 'edgemllm[ray]', or JSONL")


def _row(row: Any, questions: tuple[str, ...], folder: Path, where: str) -> Work:
    """Return the work of one row; its paths are relative to the list's `folder`."""
    if not isinstance(row, Mapping):
        raise MissingError(f"{where}: a JSON object expected", '{"id": "a", "video": "a.mp4"}')
    named = {kind: row[kind] for kind in ("video", "text") if row.get(kind)}
    if len(named) != 1 or not all(isinstance(value, str) for value in named.values()):
        raise MissingError(f"{where}: either a video or a text expected, a path or an address", '{"id": "a", "video": "a.mp4"}')
    [(kind, source)] = named.items()
    place = source if "://" in source else str(folder / source)
    asked = row.get("questions")
    own = questions if asked is None else (asked,) if isinstance(asked, str) else tuple(asked)
    if not all(isinstance(each, str) and each.strip() for each in own):
        raise MissingError(f"{where}: questions are not a list of texts", '"questions": ["What is there?"]')
    name = source if row.get("id") is None else str(row["id"])
    return Work(name, own, place if kind == "video" else None, place if kind == "text" else None)
