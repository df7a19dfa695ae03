"""What every stage knows of a model: named functions of named arrays, and how a split is evaluated.

Nothing here imports TensorFlow: the functions may be of any runtime.
"""

from __future__ import annotations

from collections import defaultdict
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


def initial_state(signatures: Mapping[str, Signature], batch_size: int) -> dict[str, Any]:
    """Return the carried state before the first batch; empty for a stateless model."""
    if not signatures["evaluate"].carried:
        return {}
    return dict(signatures["initial_state"].call(batch_size=np.asarray(batch_size, np.int32)))


def evaluate(
    signatures: Mapping[str, Signature], arrays: Mapping[str, Any], *, batch_size: int
) -> dict[str, float]:
    """Evaluate a split through the signature `evaluate`.

    The signature returns sums over a batch; they are added in float64 and divided once, by `count`.

    Args:
        signatures: `evaluate`, and `initial_state` where state is carried.
        arrays: Tensors or arrays of the split, rows first.
        batch_size: Rows in a batch; the last batch may have fewer, unless state is carried.

    Returns:
        Metrics by name: `loss` for the output `loss_sum`, and so on.
    """
    signature = signatures["evaluate"]
    carried = initial_state(signatures, batch_size)
    totals: defaultdict[str, float] = defaultdict(float)
    num_rows = len(next(iter(arrays.values())))
    for start in range(0, num_rows, batch_size):
        batch = {name: array[start : start + batch_size] for name, array in arrays.items()}
        outputs = dict(signature.call(**batch, **carried))
        carried = {name: outputs.pop(name) for name in signature.carried}
        for name, value in outputs.items():
            totals[name] += float(np.asarray(value))
    count = totals.pop("count")
    return {name.removesuffix("_sum"): total / count for name, total in sorted(totals.items())}


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
