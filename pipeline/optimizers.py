"""Optimizers and schedules of the learning rate: configurations of the optimizers of Keras.

The configuration makes an object of these classes before TensorFlow is imported, so that a mistyped value is
reported at once. `build` imports Keras and makes the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate by step: a linear warm-up from 0, then constant or along half a cosine.

        >>> rate = Schedule(learning_rate=0.1, schedule="cosine").build_schedule(num_steps=100)
        >>> [round(float(rate(step)), 3) for step in (0, 50, 100)]
        [0.1, 0.05, 0.0]

    Attributes:
        learning_rate: The rate after the warm-up.
        schedule: `constant`, or `cosine` (Loshchilov & Hutter, 2017, arXiv:1608.03983), which ends at the
            last step.
        warmup_steps: Steps of the warm-up, which is linear; 0 is no warm-up.
        final_fraction: The end of the cosine, as a fraction of `learning_rate`.
    """

    learning_rate: Annotated[float, "> 0"]
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, ">= 0"] = 0
    final_fraction: Annotated[float, ">= 0", "<= 1"] = 0.0

    def build_schedule(self, num_steps: int) -> Any:
        """Return the `learning_rate` of a Keras optimizer: a number, or a schedule of `num_steps` steps."""
        import keras

        # Keras computes the cosine in the dtype of the rate. With an integer, pi would be 3.
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
    """Adam (Kingma & Ba, 2015, arXiv:1412.6980).

        >>> adam = Adam(learning_rate=0.01, schedule="cosine", warmup_steps=10)
        >>> adam.build(num_steps=100).get_config()["beta_1"]
        0.9

    Attributes:
        beta_1: Decay of the mean of the gradients.
        beta_2: Decay of the mean of the squared gradients.
        epsilon: Added to the denominator, so that it is not 0.
    """

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
    """Stochastic gradient descent with momentum (Sutskever et al., 2013).

        >>> SGD(learning_rate=0.01).build(num_steps=100).get_config()["momentum"]
        0.9

    Attributes:
        momentum: Decay of the velocity; 0 is plain gradient descent.
        nesterov: Whether the momentum is Nesterov's.
    """

    momentum: Annotated[float, ">= 0", "<= 1"] = 0.9
    nesterov: bool = False

    def build(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Return the Keras optimizer for a training of `num_steps` steps."""
        import keras

        return keras.optimizers.SGD(self.build_schedule(num_steps), self.momentum, self.nesterov, name="sgd")


@dataclass(frozen=True, kw_only=True)
class RMSprop(Schedule):
    """RMSprop (Tieleman & Hinton, 2012, Coursera lecture 6.5).

        >>> RMSprop(learning_rate=0.01).build(num_steps=100).get_config()["rho"]
        0.9

    Attributes:
        rho: Decay of the mean of the squared gradients.
        momentum: Decay of the velocity; 0 is no momentum.
        epsilon: Added to the denominator, so that it is not 0.
    """

    rho: Annotated[float, ">= 0", "< 1"] = 0.9
    momentum: Annotated[float, ">= 0", "<= 1"] = 0.0
    epsilon: Annotated[float, "> 0"] = 1e-7

    def build(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Return the Keras optimizer for a training of `num_steps` steps."""
        import keras

        return keras.optimizers.RMSprop(
            self.build_schedule(num_steps), self.rho, self.momentum, self.epsilon, name="rmsprop"
        )
