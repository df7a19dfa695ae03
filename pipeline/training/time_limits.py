"""The time that a training may take, and that may pass between two checkpoints of an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class TimeLimits:
    """Says when a training is over, and when its unfinished epoch is to be written.

        >>> seconds = iter([0.0, 5.0, 9.0, 9.0, 10.0])
        >>> limits = TimeLimits(max_seconds=10, checkpoint_secs=4, now=lambda: next(seconds))
        >>> limits.start()
        >>> limits.are_over(), limits.is_checkpoint_due(), limits.is_checkpoint_due(), limits.are_over()
        (False, True, False, True)

    Neither changes what is computed, so a run that goes on needs to know nothing of them.

    Attributes:
        max_seconds: Seconds after which the training is over; `None` is never.
        checkpoint_secs: Seconds between two checkpoints of an epoch; `None` is never.
        now: Returns the present time in seconds.
        over: Whether `are_over` has said that the training is over, which then stopped.
    """

    max_seconds: float | None
    checkpoint_secs: float | None
    now: Callable[[], float] = time.monotonic
    over: bool = field(default=False, init=False)
    _started: float = field(default=0.0, init=False)
    _written: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Let the time begin."""
        self._started = self._written = self.now()

    def are_over(self) -> bool:
        """Return whether the training has had its time."""
        self.over = self.max_seconds is not None and self.now() - self._started >= self.max_seconds
        return self.over

    def is_checkpoint_due(self) -> bool:
        """Return whether the unfinished epoch is to be written now; if so, the time begins anew."""
        if self.checkpoint_secs is None or (now := self.now()) - self._written < self.checkpoint_secs:
            return False
        self._written = now
        return True
