"""Optimizers and their learning-rate schedules: configurations of those of Keras.

Like models and data sources, an optimizer is constructed from the configuration before TensorFlow is
imported. Its method `build` imports Keras and makes the Keras optimizer. See https://keras.io/api/optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule of the learning rate: a linear warm-up from 0, then constant, or falling along a cosine.

    Attributes:
        learning_rate: The rate after the warm-up.
        schedule: `constant`, or `cosine` (Loshchilov & Hutter, 2017, arXiv:1608.03983) down to
            `final_fraction` of the rate at the last step.
        warmup_steps: Steps of the warm-up.
        final_fraction: The rate at the end of the cosine, as a fraction of `learning_rate`.
    """

    learning_rate: Annotated[float, "> 0"]
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, ">= 0"] = 0
    final_fraction: Annotated[float, ">= 0", "<= 1"] = 0.0

    def build_schedule(self, num_steps: int) -> Any:
        """Return the `learning_rate` for a Keras optimizer: a number, or a Keras schedule.

        Args:
            num_steps: Steps of the whole training, those of the warm-up included.
        """
        import keras

        # Keras computes the cosine in the dtype of the rate. In that of an integer, pi would be 3.
        rate = float(self.learning_rate)
        if self.schedule == "constant" and not self.warmup_steps:
            return rate
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if self.warmup_steps else rate,
            # A cosine that ends where it began is constant, however long it takes.
            decay_steps=1 if self.schedule == "constant" else max(1, num_steps - self.warmup_steps),
            alpha=1.0 if self.schedule == "constant" else self.final_fraction,
            warmup_target=rate if self.warmup_steps else None,
            warmup_steps=self.warmup_steps,
        )


@dataclass(frozen=True, kw_only=True)
class Adam(Schedule):
    """Adam (Kingma & Ba, 2015, arXiv:1412.6980)."""

    beta_1: Annotated[float, ">= 0", "< 1"] = 0.9
    beta_2: Annotated[float, ">= 0", "< 1"] = 0.999
    epsilon: Annotated[float, "> 0"] = 1e-7

    def build(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Return the Keras optimizer for a training of `num_steps` steps."""
        import keras

        return keras.optimizers.Adam(
            self.build_schedule(num_steps), self.beta_1, self.beta_2, self.epsilon, name="adam"
        )


@dataclass(frozen=True, kw_only=True)
class SGD(Schedule):
    """Stochastic gradient descent with momentum (Sutskever et al., 2013)."""

    momentum: Annotated[float, ">= 0", "<= 1"] = 0.9
    nesterov: bool = False

    def build(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Return the Keras optimizer for a training of `num_steps` steps."""
        import keras

        return keras.optimizers.SGD(self.build_schedule(num_steps), self.momentum, self.nesterov, name="sgd")


@dataclass(frozen=True, kw_only=True)
class RMSprop(Schedule):
    """RMSprop (Tieleman & Hinton, 2012, Coursera lecture 6.5)."""

    rho: Annotated[float, ">= 0", "< 1"] = 0.9
    momentum: Annotated[float, ">= 0", "<= 1"] = 0.0
    epsilon: Annotated[float, "> 0"] = 1e-7

    def build(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Return the Keras optimizer for a training of `num_steps` steps."""
        import keras

        return keras.optimizers.RMSprop(
            self.build_schedule(num_steps), self.rho, self.momentum, self.epsilon, name="rmsprop"
        )
