"""The command line: errors become one line and an exit code, signals end a run in order."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgemllm.cli import log, usage
from edgemllm.cli.config import defaults_from_files
from edgemllm.errors import EdgeError, UsageError, shortened

REFUSED = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM, errno.EROFS)
"""What the system says of a path that cannot be what an option asks for."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How a disk, a quota and a limit say that they are full."""


class Commands(TyperGroup):
    """Turns every failure into a line on stderr and its exit code."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """Read what stands before the command."""
        try:
            with usage.translated():
                return super().make_context(*arguments, **more)
        except EdgeError as error:
            return _expected(error, False)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; EdgeError, Ctrl-C and a closed pipe end it without a traceback."""
        debugging = _debugging(ctx.args)
        try:
            with usage.translated(" ".join(["edgemllm", *getattr(ctx, "_protected_args", [])[:1]])):
                found = super().invoke(ctx)
                if sys.stdout is not None:
                    sys.stdout.flush()  # here, where a full disk can still be reported
                return found
        except EdgeError as error:
            return _expected(error, debugging)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # the reader has gone (`| head`)
                log.discard(sys.stdout.fileno())
                raise typer.Exit(0) from None
            if error.errno in REFUSED and error.filename is not None:
                reason = f"{shortened(str(error.filename))}: {os.strerror(error.errno)}"
                return _expected(UsageError(reason, "another path"), debugging)
            if error.errno in NO_ROOM and error.filename is None:
                log.discard(sys.stdout.fileno())
                return _expected(EdgeError(f"standard output: {os.strerror(error.errno).lower()}", "make room"), debugging)
            return _unexpected(error, debugging)
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("click", "typer"):
                raise  # usage errors and exits of the command line itself
            if (code := _signalled(error)) is not None:
                raise typer.Exit(code) from None
            from edgemllm import policies  # not earlier: entry points take time to find, and only errors need it

            fault = policies.fault(error)
            return _unexpected(error, debugging) if fault is None else _expected(fault, debugging)


def _signalled(error: BaseException | None) -> int | None:
    """Return the exit code of a signal that a library made an error of its own of; None where there was none."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return 130
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            return error.code
        error = error.__cause__ or error.__context__
    return None


def _expected(error: EdgeError, debugging: bool) -> None:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  try: {error.hint}", file=sys.stderr)
    if debugging:
        traceback.print_exc()
    raise typer.Exit(error.exit_code) from None


def _unexpected(error: Exception, debugging: bool) -> None:
    if debugging:
        traceback.print_exc()
    else:
        print(f"error: unexpected {type(error).__name__}: {error}\n  try: the same with --verbose", file=sys.stderr)
    raise typer.Exit(1) from None


def _debugging(words: list[str]) -> bool:
    verbose = os.environ.get("EDGEMLLM_VERBOSE", "").lower() in ("1", "true", "t", "yes", "y", "on")  # as the option reads it
    return verbose or bool(os.environ.get("EDGEMLLM_DEBUG")) or "-v" in words or "--verbose" in words


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    from edgemllm.version import __version__

    parts = [f"edgemllm {__version__}", f"python {sys.version.split()[0]}"]
    for name in ("torch", "transformers", "bitsandbytes"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} not installed")
    print(", ".join(parts))
    raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Chat with hours of video and text in a KV cache of fixed size."""
    commands = ctx.command.commands  # type: ignore[attr-defined]
    found = defaults_from_files({name: {parameter.name for parameter in command.params} for name, command in commands.items()})
    for name, values in found.items():
        repeatable = {parameter.name for parameter in commands[name].params if getattr(parameter, "multiple", False)}
        values.update({key: [value] for key, value in values.items() if key in repeatable and isinstance(value, str)})
    ctx.default_map = found


def main() -> None:
    """Run the command line: the entry point `edgemllm`."""
    _standard_streams()
    sys.stderr = log.tolerant(sys.stderr)
    app(prog_name="edgemllm")


def _standard_streams() -> None:
    """Lead descriptors that cron or an init system closed to /dev/null; let nothing that is not UTF-8, in or out, end a run."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # replaced by an embedding program
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]


def _register() -> None:
    from edgemllm.cli import (
        archive,
        batch,
        bench,
        catalogue,
        chat,
        doctor,
        inspect,
        models,
        perplexity,
        plan,
        recall,
        serve,
        stream,
    )
    from edgemllm.cli.help import Command

    app.command(cls=Command)(chat.chat)
    app.command(cls=stream.StreamCommand)(stream.stream)
    app.command(cls=batch.BatchCommand)(batch.batch)
    app.command(cls=Command)(perplexity.perplexity)
    app.command(cls=Command)(recall.recall)
    app.command(cls=Command)(inspect.inspect)
    app.command(cls=Command)(bench.bench)
    app.command(cls=Command)(plan.plan)
    app.command(cls=Command)(serve.serve)
    app.command(cls=Command)(catalogue.policies)
    app.command(cls=Command)(models.models)
    app.command(cls=Command)(catalogue.profiles)
    app.command(cls=Command)(archive.archive)
    app.command(cls=Command)(doctor.doctor)


_register()

if __name__ == "__main__":
    main()
