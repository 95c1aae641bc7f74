"""`edgemllm.batch.Answer`: a step of a Ray Data pipeline that watches videos and answers questions about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgemllm.api import request
from edgemllm.batch.answerer import Answerer
from edgemllm.batch.job import Job
from edgemllm.batch.table import columns
from edgemllm.batch.work import Work
from edgemllm.errors import UsageError

if TYPE_CHECKING:
    import pyarrow


class Answer:
    """Loads the model once, and adds the columns `answers`, `kv` (JSON), `seconds` and `error` to tables of videos or texts.

    `options` are keywords of `edgemllm.open`; `questions` are asked of rows that have no column `questions` of their own;
    `retries` as for `edgemllm batch`. The other keywords are those of `Video.open` and `Sampling`. Name a `kv_budget` in
    tokens where several workers are to give the same answers: `auto` is what each finds free.
    """

    def __init__(
        self,
        model: str = "demo",
        *,
        questions: Sequence[str] = (),
        fps: float = 1.0,
        max_frames: int | None = None,
        start: float = 0.0,
        end: float | None = None,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        retries: int = 0,
        **options: Any,
    ) -> None:
        self.questions = tuple(questions)
        clip = {"fps": fps, "max_frames": max_frames, "start": start, "end": end}
        sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        self._answerer = Answerer(*Job(request(model, **options), clip, sampling, retries=retries).planned(len(questions) or 1))

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Return the table with its answers; a video that fails is a row with its `error`.

        Columns that are read: `video` or `text` (paths), and `questions`, where there is one. Raises UsageError for a row
        without a source or a question, and for a batch that is no Arrow table.
        """
        import pyarrow

        if not isinstance(table, pyarrow.Table):
            raise UsageError(f"an Arrow table expected, not {type(table).__name__}", 'map_batches(..., batch_format="pyarrow")')
        lines = [self._answerer.line(self._work(row)) for row in table.to_pylist()]
        known = columns()
        kinds = {"answers": known["answers"], "kv": pyarrow.string(), "seconds": pyarrow.float64(), "error": known["error"]}
        for name, kind in kinds.items():
            values = [made[name] for made in lines if made is not None]
            if name == "kv":
                values = [value and json.dumps(value) for value in values]
            table = table.append_column(name, pyarrow.array(values, kind))
        return table

    def _work(self, row: Mapping[str, Any]) -> Work:
        own = row.get("questions")
        questions = self.questions if own is None else tuple(str(question) for question in own)
        video, text = row.get("video"), row.get("text")
        if not questions or bool(video) == bool(text):
            raise UsageError(f"a video or a text, and a question, expected: {row}", "the columns video and questions")
        return Work(str(video or text), questions, video, text)
