"""Fresh processes, forked from a server that has imported TensorFlow but neither started it nor seen a model.

Such a process is there at once, while a new interpreter would spend seconds on imports. The server
starts in the background; it ends with the process that started it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.cli.stop import Stop

POLL_SECS = 0.05
OUTPUTS = (1, 2)

_context = multiprocessing.get_context("forkserver")

_spares: list[tuple[BaseProcess, Connection]] = []
"""Processes that were forked off this one when it was fresh, for the modules that it will run."""


def start_server() -> None:
    """Start the server, if this process will need one and it does not run yet; this returns at once."""
    if not _spares:
        _context.set_forkserver_preload(["pipeline.preloaded"])
        forkserver.ensure_running()


def start(function: Callable[..., object], *arguments: Any, spares: int = 0) -> BaseProcess:
    """Call a function in a fresh process; it ends when this process does, however that comes about.

    Args:
        function: A module's function.
        *arguments: What can be pickled.
        spares: How many modules it will run: for each, a process that is as fresh is kept waiting, which
            saves it a server of its own.
    """
    start_server()
    process = _context.Process(target=_call, args=(spares, function, *arguments))
    process.start()
    return process


def run_module(module: str, arguments: Sequence[str], stop: Stop) -> int:
    """Run a module as `python -m` does, in a fresh process; return its exit code.

    Args:
        module: What to run.
        arguments: Its command line.
        stop: The signals of this process; those that come while the module runs are passed on to it. A
            terminal sends Ctrl-C to every process itself; the second one changes nothing.

    Returns:
        The exit code, negative if a signal ended the process.
    """
    passed_on = len(stop.signals)
    process = _use_spare(module, arguments) if _spares else start(_run_module, module, list(arguments))
    while process.is_alive():
        process.join(POLL_SECS)
        for number in stop.signals[passed_on:]:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)
        passed_on = len(stop.signals)
    assert process.exitcode is not None
    return process.exitcode


def _call(spares: int, function: Callable[..., object], *arguments: Any) -> None:
    _spares.extend([_keep_spare() for _ in range(spares)])  # Before there are threads, which no fork has.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # TensorFlow leaves files there for Python's exit to remove, which such a process does not come to.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        function(*arguments)


def _end_with_parent() -> None:
    """Kill this process when its parent is gone: whoever waits for the result is no longer there."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)  # pragma: no cover - nobody is left to count it


def _keep_spare() -> tuple[BaseProcess, Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_wait_for_module, args=(theirs, ours), daemon=True
    )
    process.start()
    theirs.close()
    return process, ours


def _use_spare(module: str, arguments: Sequence[str]) -> BaseProcess:
    process, connection = _spares.pop()
    connection.send((module, list(arguments)))
    for output in OUTPUTS:
        reduction.send_handle(connection, output, process.pid)
    return process


def _wait_for_module(connection: Connection, other_end: Connection) -> None:
    other_end.close()  # A fork has it, too: this process is to notice when the other one closes it.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        module, arguments = connection.recv()
        for output in OUTPUTS:
            os.dup2(reduction.recv_handle(connection), output)
    except (EOFError, KeyboardInterrupt):
        return
    _run_module(module, arguments)


def _run_module(module: str, arguments: Sequence[str]) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
