"""Stopping in good order: SIGINT and SIGTERM are noted, and the command stops at a point that loses nothing.

    with stop_signals() as stop:
        for epoch in range(10):
            train(epoch)
            stop.check()  # Raises StopRequested if a signal has come.

A second signal ends the process at once, as it would without this module.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)


class StopRequested(BaseException):
    """A signal told the command to stop, and the command stopped in good order.

    It is not a subclass of `Exception`, so that a sweep, which goes on after the errors of a trial, stops.

    Attributes:
        exit_code: 128 and the number of the signal, as a shell reports it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


@dataclass
class Stop:
    """The signals that a command has received.

    Attributes:
        signals: Numbers of the signals, in the order of their arrival.
    """

    signals: list[int] = field(default_factory=list)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return bool(self.signals)

    def check(self) -> None:
        """Stop the command if a signal has come.

        Raises:
            StopRequested: A signal has come.
        """
        if self.signals:
            raise StopRequested(self.signals[0])


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Yield an object that notes SIGINT and SIGTERM, instead of ending the process at the first of them.

    After the first signal the usual handlers are back, so the second one ends the process, for a user who
    cannot wait. Outside of the main thread no signal is noted, because Python allows handlers only there:
    https://docs.python.org/3/library/signal.html#signals-and-threads.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def remember(number: int, frame: object) -> None:
        stop.signals.append(number)
        log.warning("%s: stopping in good order; once more to stop at once", signal.Signals(number).name)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, remember)
    try:
        yield stop
    finally:
        restore()
