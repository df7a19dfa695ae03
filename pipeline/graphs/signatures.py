"""What every stage knows of a model: named functions of named arrays, and how a split is evaluated.

Nothing here imports TensorFlow: the functions may be of any runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]

SESSION_GRAPH = "session_graph"
"""How the tensors of a TF1 graph are called among signatures, where they have names of their own."""


@dataclass(frozen=True)
class Spec:
    """The dtype and the shape of an input or output.

    Attributes:
        dtype: NumPy's name of it, such as `float32`; `string` for bytes.
        shape: Dimensions, `None` where any size will do; `None` for any shape at all.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{', '.join('any' if size is None else str(size) for size in self.shape)}]"

    @property
    def batched(self) -> bool:
        """Whether the first dimension is of any size: that of the batch."""
        return bool(self.shape) and self.shape is not None and self.shape[0] is None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of a shape fits."""
        if self.shape is None:
            return True
        if len(shape) != len(self.shape):
            return False
        return all(
            expected is None or size == expected for size, expected in zip(shape, self.shape, strict=True)
        )

    def convert(self, array: np.ndarray) -> np.ndarray:
        """Return rows of a data set as this dtype: integers for floats as fractions of their range."""
        if array.dtype.kind in "iu" and self.dtype.startswith("float"):
            array = array / np.iinfo(array.dtype).max
        return array.astype(self.dtype)


@dataclass(frozen=True)
class Signature:
    """A function with named inputs and outputs.

    An output named like an input is carried: it is the input of the next batch.

    Attributes:
        inputs: The spec of each input by name.
        outputs: The spec of each output by name.
        call: Takes arrays by name, returns arrays or tensors by name.
    """

    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]
    call: Callable[..., Arrays]

    @property
    def carried(self) -> tuple[str, ...]:
        """Names of the state that is carried from batch to batch."""
        return tuple(name for name in self.outputs if name in self.inputs)


def predicting(signatures: Mapping[str, Signature], evaluate: Signature) -> str | None:
    """Return the name of the signature that predicts from the arrays `evaluate` takes, if there is one.

    One that takes them in the dtype they have comes before one for which they are converted.
    """
    fitting = [
        name
        for name, signature in signatures.items()
        if name != "evaluate" and signature.inputs and set(signature.inputs) <= set(evaluate.inputs)
    ]

    def num_converted(name: str) -> int:
        inputs = signatures[name].inputs
        return sum(spec.dtype != evaluate.inputs[key].dtype for key, spec in inputs.items())

    return min(fitting, key=num_converted, default=None)


def scored(predict: Signature, score: Signature, evaluate: Signature) -> Signature:
    """Return `evaluate` as it follows from a prediction, in whatever runtime, and the score of it.

    Args:
        predict: Predicts from some of the arrays of a batch.
        score: Takes outputs of `predict` and arrays of the batch; returns per-batch sums.
        evaluate: The signature to stand in for.
    """

    def call(**batch: Any) -> Arrays:
        given = {name: predict.inputs[name].convert(np.asarray(batch[name])) for name in predict.inputs}
        outputs = predict.call(**given)
        known = {**batch, **outputs}
        sums = score.call(
            **{name: np.asarray(known[name]).astype(spec.dtype) for name, spec in score.inputs.items()}
        )
        return {**sums, **{name: outputs[name] for name in evaluate.carried}}

    return Signature(evaluate.inputs, evaluate.outputs, call)
