"""Stopping in good order: SIGINT and SIGTERM are noted, and the command stops where nothing is lost.

with stop_signals() as stop:
    for epoch in range(10):
        train(epoch)
        stop.check()  # raises StopRequested once a signal has come
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

    It is no `Exception`: a sweep that goes on after a trial's errors stops at it.

    Attributes:
        exit_code: 128 and the number of the signal, as a shell reports it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


@dataclass
class Stop:
    """The signals that a command has received and has not acted upon yet.

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
            StopRequested: One has.
        """
        if self.signals:
            raise StopRequested(self.signals[0])


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM in the object given, instead of being ended by the first of them.

    The second signal takes effect as usual, for whoever cannot wait. Outside of the main thread, where Python
    delivers no signals, none is noted.
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
