"""The contract between a model and the pipeline, and functions that all classifiers share.

A model is *named variables* and *named signatures*. The constructor of a model takes plain numbers from the
configuration and runs before TensorFlow is imported, so that a mistyped value is reported at once. `build`
imports TensorFlow and makes the variables. This module knows nothing of training, checkpoints or exports.

Every model writes shapes with these letters:

    B  examples in a batch      T  time steps      F  features      C  classes
    N  examples in a data set   H  hidden units    V  characters of the vocabulary
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    Tensors = dict[str, tf.Tensor]
    Variable: TypeAlias = tf.Variable | keras.Variable


@dataclass(frozen=True)
class ArraySpec:
    """The shape, the dtypes and the ranges that a model accepts for one array of a batch.

        >>> str(ArraySpec((None, 28, 28, 1), {"uint8": None, "float32": (0, 1)}))
        '[any, 28, 28, 1] uint8 or float32 in [0, 1]'

    Attributes:
        shape: Dimensions, the batch dimension first; `None` accepts any size.
        dtypes: The accepted dtypes by NumPy name. Each has its smallest and largest value, or `None` if every
            finite value is accepted.
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
    """A model whose variables exist and whose functions are ready to be traced.

        >>> import tensorflow as tf
        >>> slope = tf.Variable(2.0)
        >>> x, y = (tf.TensorSpec([None], tf.float32, name) for name in ("x", "y"))
        >>> @signature(x)
        ... def serving_default(x):
        ...     return {"y": slope * x}
        >>> @signature(x, y)
        ... def evaluate(x, y):
        ...     return {"loss_sum": tf.reduce_sum((slope * x - y) ** 2), "count": tf.size(x)}
        >>> def loss(batch, seed):
        ...     return tf.reduce_mean((slope * batch["x"] - batch["y"]) ** 2), {}
        >>> built = BuiltModel(
        ...     weights={"slope": slope},
        ...     loss=loss,
        ...     signatures={"serving_default": serving_default, "evaluate": evaluate},
        ... )
        >>> built.signatures["serving_default"](x=tf.constant([3.0]))["y"].numpy().tolist()
        [6.0]

    An output of `loss` or of a signature that is named like an input is **carried**: its value is the input
    for the next batch. A model that carries state also has a signature `initial_state`, which takes
    `batch_size` (int32 `[]`) and returns the state before the first batch. `models.char_lstm` is an example.

    Attributes:
        weights: Every variable by its path, such as `output/kernel`. The paths are the keys of every
            checkpoint. A path must therefore not depend on other models that the process built before.
            Variables of Keras (see `weights_of`) are trained as Keras does it: frozen ones stay as they are,
            and constraints hold after each step.
        loss: Takes a batch with the carried state, and an int32 `[2]` seed, which follows from the seed of
            the run and the number of the step alone. Returns the scalar to minimise, and the carried state
            for the next batch (empty for a model without state). The function is traced as it is written:
            see `signature`.
        signatures: `tf.function`s with a fixed input signature that return a dict. `evaluate` takes a batch
            and returns sums over the batch: `loss_sum`, `count`, and a sum such as `accuracy_sum` for each
            further metric. Metrics that are no means, such as the area under a curve, have a signature
            `metrics`: `evaluate` returns its inputs for a batch, these are added up over the batches, and
            `metrics` returns the values by name.
        score: A function that computes the sums of `evaluate` without the variables. The inputs are outputs
            of a signature that predicts from a batch, and the other arrays of the batch, all by name. Formats
            that cannot hold `evaluate` (Keras, int8 LiteRT) are evaluated with it.
        network: The same function as a Keras model, for the format `keras`. The inputs and outputs have the
            names of a signature's, and the variables of the network are among `weights`.
        session_graph: A function whose inputs and outputs give their names to the tensors of the format
            `meta_graph`. Without it the tensors have the names of the input pipeline of `simple_save`.
        tables: Lookup tables that the functions use.
        examples: Inputs of a signature by name, by signature. The answers of an export to these inputs are
            compared with the trained model's. A signature needs an example where inputs made from the test
            split would not be valid, such as indices that must be in a range.
    """

    weights: Mapping[str, Variable]
    loss: Callable[[Tensors, tf.Tensor], tuple[tf.Tensor, Tensors]]
    signatures: Mapping[str, tf.types.experimental.PolymorphicFunction]
    score: tf.types.experimental.PolymorphicFunction | None = None
    network: keras.Model | None = None
    session_graph: tf.types.experimental.PolymorphicFunction | None = None
    tables: Sequence[Any] = ()
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The variables by path, those of Keras as the TensorFlow variables inside of them.

        A SavedModel must hold these. If it tracks a Keras object instead, the TF1 and C++ loaders find no
        variables: they then fail, or serve numbers out of uninitialised memory.
        """
        import keras

        return {
            path: variable.value if isinstance(variable, keras.Variable) else variable
            for path, variable in self.weights.items()
        }

    @property
    def trainable(self) -> dict[str, Variable]:
        """The variables that are trained, by path; those of the network as Keras has them.

        A TensorFlow variable inside of a Keras variable knows neither that its layer was frozen later nor of
        a constraint.
        """
        network = {} if self.network is None else weights_of(self.network)
        of_keras = {id(variable.value): variable for variable in network.values()}
        known = {path: of_keras.get(id(variable), variable) for path, variable in self.weights.items()}
        return {path: variable for path, variable in known.items() if variable.trainable}


class Model(Protocol):
    """The methods of a class that `model._target_` names.

        >>> class Scale:
        ...     def arrays(self, metadata):
        ...         return {name: ArraySpec((None,), {"float32": None}) for name in ("x", "y")}
        ...
        ...     def build(self, batch, metadata):
        ...         import tensorflow as tf
        ...
        ...         scale = tf.Variable(1.0)
        ...
        ...         @signature(batch["x"], batch["y"])
        ...         def evaluate(x, y):
        ...             return {"loss_sum": tf.reduce_sum((scale * x - y) ** 2), "count": tf.size(x)}
        ...
        ...         def loss(batch, seed):
        ...             sums = evaluate(**batch)
        ...             return sums["loss_sum"] / tf.cast(sums["count"], tf.float32), {}
        ...
        ...         return BuiltModel(weights={"scale": scale}, loss=loss, signatures={"evaluate": evaluate})
        >>> import tensorflow as tf
        >>> model: Model = Scale()
        >>> batch = {name: tf.TensorSpec([None], tf.float32, name) for name in model.arrays({})}
        >>> built = model.build(batch, {})
        >>> x, y = tf.constant([1.0, 2.0]), tf.constant([2.0, 4.0])
        >>> float(built.signatures["evaluate"](x=x, y=y)["loss_sum"])
        5.0

    The constructor takes keyword arguments with type annotations; they are the keys of the section `model`.
    `Annotated[int, ">= 1"]` states a range as well.
    """

    def arrays(self, metadata: Mapping[str, Any]) -> Mapping[str, ArraySpec] | None:
        """Return the spec of each array of a batch; `None` leaves the check to `build`.

        Args:
            metadata: Facts about the data, such as the vocabulary of a text.

        Raises:
            ValueError: The metadata lacks a fact that the model needs.
        """

    def build(self, batch: Mapping[str, tf.TensorSpec], metadata: Mapping[str, Any]) -> BuiltModel:
        """Make the variables, the loss and the signatures.

        Args:
            batch: Shape (batch dimension `None`) and dtype of each array, as the data provides it.
            metadata: Facts about the data, such as the vocabulary of a text.

        Raises:
            ValueError: The model cannot be made, or does not fit the data.
        """


def signature(*specs: tf.TensorSpec) -> Any:
    """Return a decorator that makes a function of named tensors a signature.

    The function is traced as it is written: AutoGraph does not translate Python loops and branches over
    tensors. Use `tf.while_loop` and `tf.cond`, or decorate with `tf.function` to have them translated.

    Args:
        specs: The spec of each parameter, in the order of the parameters. The name of a spec becomes the name
            of the input. A function of `*arrays` is called by these names, too.
    """
    import tensorflow as tf

    def decorate(function: Callable[..., Tensors]) -> Any:
        if any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(function).parameters.values()):
            parameters = [
                inspect.Parameter(spec.name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for spec in specs
            ]
            # `inspect`, and TensorFlow with it, take a function's parameters from here.
            function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        # Without AutoGraph the graph holds the operations of the function and no others, and an error points
        # at the user's own lines.
        return tf.function(function, autograph=False, input_signature=specs)

    return decorate


def weights_of(network: keras.Model) -> dict[str, keras.Variable]:
    """Return the variables of a Keras model by path.

    Where two layers have one name, the paths of the second one's variables get the suffix `_1`, and so on.
    A variable is trainable if the model trains it. The flag of the variable itself can say otherwise: Keras
    does not clear it where a layer is frozen before its variables are made.
    """
    trained = {id(variable) for variable in network.trainable_variables}
    weights: dict[str, keras.Variable] = {}
    for variable in network.weights:
        variable.trainable = id(variable) in trained
        paths = itertools.chain(
            [variable.path], (f"{variable.path}_{number}" for number in itertools.count(1))
        )
        weights[next(path for path in paths if path not in weights)] = variable
    return weights


def classify(logits: tf.Tensor) -> Tensors:
    """Return the outputs of a classifier: logits `[B, C]`, probabilities `[B, C]`, class_id `[B]` int64."""
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
    """Return `loss_sum` (nats), `accuracy_sum` and `count` over all leading dimensions of logits `[..., C]`.

    The sums use operations that every runtime has. The fused `cross_entropy` is faster and serves training
    alone: under deterministic operations, tf2onnx converts it to a function that returns NaN.
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
    """Return a Keras model with the outputs of `classify`, from one whose output is logits `[B, C]`.

    The format `keras` compares this model with `serving_default`: inputs and outputs have the same names.
    """
    import keras

    logits = network.outputs[0]
    outputs = {
        "logits": logits,
        "probabilities": keras.layers.Softmax(name="probabilities")(logits),
        "class_id": keras.ops.cast(keras.ops.argmax(logits, axis=-1), "int64"),
    }
    (features,) = network.inputs
    return keras.Model({features.name: features}, outputs, name=network.name)
