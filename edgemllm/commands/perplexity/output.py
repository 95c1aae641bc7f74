"""What `edgemllm perplexity` writes: the line and notes on stderr; table, JSON or events on stdout; a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgemllm.commands.events import Events
from edgemllm.errors import EdgeError

if TYPE_CHECKING:
    from edgemllm.commands.perplexity.run import Run
    from edgemllm.commands.perplexity.text import Text
    from edgemllm.launch import Launch
    from edgemllm.screen import Display


class Output:
    """The results so far, and how they are told. `code` is the exit code that they ask for."""

    def __init__(
        self, display: Display, launches: list[Launch], source: Text, target: int | None, json: bool, jsonl: bool
    ) -> None:
        self.display, self.launches, self.source, self.target = display, launches, source, target
        self.events = Events("perplexity", json, jsonl)
        self.runs: list[dict[str, Any]] = []
        self.code = 0
        self.failure: EdgeError | None = None
        self._told = (0, 0)
        """The newest curve point's tokens and the loops that were last spoken of."""

    def start(self) -> None:
        """Before anything runs."""
        self.event("start", **self._head())
        if len(self.launches) > 1:
            from edgemllm.device.memory import human_bytes

            sizes = [f"{each.policy_name} {each.budget or 'no limit of'} tokens a layer" for each in self.launches]
            shared = human_bytes(max(each.plan.kv_bytes for each in self.launches if each.policy.bounded or each.budget))
            self.say(f"at most {shared} of KV cache each: {', '.join(sizes)}")

    def step(self, run: Run, later: int) -> None:
        """Between two chunks; `later` runs follow this one."""
        from edgemllm.commands.perplexity.report import progress

        if run.sums.tokens:
            between = "\n" if self.display.mode == "live" else "  "
            self.display.update(lambda: between.join(progress(run, self.source.size, later)))
        point, loops = self._told
        if run.stream.loops > loops:
            self.say(f"{run.policy}: the text has ended after {run.sums.tokens} tokens and begins again ({run.stream.loops})")
        if self.events.jsonl and run.curve.points and run.curve.points[-1].tokens > point:
            for row in run.curve.as_json(run.curve.points[-1]):
                if row["tokens"] > point:
                    self.event("point", policy=run.policy, chunk=run.session.chunk, **row)
        self.told(run)

    def told(self, run: Run) -> None:
        """What the run has come to so far was told, here or before it was interrupted."""
        self._told = (run.curve.points[-1].tokens if run.curve.points else 0, run.stream.loops)

    def add(self, run: dict[str, Any], failure: EdgeError | None, reference: bool) -> None:
        """A run is over. What ends a `reference`, a policy without bound among others, is told but is no failure."""
        self.runs.append(run)
        self._told = (0, 0)
        self.event("run", **run)
        for note in run["notes"]:
            self.say(f"{run['policy']}: {note}")
        if run["stopped"]:
            self.say(f"{run['policy']}: stopped after {run['tokens']} tokens: {run['stopped']}")
        if run["exit_code"] and not reference:
            self.code, self.failure = self.code or run["exit_code"], self.failure or failure

    def close(self, code: int) -> None:
        """The table, the one object of `--json`, or the last event of `--jsonl`."""
        from edgemllm.commands.perplexity.report import table

        self.display.clear()
        self.code = code
        self.events.close(code, {**self._head(), "runs": self.runs})
        if self.events.text and self.runs:
            print(table(self.runs), flush=True)

    def plot(self, path: Path) -> None:
        """The picture of all runs."""
        from edgemllm.commands.perplexity.plot import plot

        if self.runs:
            head = self._head()
            plot(self.runs, f"{Path(head['model']).name}, chunks of {head['chunk']} tokens", path)

    def finish(self) -> None:
        """Leave with the exit code of what happened."""
        if self.failure is not None and self.failure.exit_code == self.code:
            raise self.failure
        if self.code:
            raise typer.Exit(self.code)

    def say(self, text: str) -> None:
        """A line on stderr."""
        self.display.say(text)

    def event(self, name: str, **fields: Any) -> None:
        """One line of `--jsonl`."""
        self.events.event(name, **fields)

    def _head(self) -> dict[str, Any]:
        first = self.launches[0].describe()
        del first["policy"]
        return {**first, "text": self.source.sources, "tokens_wanted": self.target, "chunk": self.launches[0].chunk}
