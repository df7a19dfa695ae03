"""Running a function of a configuration as a command: Hydra, error messages, exit codes.

    0  done, and every compared metric matches       2  bad input or configuration
    1  anything else                                 3  a metric does not match
    130, 143  stopped by Ctrl-C, by SIGTERM

A command checks its configuration before Hydra makes the output directory. So a mistake is reported at once
and leaves no directory behind.
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
"""The exit codes of every command; after a signal, the code is 128 and the signal's number."""

HYDRA_FLAGS = ("hydra_help", "cfg", "info", "shell_completion")
"""Hydra's flags that do something else than to run a job."""

NOTHING_LOST = (
    "What was written before is whole; when the cause is gone, the same command goes on from there."
)

log = logging.getLogger(__name__)


class Result(float):
    """The result of a job of a sweep: a number, the objective, with attributes for our own sweeper.

    It is a number because other sweepers of Hydra expect one.

    Attributes:
        code: The exit code that the job would have had as a command.
        verdict: The verdict of the verification, if there was one.
        epochs: Number of epochs trained.
        pruned: Whether the sweep stopped the job early, because its metrics were worse than others'.
        further: The other objectives, if there are several.
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
        """Make a result; the arguments are the objective and the attributes."""
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
        """Return how to pickle it: as a plain `float` it would lose its attributes."""
        return Result, (float(self), self.code, self.verdict, self.epochs, self.pruned, self.further)


@dataclass(frozen=True)
class Job:
    """A command in the form in which the jobs of a sweep call it.

    It is a class, not a function inside of another one, because it is pickled for other processes.

    Attributes:
        task: Takes the result of `check`, and `on_epoch` if that is given.
        check: Checks a composed configuration; returns what `task` takes.
        on_epoch: Called after each epoch with its number and its metrics; returns whether to stop.
    """

    task: Callable[..., Any]
    check: Callable[[DictConfig], Any]
    on_epoch: Callable[[int, Mapping[str, float]], bool] | None = None

    def __call__(self, cfg: DictConfig) -> Any:
        """Check the configuration of a job, and run it."""
        checked = self.check(cfg)
        return self.task(checked) if self.on_epoch is None else self.task(checked, on_epoch=self.on_epoch)


def run(
    task: Callable[[Any], Any],
    *,
    config_name: str,
    check: Callable[[DictConfig], Any],
    complete: Callable[[Sequence[str], str | None], list[str]] = lambda overrides, _: list(overrides),
) -> NoReturn:
    """Run a task as a Hydra app, and exit with its code.

    Args:
        task: Takes the result of `check`; returns the exit code, or a `Result` that has it.
        config_name: The primary configuration in `conf`.
        check: Called with the composed configuration; returns what `task` takes. May raise `RoundtripError`.
            For a single job it is called before anything is written, and the configuration has the section
            `hydra`.
        complete: Takes the overrides of the command line and its `--config-dir`; returns the overrides with
            further ones that they imply.
    """
    arguments = hydra_internals.argument_parser().parse_args()
    register_resolvers()
    # When the disk is full, `logging` would print a traceback for each line of the log.
    logging.raiseExceptions = False
    code = DONE
    try:
        if any(getattr(arguments, flag) for flag in HYDRA_FLAGS):
            hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(task)()
        else:
            arguments.overrides = complete(arguments.overrides, arguments.config_dir)
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
        # The reader of the output has ended, as `head` does. Python flushes the standard output once more at
        # its exit, which must not fail: https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        said = f"{type(error).__name__}: {error}".rstrip(".")
        _exit(FAILED, [f"A file could not be read or written. {said}. {NOTHING_LOST}"], error)
    except Exception as error:
        _exit(FAILED, [f"{type(error).__name__}: {error}"], error)
    sys.exit(code)


def register_resolvers() -> None:
    """Register two functions for configuration files (resolvers of OmegaConf).

    `names` joins the keys whose value is true, such as the chosen formats. `resumed` returns the directory of
    the run that is to go on, or, without one, the directory for a new run.
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
    """Run the job or the sweep of the command line.

    Returns:
        The exit code; of a sweep, the largest exit code of its jobs.
    """
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
                        failures.append(error)  # Hydra would print a line of its own before the message.
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
    """Run a command in a process that shares no memory with this one, and has not imported any model.

    Args:
        module: The name of the command's module, as for `python -m`.
        overrides: The overrides of the command.
        stop: The signals of this process, which are passed on to the other.

    Returns:
        The exit code of the command, or `FAILED` if a signal ended it.
    """
    code = processes.run_module(module, overrides, stop)
    return code if code in (DONE, BAD_INPUT, MISMATCH) else FAILED


def _exit(code: int, sentences: Sequence[str], error: BaseException) -> NoReturn:
    """Print sentences on the standard error, and exit.

    The traceback goes to the run's log file, if there is one. With `HYDRA_FULL_ERROR=1` it is printed, too.
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
