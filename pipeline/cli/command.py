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
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline.cli import hydra_internals, processes
from pipeline.cli.composition import CONF, HYDRA_ERRORS, compose_and_check, help_text, hydra_app, in_one_line
from pipeline.cli.stop import Stop, StopRequested
from pipeline.errors import RoundtripError

DONE, FAILED, BAD_INPUT, MISMATCH = 0, 1, 2, 3
"""The exit codes of every command, besides those of signals."""

HYDRA_FLAGS = ("hydra_help", "cfg", "info", "shell_completion")
"""Flags that ask Hydra for something other than a job."""

NOTHING_LOST = (
    "What was written before is whole; when the cause is gone, the same command goes on from there."
)

log = logging.getLogger(__name__)


class Result(float):
    """What a job of a sweep came to: its objective, for any sweeper, and what else became of it.

    Attributes:
        code: The exit code that the job would have had as a command.
        verdict: That of its verification, if there was one.
        epochs: Epochs trained.
        pruned: Whether it was stopped because it did not look good.
        further: Further objectives, where there are several.
    """

    def __new__(
        cls,
        objective: float,
        code: int = DONE,
        verdict: str | None = None,
        epochs: int = 0,
        pruned: bool = False,
        further: Sequence[float] = (),
    ) -> Self:
        """Make a number that says what it came from."""
        result = super().__new__(cls, objective)
        result.code, result.verdict, result.epochs, result.pruned = code, verdict, epochs, pruned
        result.further = tuple(further)
        return result

    code: int
    verdict: str | None
    epochs: int
    pruned: bool
    further: Sequence[float]

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how to make it in another process."""
        return Result, (float(self), self.code, self.verdict, self.epochs, self.pruned, self.further)


@dataclass(frozen=True)
class Job:
    """A command as the jobs of a sweep call it.

    Attributes:
        task: Takes what `check` returned and, if somebody wants to know, `on_epoch`.
        check: Checks a composed configuration.
        on_epoch: Called with an epoch and its metrics after each; returns whether to stop.
    """

    task: Callable[..., Any]
    check: Callable[[DictConfig], Any]
    on_epoch: Callable[[int, Mapping[str, float]], bool] | None = None

    def __call__(self, cfg: DictConfig) -> Any:
        """Run the job."""
        checked = self.check(cfg)
        return self.task(checked) if self.on_epoch is None else self.task(checked, on_epoch=self.on_epoch)


def run(
    task: Callable[[Any], Any],
    *,
    config_name: str,
    check: Callable[[DictConfig], Any],
    complete: Callable[[Sequence[str]], list[str]] = list,
) -> NoReturn:
    """Run a task as a Hydra app and exit with its code.

    Args:
        task: Takes what `check` returned; returns the exit code, or a `Result` that has it.
        config_name: The primary configuration in `conf`.
        check: Called with the composed configuration: for a single job before anything is written, and
            with the `hydra` section. Raises `ConfigError`.
        complete: Returns the overrides of the command line with those that they imply.
    """
    arguments = hydra_internals.argument_parser().parse_args()
    register_resolvers()
    logging.raiseExceptions = False  # A log file that takes no more is no reason for a traceback.
    code = DONE
    try:
        if any(getattr(arguments, flag) for flag in HYDRA_FLAGS):
            hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(task)()
        else:
            arguments.overrides = complete(arguments.overrides)
            code = _run_job_or_sweep(arguments, task, config_name, check)
    except RoundtripError as error:
        _exit(BAD_INPUT, error.problems, error)
    except HYDRA_ERRORS as error:
        _exit(BAD_INPUT, [in_one_line(error)], error)
    except StopRequested as error:
        _exit(error.exit_code, [str(error)], error)
    except KeyboardInterrupt as error:
        _exit(128 + signal.SIGINT, ["stopped by SIGINT"], error)
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does; there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        said = f"{type(error).__name__}: {error}".rstrip(".")
        _exit(FAILED, [f"A file could not be read or written. {said}. {NOTHING_LOST}"], error)
    except Exception as error:
        _exit(FAILED, [f"{type(error).__name__}: {error}"], error)
    sys.exit(code)


def register_resolvers() -> None:
    """Make two functions known to configuration files.

    `names` are the entries that are true, such as the formats chosen; `resumed` is the directory of the run
    that is to go on, or else a new one.
    """
    OmegaConf.register_new_resolver("names", _names, replace=True)
    OmegaConf.register_new_resolver("resumed", _resumed, replace=True)


def _resumed(resume: str | None, new: str) -> str:
    return new if resume is None else str(Path(resume).expanduser().absolute())


def _names(entries: Mapping[str, bool]) -> str:
    chosen = [str(name) for name, wanted in entries.items() if wanted is True]
    return "+".join(chosen) if len(chosen) < 4 else f"{len(chosen)}-formats"


def _run_job_or_sweep(
    arguments: argparse.Namespace,
    task: Callable[[Any], Any],
    config_name: str,
    check: Callable[[DictConfig], Any],
) -> int:
    """Run what the command line asks for; return the exit code, of a sweep the largest of its jobs'."""
    name = arguments.config_name or config_name
    overrides = list(arguments.overrides)
    failures: list[Exception] = []
    with hydra_app(arguments) as app:
        if arguments.help:
            print(help_text(app, name, overrides))
            return DONE
        if not arguments.multirun:
            composed, checked = compose_and_check(app, name, overrides, check)
            if composed.hydra.mode != RunMode.MULTIRUN:

                def job(cfg: DictConfig) -> Any:
                    try:
                        return task(checked)
                    except Exception as error:
                        failures.append(error)  # Hydra would put a line of its own before it.
                        return FAILED

                overrides.append("hydra.mode=RUN")
                done = app.run(config_name=name, task_function=job, overrides=overrides)
                if failures:
                    raise failures[0]
                return _code(done.return_value)
        overrides.append("hydra.mode=MULTIRUN")
        batches = app.multirun(config_name=name, task_function=Job(task, check), overrides=overrides)
    return max((_code(done.return_value) for batch in batches or () for done in batch), default=DONE)


def _code(returned: Any) -> int:
    return returned.code if isinstance(returned, Result) else int(returned)


def in_fresh_process(module: str, overrides: Sequence[str], stop: Stop) -> int:
    """Run a command in a process that shares nothing with this one.

    Args:
        module: The command, as `python -m` takes it.
        overrides: Its overrides.
        stop: The signals of this command; they are passed on.

    Returns:
        Its exit code, or `FAILED` if it was killed.
    """
    code = processes.run_module(module, overrides, stop)
    return code if code in (DONE, BAD_INPUT, MISMATCH) else FAILED


def _exit(code: int, sentences: Sequence[str], error: BaseException) -> NoReturn:
    """Say what went wrong on the standard error, and exit.

    The traceback goes to the run's log file, if there is one, and with HYDRA_FULL_ERROR=1 to the terminal.
    """
    if os.environ.get("HYDRA_FULL_ERROR"):
        traceback.print_exception(error)
    lines = [f"error: {sentences[0]}"]
    if len(sentences) > 1:
        lines = [f"{len(sentences)} errors:", *(f"  {sentence}" for sentence in sentences)]
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            trace = (type(error), error, error.__traceback__)
            handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "stopped", (), trace))
            if code == FAILED:
                lines.append(f"traceback: {handler.baseFilename}")
    print("\n".join(lines), file=sys.stderr)
    sys.exit(code)
