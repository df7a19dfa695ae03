"""Fresh processes, forked from a server that has imported TensorFlow, but has not started it.

A fresh process has no model and no devices of TensorFlow, so it is as good as a new interpreter for a proof.
But it is there at once, while an interpreter would spend seconds on imports. The server starts in the
background, and ends with the process that started it.
See https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods.
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
"""Time between two looks at the signals that are to be passed on to a process."""

OUTPUTS = (1, 2)
"""File descriptors of the standard output and the standard error."""

_context = multiprocessing.get_context("forkserver")

_spares: list[tuple[BaseProcess, Connection]] = []
"""Processes that were forked when this process was fresh itself, one for each module that it will run."""


def start_server() -> None:
    """Start the server, without waiting for it, unless it runs or this process has spare processes."""
    if not _spares:
        _context.set_forkserver_preload(["pipeline.preloaded"])
        forkserver.ensure_running()


def start(function: Callable[..., object], *arguments: Any, spares: int = 0) -> BaseProcess:
    """Call a function in a fresh process, which is killed when this process ends, even by a crash.

    Args:
        function: A function at the top level of a module, because it is pickled.
        *arguments: Arguments that can be pickled.
        spares: The number of modules that the new process will run with `run_module`. For each of them a
            spare process is forked now, so that the new process needs no server of its own.
    """
    start_server()
    process = _context.Process(target=_call, args=(spares, function, *arguments))
    process.start()
    return process


def run_module(module: str, arguments: Sequence[str], stop: Stop) -> int:
    """Run a module as `python -m` does, in a fresh process.

    Args:
        module: The name of the module.
        arguments: The arguments of its command line.
        stop: The signals of this process. Those that come while the module runs are passed on to it.

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
    # Before any thread starts: a fork has none of the threads, but it has the locks that they held.
    _spares.extend([_keep_spare() for _ in range(spares)])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # TensorFlow makes temporary files and removes them at the exit of the interpreter. A process of
    # `multiprocessing` ends without it, so it gets a folder for them that is removed here.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        function(*arguments)


def _end_with_parent() -> None:
    """Wait for the end of the parent process, then kill this one: nobody waits for its result any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)  # pragma: no cover - a killed process writes no coverage


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
    # The fork has copied the parent's end of the pipe. While a copy is open, `recv` would never see that the
    # parent has closed its own.
    other_end.close()
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
