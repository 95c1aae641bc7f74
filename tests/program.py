"""`edgemllm` on the PATH of shell scripts: forked, as in `command`, from a process that has imported what takes seconds."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from command import as_an_interpreter, fork_server

MOST = 1 << 17
"""Bytes of arguments and environment."""

CLIENT = """#!/bin/sh
"exec" "{python}" "-IS" "$0" "$@"
import json, os, socket, sys

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [request], [0, 1, 2])
    sys.exit(int(server.recv(16)))
"""


@contextlib.contextmanager
def program(folder: Path) -> Iterator[None]:
    """A program `edgemllm` in `folder`, until the block ends."""
    address = folder / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(address))
        listening.listen()
        serving = fork_server.Process(target=_serve, args=(listening,), daemon=True)
        serving.start()
    file = folder / "edgemllm"
    file.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    file.chmod(0o755)
    try:
        yield
    finally:
        serving.kill()
        serving.join()


def _serve(listening: socket.socket) -> NoReturn:
    while True:
        connection, _ = listening.accept()
        if not os.fork():
            _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> NoReturn:
    """Run one command with the caller's files, and send its exit code."""
    request, files, _, _ = socket.recv_fds(connection, MOST, 3)
    arguments, cwd, environment = json.loads(request)
    pid = os.fork()
    if not pid:
        for number, file in enumerate(files):
            os.dup2(file, number)
    for file in files:
        os.close(file)
    if not pid:
        connection.close()
        _run(arguments, cwd, environment)
    _, status = os.waitpid(pid, 0)
    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _run(arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    # The interpreter's own were opened on whatever the server had.
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    sys.argv = ["edgemllm", *arguments]
    from edgemllm.cli.main import main

    as_an_interpreter(main)
