"""The contract between a model and the pipeline, and what classifiers share.

A model is *named variables* and *named signatures*. Its constructor takes plain numbers from the
configuration and runs before TensorFlow is imported, so that a mistyped value answers at once; `build`
is where TensorFlow comes in. Nothing here knows how training, checkpoints or exports work.

Shapes are written with these letters, here and in every model:

    B  examples in a batch      T  time steps      F  features      C  classes
    N  examples in a data set   H  hidden units    V  characters of the vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class ArraySpec:
    """What a model accepts under one name of a batch.

    Attributes:
        shape: Dimensions, the batch first; `None` where any size will do.
        dtypes: The accepted dtypes by NumPy name, each with its smallest and largest value, or `None`
            where any finite value will do.
    """

    shape: tuple[int | None, ...]
    dtypes: Mapping[str, tuple[float, float] | None]

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        by_bounds: dict[tuple[float, float] | None, list[str]] = {}
        for name, bounds in self.dtypes.items():
            by_bounds.setdefault(bounds, []).append(name)
        kinds = (
            "/".join(names) + ("" if bounds is None else f" in [{bounds[0]:g}, {bounds[1]:g}]")
            for bounds, names in by_bounds.items()
        )
        return f"[{sizes}] " + " or ".join(kinds)


def indices(size: int, *, rank: int = 1) -> ArraySpec:
    """Return the spec of integers in [0, size), such as labels `[B]` or tokens `[B, T]`."""
    return ArraySpec((None,) * rank, dict.fromkeys(("uint8", "uint16", "int32", "int64"), (0, size - 1)))


@dataclass(frozen=True)
class BuiltModel:
    """A model with its variables made and its functions ready to trace.

    Attributes:
        weights: Every variable by its path, such as `output/kernel`. These names are the keys of every
            checkpoint, so they may not depend on what the process built before.
        loss: Called with a batch (carried state included) and an int32 `[2]` seed that is a pure
            function of the run's seed and the step. Returns the scalar to minimise and the carried
            state for the next batch (empty for a stateless model). Traced as it is written, like a
            signature (see `signature`).
        signatures: `tf.function`s with a fixed input signature that return a dict. `evaluate` takes a
            batch and returns per-batch sums (`loss_sum`, ..., `count`). An output named like an input
            is carried to the next batch; a model that carries state has a signature `initial_state`.
        score: `evaluate` without the model: takes outputs of the signature that predicts from a batch,
            and the batch's other arrays, by their names, and returns the sums. With it, formats that
            cannot hold `evaluate` (Keras, quantized LiteRT) are evaluated, too.
        network: The same as a Keras model whose inputs and outputs are named as a signature's, for the
            format `keras`. Its variables are among the weights.
        session_graph: A function whose inputs and outputs give their names to the tensors of the
            format `meta_graph`; without it, they are those of the input pipeline of `simple_save`.
        examples: Inputs of a signature, for which the exports' answers are compared, where those made of
            the test split will not do: indices that must be in a range, for instance.
    """

    weights: Mapping[str, tf.Variable]
    loss: Callable[[Tensors, tf.Tensor], tuple[tf.Tensor, Tensors]]
    signatures: Mapping[str, tf.types.experimental.PolymorphicFunction]
    score: tf.types.experimental.PolymorphicFunction | None = None
    network: keras.Model | None = None
    session_graph: tf.types.experimental.PolymorphicFunction | None = None
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Model(Protocol):
    """What a class named by `model._target_` provides."""

    def arrays(self, metadata: Mapping[str, Any]) -> Mapping[str, ArraySpec]:
        """Describe the arrays of a batch, given what the data says of itself.

        Raises:
            ValueError: The metadata lacks what the model needs.
        """

    def build(self, batch: Mapping[str, tf.TensorSpec], metadata: Mapping[str, Any]) -> BuiltModel:
        """Make the variables, the loss and the signatures.

        Args:
            batch: Shape (batch dimension `None`) and dtype of each array, as the data provides it.
            metadata: What the data says of itself, such as its vocabulary.
        """


def signature(*specs: tf.TensorSpec) -> Any:
    """Return a decorator that makes a function of named tensors a signature.

    The function is traced as it is written. Loops and branches over tensors are `tf.while_loop` and
    `tf.cond`; one that would rather have them translated from Python uses `tf.function` itself.
    """
    import tensorflow as tf

    return tf.function(autograph=False, input_signature=specs)


def weights_of(network: keras.Model) -> dict[str, tf.Variable]:
    """Return the raw variables of a Keras model by path.

    The raw variables, because the TF1 and C++ loaders of a SavedModel find none when the Keras object
    itself is tracked: they then fail, or serve numbers out of uninitialised memory.
    """
    return {variable.path: variable.value for variable in network.weights}


def classify(logits: tf.Tensor) -> Tensors:
    """Return what a classifier serves: logits `[B, C]`, probabilities `[B, C]`, class_id `[B]` int64."""
    import tensorflow as tf

    return {
        "logits": logits,
        "probabilities": tf.nn.softmax(logits),
        "class_id": tf.argmax(logits, axis=-1),
    }


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the softmax cross-entropy of each example in nats: logits `[..., C]`, labels `[...]`."""
    import tensorflow as tf

    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)


def classification_sums(logits: tf.Tensor, labels: tf.Tensor) -> Tensors:
    """Return `loss_sum`, `accuracy_sum` and `count` over all leading dimensions of logits `[..., C]`.

    In operations that every runtime has, unlike the fused cross-entropy for training.
    """
    import tensorflow as tf

    return _sums(logits, tf.nn.log_softmax(logits), labels)


def _sums(scores: tf.Tensor, log_probabilities: tf.Tensor, labels: tf.Tensor) -> Tensors:
    import tensorflow as tf

    labels = tf.cast(labels, tf.int32)
    hits = tf.equal(tf.argmax(scores, axis=-1, output_type=tf.int32), labels)
    right = tf.one_hot(labels, scores.shape[-1]) * log_probabilities
    return {
        "loss_sum": -tf.reduce_sum(right),
        "accuracy_sum": tf.reduce_sum(tf.cast(hits, tf.float32)),
        "count": tf.size(hits),
    }


def classifier(network: keras.Model) -> keras.Model:
    """Return a Keras model that classifies as `classify` does, given one that returns logits `[B, C]`."""
    import keras

    logits = network.outputs[0]
    outputs = {
        "logits": logits,
        "probabilities": keras.layers.Softmax(name="probabilities")(logits),
        "class_id": keras.ops.cast(keras.ops.argmax(logits, axis=-1), "int64"),
    }
    (features,) = network.inputs
    return keras.Model({features.name: features}, outputs, name=network.name)
