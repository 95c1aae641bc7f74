"""`edgemllm perplexity`: how well a model predicts an endless text from a cache of fixed size."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from edgemllm.cli import options
from edgemllm.commands.events import headed, write
from edgemllm.commands.interrupts import Interrupts
from edgemllm.commands.perplexity.output import Output
from edgemllm.errors import EdgeError, MissingError, UsageError
from edgemllm.units import parse_count

if TYPE_CHECKING:
    from edgemllm.commands.perplexity.checkpoint import Checkpoint
    from edgemllm.commands.perplexity.run import Run
    from edgemllm.commands.perplexity.text import Text
    from edgemllm.launch import Launch
    from edgemllm.models.families.base import ModelFamily
    from edgemllm.session import Session


def perplexity(
    text: options.Texts = [],  # noqa: B006
    tokens: options.Tokens = None,
    loop: options.Loop = False,
    model: options.Model = "demo",
    profile: options.Profile = "auto",
    policy: options.Policies = None,
    set: options.Settings = [],  # noqa: B006
    kv_budget: options.KvBudget = "auto",
    quant: options.Quant = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    chunk: options.ChunkSize = None,
    compare_full: options.CompareFull = False,
    checkpoint: options.CheckpointFile = None,
    checkpoint_every: options.CheckpointEvery = "100k",
    resume: options.Resume = False,
    json: options.Json = False,
    jsonl: options.Jsonl = False,
    plot: options.Plot = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.Progress = "auto",
    offline: options.Offline = False,
    trust_remote_code: options.Trust = False,
    dry_run: options.DryRun = False,
) -> None:
    """Measure the perplexity of one stream of text of any length.

    Chunks of --chunk tokens go in, the policy evicts between them; --chunk 1 is what papers mean. Without --text the text
    comes from standard input.
    """
    from edgemllm.commands import figures
    from edgemllm.screen import Display

    display = Display("none" if quiet else progress)
    target = parse_count(tokens, "--tokens") if tokens is not None else None
    every = parse_count(checkpoint_every, "--checkpoint-every")
    if loop and target is None:
        raise UsageError("--loop without --tokens would never end", "--tokens 4M")
    if resume and checkpoint is None:
        raise UsageError("--resume needs the file to go on from", "--checkpoint FILE --resume")
    if not text and sys.stdin.isatty():
        raise UsageError("no text was named", "--text book.txt, a folder, or - for standard input")
    if plot is not None:
        figures.check(plot, "--plot")
    names = options.listed(policy, "--policy") if policy is not None else []
    from edgemllm.commands.lineup import line_up
    from edgemllm.commands.perplexity.checkpoint import Checkpoint
    from edgemllm.commands.perplexity.text import Text
    from edgemllm.device import profiles
    from edgemllm.launch import Request

    saved = Checkpoint(checkpoint, every, resume) if checkpoint is not None else None
    names = names or [profiles.load(profile).cache.policy]
    source = Text(text or ["-"], offline, again=loop or compare_full or len(names) > 1)
    if target is not None and source.size is not None and source.size + 1 < target and not loop:
        raise MissingError(
            f"--tokens {target}: the text has {source.size} bytes, so it cannot have so many tokens", "--loop, or more --text"
        )
    request = Request(model, profile, None, set, kv_budget, quant, dtype, device, chunk, offline, trust_remote_code)
    before = saved.budgets if saved is not None and kv_budget.strip().lower() in ("", "auto") else None
    launches = line_up(request, names, target, before)
    if dry_run:
        _plan(launches, json or jsonl)
    lacking = next((launch.plan for launch in launches if not launch.plan.fits), None)
    if lacking is not None:
        raise lacking.error()
    output = Output(display, launches, source, target, json, jsonl)
    Perplexity(output, launches, source, target, loop, compare_full, saved).go()
    if plot is not None:
        output.plot(plot)
    output.finish()


def _plan(launches: list[Launch], json: bool) -> None:
    """`--dry-run`: a plan for every policy."""
    from edgemllm.cli.plan import arithmetic

    if json:
        plans = [{"policy": launch.policy_name, **headed("plan", launch.plan.as_json())} for launch in launches]
        write(headed("perplexity", {"plans": plans}))
    else:
        print("\n".join(f"{launch.policy_name}, chunk {launch.chunk}\n{arithmetic(launch.plan)}" for launch in launches))
    raise typer.Exit(0 if all(launch.plan.fits for launch in launches) else 4)


@dataclass
class Perplexity:
    """All runs of the command, one policy after the other over the same text."""

    output: Output
    launches: list[Launch]
    source: Text
    target: int | None
    loop: bool
    compare_full: bool
    checkpoint: Checkpoint | None
    family: ModelFamily | None = None

    def go(self) -> None:
        """Run them; whatever ends it, what was computed is written."""
        output = self.output
        output.start()
        state = self._resume()
        with Interrupts() as self.interrupts:
            try:
                for launch in self.launches[len(output.runs) :]:
                    self._run(launch, state)
                    state = None
                    if self.interrupts.asked():
                        break
            except Exception as error:
                output.close(error.exit_code if isinstance(error, EdgeError) else 1)
                raise
        output.close(self.interrupts.code or output.code)

    def _run(self, launch: Launch, state: dict[str, Any] | None) -> None:
        from edgemllm import session_file
        from edgemllm.commands.lineup import limit
        from edgemllm.commands.perplexity.run import Run
        from edgemllm.commands.perplexity.tokens import TokenStream

        session = launch.open(family=self.family)
        self.interrupts.session, self.family = session, session.family
        tokenizer = session.family.tokenizer
        agreement = None
        if self.compare_full and launch.policy.bounded and state is None:
            agreement = self._compare(launch, session)
            session.clear()
        run = Run(launch.policy_name, session, TokenStream(self.source, tokenizer, self.loop), self.target, limit(launch))
        run.agreement = agreement
        if state is not None and self.checkpoint is not None:
            session_file.load(session, self.checkpoint.path)
            run.restore(state)
            self.output.say(f"{run.policy}: going on from {run.sums.tokens} tokens")
            self.output.told(run)
            self.checkpoint.written = run.sums.tokens
        run.go(self._pause)
        if run.failure is not None and not run.sums.fed:
            raise run.failure
        reference = not launch.policy.bounded and len(self.launches) > 1
        final = run.ended or (reference and run.failure is not None)
        done = run.as_json(launch.device)
        saved = False
        if run.sums.fed and (final or not run.broken):
            saved = self._write(run, [*self.output.runs, done] if final else self.output.runs, None if final else run.state())
        self.output.add(done, run.failure, reference)
        if saved and not final:
            self.output.say(f"the same command with --resume goes on from {run.sums.tokens} tokens")

    def _pause(self, run: Run) -> bool:
        """Between two chunks: show, write, and stop where a signal came."""
        later = len(self.launches) - len(self.output.runs) - 1
        self.output.step(run, later)
        if self.checkpoint is not None and self.checkpoint.due(run):
            self._write(run, self.output.runs, run.state())
        return self.interrupts.asked()

    def _resume(self) -> dict[str, Any] | None:
        if self.checkpoint is None:
            return None
        first = self.launches[0]
        self.checkpoint.identity = {
            "model": first.request.model, "quant": first.quant, "dtype": first.dtype, "device": first.device,
            "tokens": self.target, "compare_full": self.compare_full,
            "policies": [launch.policy_name for launch in self.launches],
            "settings": [repr(launch.policy) for launch in self.launches],
            "kv_budget": [launch.budget for launch in self.launches], "chunk": first.chunk,
        }  # fmt: skip
        finished, state = self.checkpoint.read()
        for run, launch in zip(finished, self.launches, strict=False):
            self.output.add(run, None, not launch.policy.bounded and len(self.launches) > 1)
        if self.checkpoint.resume and not finished and state is None:
            self.output.say(f"no checkpoint {self.checkpoint.path} yet: from the beginning")
        return state

    def _write(self, run: Run, finished: list[dict[str, Any]], state: dict[str, Any] | None) -> bool:
        if self.checkpoint is None:
            return False
        problem = self.checkpoint.write(run, finished, state)
        if problem:
            self.output.say(f"warning: {problem}; the run goes on, the next checkpoint is tried later")
        self.output.event("checkpoint", policy=run.policy, tokens=run.sums.tokens, problem=problem)
        return not problem

    def _compare(self, launch: Launch, session: Session) -> dict[str, Any]:
        """The agreement with the full cache over the longest span that the model was trained for and memory holds."""
        import dataclasses

        from edgemllm.commands.perplexity.agreement import measure
        from edgemllm.commands.perplexity.tokens import TokenStream
        from edgemllm.launch import out_of_memory, prepare

        whole = prepare(dataclasses.replace(launch.request, policy="full", settings=(), kv_budget="auto"))
        whole.chunk = launch.chunk
        free = whole.plan.kv_budget_tokens - -(-launch.plan.kv_bytes // whole.plan.kv_bytes_per_token)
        trained = getattr(session.family.config, "max_position_embeddings", None)
        bounds = {"the text asked for": self.target and self.target + 1, "memory": free, "the model's trained length": trained}
        why, span = min(((name, bound) for name, bound in bounds.items() if bound), key=lambda pair: pair[1])
        stream = TokenStream(self.source, session.family.tokenizer, self.loop)
        full = whole.open(family=session.family)
        with out_of_memory():
            found = measure(full, session, stream, span, self.interrupts.asked)
        if not found["after_eviction"]:
            self.output.say(f"{launch.policy_name}: nothing was evicted in the {span} tokens compared with full ({why})")
        return {**found, "bounded_by": why}
