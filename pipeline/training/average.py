"""Moving averages of the variables: evaluated and exported in place of those that are trained.

An optimizer of Keras with `use_ema=true` keeps them. At the end of `fit`, Keras leaves the averages in the
model. Here each epoch may be the one that is exported, so each ends with the averages; the next goes on with
the trained values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


class Average:
    """The averages of an optimizer, which take the place of the trained values at the end of an epoch.

        average = Average(optimizer, variables)
        average.enter()   # The model's variables are the averages.
        evaluate(...)
        average.leave()   # They are what the training goes on with.

    Without averages, nothing changes.

    Attributes:
        trained: The trained values by position, for a checkpoint; empty without averages.
    """

    def __init__(self, optimizer: Any, variables: Sequence[tf.Variable]) -> None:
        self._optimizer = optimizer
        # The optimizer that scales the loss for float16 wraps the one that has the averages.
        has_averages = getattr(optimizer, "inner_optimizer", optimizer).use_ema
        self._variables = list(variables) if has_averages else []
        self.trained = {
            str(position): tf.Variable(variable, trainable=False)
            for position, variable in enumerate(self._variables)
        }

    def keep(self) -> None:
        """Keep the present values of the variables as the trained ones."""
        for kept, variable in zip(self.trained.values(), self._variables, strict=True):
            kept.assign(variable)

    def enter(self) -> None:
        """Keep the trained values, and assign the averages to the variables."""
        self.keep()
        if self._variables:
            self._optimizer.finalize_variable_values(self._variables)

    def leave(self) -> None:
        """Assign the trained values to the variables."""
        for kept, variable in zip(self.trained.values(), self._variables, strict=True):
            variable.assign(kept)
