"""Signatures: named functions of named arrays, the only view of a model that all stages share.

Nothing here imports TensorFlow, because the functions may run in ONNX Runtime or TensorFlow Lite, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]

SESSION_GRAPH = "session_graph"
"""Name, among the signatures, of the function whose tensors have the model's own names in a TF1 graph."""

INITIAL_STATE = "initial_state"
"""The signature that gives the carried state before the first batch."""

PREDICTED = "predicted_"
"""Prefix of an output of a signature among the inputs of `score`."""

METRICS = "metrics"
"""The signature that computes metrics, such as the area under a curve, from sums over all batches."""


@dataclass(frozen=True)
class Spec:
    """The dtype and the shape of an input or output.

    Attributes:
        dtype: NumPy's name of the dtype, such as `float32`; `string` for bytes.
        shape: The sizes of the dimensions, `None` for a free size; or `None` for any shape.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{', '.join('any' if size is None else str(size) for size in self.shape)}]"

    @property
    def batched(self) -> bool:
        """Whether the first dimension is free, and so is that of the batch."""
        return bool(self.shape) and self.shape is not None and self.shape[0] is None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape is a valid input."""
        if self.shape is None:
            return True
        if len(shape) != len(self.shape):
            return False
        return all(
            expected is None or size == expected for size, expected in zip(shape, self.shape, strict=True)
        )

    def convert(self, array: np.ndarray) -> np.ndarray:
        """Return rows of a data set in this dtype.

        Integers become floats by division by the largest integer of their dtype: uint8 pixels, for
        instance, become float32 in [0, 1].
        """
        if array.dtype.kind in "iu" and self.dtype.startswith("float"):
            array = array / np.iinfo(array.dtype).max
        return self.cast(array)

    def cast(self, array: np.ndarray) -> np.ndarray:
        """Return an array in this dtype; strings stay as they are."""
        return array if self.dtype == "string" else array.astype(self.dtype)


@dataclass(frozen=True)
class Signature:
    """A function with named inputs and outputs.

    An output that has the name of an input is carried state: it is that input for the next batch.

    Attributes:
        inputs: The spec of each input by name.
        outputs: The spec of each output by name.
        call: The function; it takes arrays by name and returns arrays or tensors by name.
    """

    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]
    call: Callable[..., Arrays]

    @property
    def carried(self) -> tuple[str, ...]:
        """Names of the state that is carried from one batch to the next."""
        return tuple(name for name in self.outputs if name in self.inputs)

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the outputs of `evaluate` that neither are sums of a metric nor are carried."""
        return tuple(
            name
            for name in self.outputs
            if not name.endswith("_sum") and name != "count" and name not in self.inputs
        )


def predicting(signatures: Mapping[str, Signature], evaluate: Signature) -> str | None:
    """Return the name of the signature that predicts from arrays that `evaluate` takes; `None` without one.

    If several do, it is the one with the fewest arrays whose dtype must be converted.
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
    """Return the signature `evaluate`, composed of `predict` and `score`.

    Formats such as ONNX and TensorFlow Lite hold `predict` only. With `score` from the run's graph, their
    predictions are evaluated as the model itself was.

    Args:
        predict: Predicts from some of the arrays of a batch, in the runtime of the format.
        score: Takes outputs of `predict` and arrays of the batch; returns sums over the batch. Its input
            `predicted_<name>` is the output `<name>`, where an array of the batch has this name, too.
        evaluate: The model's own `evaluate`, whose inputs and outputs the result has.
    """

    def call(**batch: Any) -> Arrays:
        given = {name: predict.inputs[name].convert(np.asarray(batch[name])) for name in predict.inputs}
        outputs = predict.call(**given)
        known = {**outputs, **batch, **{PREDICTED + name: output for name, output in outputs.items()}}
        # A format may return other dtypes than the run's graph does; `score` takes only its own.
        sums = score.call(**{name: spec.cast(np.asarray(known[name])) for name, spec in score.inputs.items()})
        return {**sums, **{name: outputs[name] for name in evaluate.carried}}

    return Signature(evaluate.inputs, evaluate.outputs, call)
