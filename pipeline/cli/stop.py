"""Stopping in good order at SIGINT and SIGTERM."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


class StopRequested(BaseException):
    """The command was told to stop by a signal, and did so in good order; a sweep stops with it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


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
        log.warning("%s: stopping in good order; once more to stop at once", signal.Signals(number).name)
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


def stop_if(received: Sequence[int]) -> None:
    """Raise what stops the command if a signal was received; see `stop_signals`.

    Raises:
        StopRequested: One was.
    """
    if received:
        raise StopRequested(received[0])
