"""What turns a function of a configuration into a command: Hydra, errors as sentences, exit codes.

    0  done, and every compared metric matches       2  bad input or configuration
    1  anything else                                 3  a metric does not match
    130, 143  stopped by Ctrl-C, by SIGTERM

A command checks its configuration before Hydra makes its output directory, so that a mistake answers
at once and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline.binding import ConfigError
from pipeline.composition import CONF, HYDRA_ERRORS, compose_and_check, hydra_app, in_one_line

DONE, FAILED, BAD_INPUT, MISMATCH = 0, 1, 2, 3

log = logging.getLogger(__name__)


class StopRequested(Exception):
    """The command was told to stop by a signal, and did so in good order."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


def run(
    task: Callable[[DictConfig], int],
    *,
    config_name: str,
    check: Callable[[DictConfig], object],
) -> NoReturn:
    """Run a task as a Hydra app and exit with its code.

    Args:
        task: Takes the composed configuration, returns the exit code.
        config_name: The primary configuration in `conf`.
        check: Called with the composed configuration, `hydra` section included, before anything is
            written. Raises `ConfigError`.
    """
    arguments = get_args_parser().parse_args()
    # For configuration files: the names of a section's entries, such as the chosen export formats.
    OmegaConf.register_new_resolver("names", "+".join, replace=True)
    codes: list[int] = []
    failures: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        try:
            codes.append(task(cfg))
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            failures.append(error)  # Hydra would put a line of its own before it.

    try:
        if _is_about_hydra(arguments):
            hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(task)()
        else:
            _run_job_or_sweep(arguments, job, config_name, check)
        if failures:
            raise failures[0]
    except ConfigError as error:
        _exit(BAD_INPUT, error.problems, error)
    except HYDRA_ERRORS as error:
        _exit(BAD_INPUT, [in_one_line(error)], error)
    except StopRequested as error:
        _exit(error.exit_code, [str(error)], error)
    except KeyboardInterrupt as error:
        _exit(128 + signal.SIGINT, ["stopped by Ctrl-C"], error)
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does; there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        _exit(FAILED, [f"{type(error).__name__}: {error}"], error)
    sys.exit(max(codes, default=DONE))


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the list given, instead of being stopped by the first of them.

    The second one takes effect as usual, for whoever cannot wait. Outside the main thread, where
    Python delivers no signals, the list stays empty.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def remember(number: int, frame: object) -> None:
        received.append(number)
        log.warning("%s: stopping after this chunk of steps", signal.Signals(number).name)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, remember)
    try:
        yield received
    finally:
        restore()


def in_fresh_process(module: str, **overrides: object) -> int:
    """Run a command of this project in a new Python process; return its exit code."""

    def quoted(value: object) -> str:
        return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"

    arguments = [f"{key}={quoted(value)}" for key, value in overrides.items()]
    return subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode


def _exit(code: int, sentences: Sequence[str], error: BaseException) -> NoReturn:
    """Say what went wrong on the standard error, and exit.

    The traceback goes to the run's log file, if there is one, and with HYDRA_FULL_ERROR=1 to the terminal.
    """
    if os.environ.get("HYDRA_FULL_ERROR"):
        raise error
    log.debug("The error's origin:", exc_info=error)
    if len(sentences) == 1:
        print(f"error: {sentences[0]}", file=sys.stderr)
    else:
        listed = (f"  {sentence}" for sentence in sentences)
        print("\n".join([f"{len(sentences)} errors:", *listed]), file=sys.stderr)
    sys.exit(code)


def _is_about_hydra(arguments: argparse.Namespace) -> bool:
    """Whether the command line asks for help, a configuration or completion, not for a job."""
    flags = ("help", "hydra_help", "cfg", "info", "shell_completion", "config_path")
    return any(getattr(arguments, flag) for flag in flags)


def _run_job_or_sweep(
    arguments: argparse.Namespace,
    job: Callable[[DictConfig], None],
    config_name: str,
    check: Callable[[DictConfig], object],
) -> None:
    name = arguments.config_name or config_name
    overrides = list(arguments.overrides)
    with hydra_app(arguments) as app:
        if arguments.multirun:
            mode = RunMode.MULTIRUN
        else:
            mode = compose_and_check(app, name, overrides, check).hydra.mode or RunMode.RUN
        execute = app.multirun if mode == RunMode.MULTIRUN else app.run
        execute(config_name=name, task_function=job, overrides=[*overrides, f"hydra.mode={mode.name}"])
