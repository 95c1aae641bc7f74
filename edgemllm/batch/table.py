"""The lines of a batch as a Parquet file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemllm.errors import EdgeError


def columns() -> dict[str, Any]:
    """Return the types of columns that may be empty in some rows: the same in every file and block."""
    import pyarrow

    text = pyarrow.string()
    pair = pyarrow.struct([("question", text), ("answer", text)])
    return {"answers": pyarrow.list_(pair), "warning": text, "error": text}


def write_table(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a row per line. Raises EdgeError where it cannot be written; an earlier file stays."""
    import pyarrow
    from pyarrow import parquet

    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        table = pyarrow.Table.from_pylist(list(lines))
        for name, kind in columns().items():
            values = pyarrow.array([line[name] for line in lines], kind)
            table = table.set_column(table.column_names.index(name), name, values)
        parquet.write_table(table, beside)
        os.replace(beside, path)
    except (OSError, pyarrow.ArrowException) as error:
        raise EdgeError(
            f"cannot write {path}: {str(error).splitlines()[0]}", f"the lines are in {path.name}.jsonl; make room and --resume"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
