"""The loss, the signatures and the metrics of a compiled Keras model, as functions of named arrays.

`keras.Model.compute_loss` and the metrics of `keras.Model.compile` do the work. They run inside a
`keras.StatelessScope`, as in Keras' own JAX trainer: a metric then returns what it counted of one batch, and
the host adds the batches up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from models.base import signature

if TYPE_CHECKING:
    from models.base import Tensors

SAMPLE_WEIGHT = "sample_weight"
"""Name of the array of a batch that has the weight of each example: `[B]`, or `[B, T]`."""

PREDICTED = "predicted_"
"""Prefix of the outputs among the inputs of `score`, since a target may have the name of its output."""

NUM_ROWS = 1024
"""Rows that go at once through the layers before one that is fitted to the data."""


@dataclass(frozen=True)
class Wiring:
    """Which arrays of a batch are which inputs and targets of a network.

    Attributes:
        network: The network.
        inputs: The arrays that are the inputs, in the order of the network's inputs.
        outputs: The names of the outputs, in the order of the network's outputs.
        targets: The array that is the target of each output, by the name of the output.
        weighted: Whether the batch has `sample_weight`.
    """

    network: keras.Model
    inputs: Sequence[str]
    outputs: Sequence[str]
    targets: Mapping[str, str]
    weighted: bool

    def call(self, arrays: Tensors, *, training: bool) -> Any:
        """Return the outputs of the network for the arrays of a batch, in the network's own structure."""
        given = [_single_precision(arrays[name]) for name in self.inputs]
        if _is_functional(self.network):
            nested = keras.tree.pack_sequence_as(_graph(self.network).input, given)
        else:
            nested = given[0] if len(given) == 1 else dict(zip(self.inputs, given, strict=True))
        # As Keras' own steps do: a model whose `call` has no such argument gets none.
        mode = {"training": training} if self.network._call_has_training_arg else {}
        if training:
            return self.network(nested, **mode)
        # A recurrent layer with dropout counts its seed up even if nothing is dropped. An answer must not
        # change anything, nor does an export hold the seeds.
        others = {id(variable): variable for variable in self.network.variables}
        for variable in self.network.weights:
            del others[id(variable)]
        constants = [(variable, tf.zeros(variable.shape, variable.dtype)) for variable in others.values()]
        with keras.StatelessScope(state_mapping=constants, collect_losses=True) as scope:
            predicted = self.network(nested, **mode)
        for layer in self.network._flatten_layers():
            layer._losses.extend(loss for loss in scope.losses if id(loss) in layer._loss_ids)
        return predicted

    def named(self, predicted: Any) -> Tensors:
        """Return outputs by name; those of half precision as float32, which every runtime has."""
        flat = map(tf.convert_to_tensor, keras.tree.flatten(predicted))
        return {
            name: tf.cast(tensor, tf.float32) if tensor.dtype in (tf.float16, tf.bfloat16) else tensor
            for name, tensor in zip(self.outputs, flat, strict=True)
        }

    def targets_of(self, arrays: Tensors, predicted: Any) -> Any:
        """Return the targets of a batch in the structure of the predicted outputs."""
        flat = [
            _single_precision(arrays[self.targets[name]]) if name in self.targets else None
            for name in self.outputs
        ]
        return keras.tree.pack_sequence_as(predicted, flat) if keras.tree.is_nested(predicted) else flat[0]

    def portable(self, batch: Mapping[str, tf.TensorSpec]) -> keras.Model | None:
        """Return the network with named inputs and outputs, for the format `keras`; `None` if it is code.

        Inputs have the dtypes of the data, and outputs of half precision are float32, as in the signatures.
        """
        network = self.network
        if not _is_functional(network):
            return None
        _keep_vocabularies(network)
        given, predicted = list(network.inputs), _graph(network).output
        dtypes = [batch[name].dtype.name for name in self.inputs]
        has_names = [tensor.name for tensor in given] == list(self.inputs)
        if not has_names or [tensor.dtype for tensor in given] != dtypes:
            given = [
                keras.Input(batch_shape=tensor.shape, dtype=dtype, name=name)
                for name, tensor, dtype in zip(self.inputs, network.inputs, dtypes, strict=True)
            ]
            cast = [keras.ops.cast(new, old.dtype) for new, old in zip(given, network.inputs, strict=True)]
            # Not the compiled network itself: its file would ask for the user's loss.
            inner = keras.Model(_graph(network).input, _graph(network).output, name=network.name)
            predicted = inner(keras.tree.pack_sequence_as(_graph(network).input, cast))
        outputs = {
            name: keras.ops.cast(tensor, "float32") if tensor.dtype in ("float16", "bfloat16") else tensor
            for name, tensor in zip(self.outputs, keras.tree.flatten(predicted), strict=True)
        }
        return keras.Model(dict(zip(self.inputs, given, strict=True)), outputs)


def wire(network: keras.Model, batch: Mapping[str, tf.TensorSpec], targets: Any) -> Wiring:
    """Find out which arrays of a batch are inputs, targets and weights.

    Args:
        network: The network. A subclassed model, which does not know its inputs, is built.
        batch: The spec of each array.
        targets: The name of the array that is the target, or of that of each output by name, or `None`.

    Raises:
        ValueError: The arrays do not fit the network.
    """
    if odd := [name for name in batch if not name.isidentifier()]:
        raise ValueError(f"Names of arrays must be letters, digits and _. Received: {odd}.")
    said = {targets} if isinstance(targets, str) else set((targets or {}).values())
    rest = [name for name in batch if name != SAMPLE_WEIGHT and name not in said]
    if unknown := said - set(batch):
        raise ValueError(
            f"model.targets must name arrays of the data, {sorted(batch)}. Received: {sorted(unknown)}."
        )
    if _is_functional(network):
        inputs = [tensor.name for tensor in network.inputs]
        if len(inputs) == 1 and inputs[0] not in batch and len(rest) == 1:
            inputs = rest
        if missing := [name for name in inputs if name not in batch]:
            raise ValueError(
                f"The data must have an array for each input: {inputs}. Missing: {missing}. "
                f"It has {sorted(batch)}. Name each input like its array, for instance "
                f"keras.Input(..., name={next(iter(rest), 'x')!r}); "
                "with one input and one target, model.targets=TARGET will do."
            )
    else:
        if not said:
            raise ValueError(
                f"{network.name} has no keras.Input, so its inputs have no names. State the target: "
                f"model.targets=NAME, one of {sorted(batch)}."
            )
        inputs = rest
        symbolic = {name: keras.Input(batch[name].shape[1:], dtype=batch[name].dtype.name) for name in inputs}
        network(next(iter(symbolic.values())) if len(inputs) == 1 else symbolic)
    _check_inputs(network, inputs, batch)
    outputs = _output_names(network, inputs, batch)
    free = [name for name in rest if name not in inputs]
    return Wiring(network, inputs, outputs, _targets(targets, outputs, free), SAMPLE_WEIGHT in batch)


def _check_inputs(network: keras.Model, inputs: Sequence[str], batch: Mapping[str, tf.TensorSpec]) -> None:
    """Check that arrays are of the kind that the inputs of a network take.

    Raises:
        ValueError: An input is sparse or ragged; or an array would lose what it holds, such as fractions.
    """
    if not _is_functional(network):
        return
    for name, tensor in zip(inputs, network.inputs, strict=True):
        if getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False):
            raise ValueError(
                f"The inputs must be dense. {name} is a sparse or ragged keras.Input. Use a dense one: rows "
                "of unequal length are padded with 0, and Embedding(mask_zero=True) masks the padding."
            )
        wanted, received = tf.as_dtype(tensor.dtype), batch[name].dtype
        is_text = tf.string in (wanted, received) and wanted != received
        if is_text or (wanted.is_integer and received.is_floating):
            raise ValueError(
                f"The array {name} must have a dtype that fits its keras.Input, {wanted.name}. Received: "
                f"{received.name}. State it: keras.Input(..., dtype={received.name!r}), or convert the data."
            )


def _targets(said: Any, outputs: Sequence[str], free: Sequence[str]) -> Mapping[str, str]:
    """Return the array of each output.

    Args:
        said: `model.targets`.
        outputs: The names of the outputs.
        free: The arrays that are neither inputs nor weights.

    Raises:
        ValueError: Names do not tell.
    """
    if isinstance(said, Mapping):
        found = dict(said)
    elif isinstance(said, str):
        found = dict.fromkeys(outputs, said)
    elif len(outputs) == len(free) == 1:
        found = {outputs[0]: free[0]}
    else:
        found = {name: name for name in outputs if name in free}
    if not found or set(found) - set(outputs) or set(free) - set(found.values()):
        raise ValueError(
            f"The data must have a target for each output, {list(outputs)}, and no further arrays. Left "
            f"for targets: {list(free)}. Name them like the outputs, or set model.targets={{output: array}}."
        )
    return found


def _output_names(
    network: keras.Model, inputs: Sequence[str], batch: Mapping[str, tf.TensorSpec]
) -> list[str]:
    if _is_functional(network):
        # A Sequential model has a functional one inside of it.
        nested, names = _graph(network).output, _graph(network).output_names
    else:
        given = {name: keras.KerasTensor(batch[name].shape, batch[name].dtype.name) for name in inputs}
        nested = network.compute_output_spec(next(iter(given.values())) if len(given) == 1 else given)
        names = None
    num_outputs = len(keras.tree.flatten(nested))
    if isinstance(nested, Mapping) and num_outputs == len(nested):
        names = list(keras.tree.flatten({key: key for key in nested}))
    elif names is None or len(names) != num_outputs:
        names = ["output"] if num_outputs == 1 else [f"output_{number}" for number in range(num_outputs)]
    # An output of the name of an input would be carried to the next batch.
    return [f"{name}_output" if name in inputs else name for name in names]


class Functions:
    """The loss, the signatures and the score of a compiled network.

    Args:
        wiring: Which arrays are which.
        batch: The spec of each array of a batch.
        class_weight: The weight of each class in the training loss.

    Raises:
        ValueError: The loss or a metric does not fit the outputs; or a metric does not start at zero; or an
            array has the name of an output of `evaluate`.
    """

    def __init__(
        self, wiring: Wiring, batch: Mapping[str, tf.TensorSpec], class_weight: Mapping[int, float]
    ) -> None:
        self.network = wiring.network
        self.wiring = wiring
        self.batch = batch
        self.class_weight = dict(class_weight)
        self._check_class_weight()
        self._predicted, self._outputs = self._trace()
        self._states = self._metric_states()
        if taken := {"loss_sum", "count", *self._states}.intersection(batch):
            raise ValueError(f"Arrays of the data need names other than {', '.join(sorted(taken))}.")

    def _trace(self) -> tuple[Any, Tensors]:
        """Trace the loss and the metrics once: Keras makes the variables of the metrics when it does.

        Returns:
            The outputs for a batch of `_num_traced` rows as symbolic tensors: as the network returns them,
            and as the signatures do.
        """
        predicted: Any = None
        named: Tensors = {}

        def update(*arrays: tf.Tensor) -> None:
            nonlocal predicted, named
            given = dict(zip(self.batch, arrays, strict=True))
            predicted = self.wiring.call(given, training=False)
            named = self.wiring.named(predicted)  # Outside of this function, nothing can be cast.
            self._compute_loss(given, predicted, self._training_weight(given), training=False)
            self._update_metrics(given, predicted)

        try:
            # With a free batch size, shapes that do not fit would be found by the first step, after minutes.
            specs = [
                tf.TensorSpec([self._num_traced, *spec.shape[1:]], spec.dtype, name)
                for name, spec in self.batch.items()
            ]
            tf.function(update, autograph=False).get_concrete_function(*specs)
        except Exception as error:  # The loss may be the user's, and may raise any type of exception.
            raise ValueError(f"The loss and the metrics must fit {self.network.name}. {error}") from error
        return predicted, named

    @property
    def _num_traced(self) -> int:
        """A number of rows that no dimension of an array has, and that no dimension is taken for."""
        return 1 + max(size or 0 for spec in self.batch.values() for size in spec.shape)

    def _check_class_weight(self) -> None:
        """Check that there are classes to weigh.

        Raises:
            ValueError: There is more than one target, or a target has no classes for its examples.
        """
        if not self.class_weight:
            return
        targets = {name: self.batch[name] for name in self.wiring.targets.values()}
        if len(targets) > 1 or any(spec.shape.rank > 2 for spec in targets.values()):
            shapes = {name: spec.shape.as_list() for name, spec in targets.items()}
            raise ValueError(
                "model.class_weight needs one target, with one class for each example: [B], [B, 1], or "
                f"[B, C] one-hot. Received: {shapes}. Give the data an array sample_weight instead."
            )

    def _metric_states(self) -> dict[str, keras.Variable]:
        """Return the variables of the metrics by a name for each, without those of the loss' own mean."""
        states: dict[str, keras.Variable] = {}
        for metric in self.network.metrics:
            if metric is self.network._loss_tracker:
                continue
            for owner in getattr(metric, "metrics", None) or [metric]:
                for variable in owner.variables:
                    name = f"{owner.name}_{variable.name}_state"
                    # Two outputs may have metrics of one name.
                    states[f"{len(states)}_{name}" if name in states else name] = variable
        if started := [name for name, variable in states.items() if np.any(variable.numpy())]:
            raise ValueError(f"Metrics must start at 0, since batches are added up. Received: {started}.")
        return states

    def loss(self, batch: Tensors, seed: tf.Tensor) -> tuple[tf.Tensor, Tensors]:
        """Return the training loss `[]` of a batch as `keras.Model.fit` computes it."""
        predicted = self.wiring.call(batch, training=True)
        with self._scope():
            loss = self._compute_loss(batch, predicted, self._training_weight(batch), training=True)
        return tf.cast(loss, tf.float32), {}

    def signatures(self) -> dict[str, Any]:
        """Return `serving_default`, `evaluate`, and `metrics` if there are any but the loss."""

        @signature(*map(self._input_spec, self.wiring.inputs, self._input_shapes()))
        def serving_default(*arrays: tf.Tensor) -> Tensors:
            given = dict(zip(self.wiring.inputs, arrays, strict=True))
            return self.wiring.named(self.wiring.call(given, training=False))

        @signature(*self.batch.values())
        def evaluate(*arrays: tf.Tensor) -> Tensors:
            given = dict(zip(self.batch, arrays, strict=True))
            return self._sums(given, self.wiring.call(given, training=False))

        found = {"serving_default": serving_default, "evaluate": evaluate}
        if self._states:
            specs = [tf.TensorSpec(v.shape, v.dtype, name) for name, v in self._states.items()]
            found["metrics"] = signature(*specs)(lambda *states: self._results(states))
        return found

    def score(self) -> Any:
        """Return `BuiltModel.score`; `None` if the loss depends on values inside of the network."""
        of_weights = sum(variable.regularizer is not None for variable in self.network.trainable_variables)
        # After a call, `losses` has those of activities, too.
        if len(self.network.losses) > of_weights:
            return None
        flat = keras.tree.flatten(self._predicted)
        # Keras leaves out what the network masks, and a mask is no output.
        if any(getattr(tensor, "_keras_mask", None) is not None for tensor in flat):
            return None
        kept = {name: spec for name, spec in self.batch.items() if name not in self.wiring.inputs}
        kept |= {name: self.batch[name] for name in self.wiring.targets.values()}
        specs = [
            tf.TensorSpec(
                [None if size == self._num_traced else size for size in tensor.shape],
                tensor.dtype,
                PREDICTED + name,
            )
            for name, tensor in self._outputs.items()
        ]

        def score(*arrays: tf.Tensor) -> Tensors:
            predicted = keras.tree.pack_sequence_as(self._predicted, list(arrays[: len(specs)]))
            return self._sums(dict(zip(kept, arrays[len(specs) :], strict=True)), predicted)

        return signature(*specs, *kept.values())(score)

    def _input_shapes(self) -> list[Any]:
        """Return the shape of each input: the network's own, which may have free sizes, or the data's."""
        if _is_functional(self.network):
            return [tensor.shape for tensor in self.network.inputs]
        return [self.batch[name].shape for name in self.wiring.inputs]

    def _input_spec(self, name: str, shape: Any) -> tf.TensorSpec:
        spec = self.batch[name]
        # A network may take `[B, 1]` where the data has `[B]`; Keras adds the dimension.
        fits = len(shape) == len(spec.shape)
        return tf.TensorSpec([None, *shape[1:]] if fits else spec.shape, spec.dtype, name)

    def _sums(self, arrays: Tensors, predicted: Any) -> Tensors:
        """Return `loss_sum`, `count` and the states of the metrics for a batch."""
        count = tf.shape(keras.tree.flatten(predicted)[0])[0]
        with self._scope() as scope:
            loss = self._compute_loss(arrays, predicted, arrays.get(SAMPLE_WEIGHT), training=False)
            self._update_metrics(arrays, predicted)
        # As the mean of Keras' `evaluate` weighs batches.
        sums = {"loss_sum": tf.cast(loss, tf.float32) * tf.cast(count, tf.float32), "count": count}
        states = {name: scope.get_current_value(v) for name, v in self._states.items()}
        # Keras weighs the loss of each output by the rows, too, where it knows their number. With a free
        # batch size, it takes the mean of the batches, which would be another for another batch size.
        of_outputs = {id(variable) for variable in self.network._compile_loss.variables}
        for name, variable in self._states.items():
            if id(variable) in of_outputs:
                states[name] *= tf.cast(count, states[name].dtype)
        return {**sums, **states}

    def _results(self, states: Sequence[tf.Tensor]) -> Tensors:
        """Return the value `[]` of each metric, from the sum of its states over all batches."""
        mapping = [*self._zeros(), *zip(self._states.values(), states, strict=True)]
        with keras.StatelessScope(state_mapping=mapping):
            results = self.network.get_metrics_result()
        flat: Tensors = {}
        for name, value in results.items():
            if name == "loss":
                continue
            value = tf.cast(value, tf.float32)
            if value.shape.rank == 0:
                flat[name] = value
            else:  # Such as the F1 score of each class.
                flat |= {f"{name}_{n}": item for n, item in enumerate(tf.unstack(tf.reshape(value, [-1])))}
        return flat

    def _compute_loss(self, arrays: Tensors, predicted: Any, weight: Any, *, training: bool) -> tf.Tensor:
        loss = self.network._compute_loss(
            x={name: arrays[name] for name in self.wiring.inputs if name in arrays},
            y=self.wiring.targets_of(arrays, predicted),
            y_pred=predicted,
            sample_weight=None if weight is None else _single_precision(weight),
            training=training,
        )
        if loss.shape.rank != 0:
            raise ValueError(f"The loss of a batch must be a scalar. Received: {list(loss.shape)}.")
        return loss

    def _update_metrics(self, arrays: Tensors, predicted: Any) -> None:
        weight = arrays.get(SAMPLE_WEIGHT)
        self.network.compute_metrics(
            x={name: arrays[name] for name in self.wiring.inputs if name in arrays},
            y=self.wiring.targets_of(arrays, predicted),
            y_pred=predicted,
            sample_weight=None if weight is None else _single_precision(weight),
        )

    def _scope(self) -> Any:
        """Return a scope in which metrics count from zero, and in which nothing else changes."""
        # Regularizers read the variables. The scope knows those only that it is given.
        weights = [(variable, tf.convert_to_tensor(variable.value)) for variable in self.network.weights]
        scope = keras.StatelessScope(state_mapping=[*self._zeros(), *weights], collect_losses=True)
        # And so it is with the losses of activities, which the layers have from the call before.
        for layer in self.network._flatten_layers():
            for loss in layer._losses:
                scope.add_loss(loss)
                layer._loss_ids.add(id(loss))
        return scope

    def _zeros(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Return each variable of a metric with its value before the first batch."""
        return [(v, tf.zeros(v.shape, v.dtype)) for v in self.network.metrics_variables]

    def _training_weight(self, batch: Tensors) -> tf.Tensor | None:
        """Return the weight of each example: that of the data times that of its class."""
        weight = batch.get(SAMPLE_WEIGHT)
        if not self.class_weight:
            return weight
        labels = batch[next(iter(self.wiring.targets.values()))]
        if labels.shape.rank > 1 and labels.shape[-1] > 1:
            labels = tf.argmax(labels, axis=-1)
        labels = tf.reshape(tf.cast(tf.round(tf.cast(labels, tf.float32)), tf.int32), [-1])
        of_class = tf.ones_like(labels, tf.float32)
        for number, its in self.class_weight.items():
            of_class = tf.where(labels == number, tf.constant(its, tf.float32), of_class)
        return of_class if weight is None else of_class * tf.reshape(_single_precision(weight), [-1])


def fit_preprocessing(network: keras.Model, inputs: Sequence[str], train: Mapping[str, Any]) -> None:
    """Fit layers such as `Normalization` and `StringLookup` to the training split, if nobody has.

    The layers are fitted in their order, each to what the layers before it make of the data.

    Raises:
        ValueError: Such a layer lies inside of another layer or model, or in a subclassed one.
    """
    top = network.layers if _is_functional(network) else []
    for layer in network._flatten_layers(include_self=False):
        if not _is_unfitted(layer):
            continue
        if layer not in top:
            raise ValueError(
                f"{layer.name} must be fitted to the data (adapt), or be a layer of the functional network "
                "itself, which Roundtrip fits. It lies inside of another."
            )
        before = keras.Model(network.inputs, layer.input)
        arrays = [_single_precision(train[name]) for name in inputs]
        num_rows = len(arrays[0])
        parts = [before([a[i : i + NUM_ROWS] for a in arrays]) for i in range(0, num_rows, NUM_ROWS)]
        layer.adapt(tf.concat(parts, axis=0))


def _is_unfitted(layer: keras.Layer) -> bool:
    layers = keras.layers
    if isinstance(layer, layers.Normalization):
        untouched = layer.input_mean is None and not np.any(layer.adapt_mean.numpy())
        return bool(untouched and np.all(layer.adapt_variance.numpy() == 1))
    if isinstance(layer, layers.Discretization):
        return layer.bin_boundaries is None
    if isinstance(layer, layers.StringLookup | layers.IntegerLookup | layers.TextVectorization):
        return not len(layer.get_vocabulary(include_special_tokens=False))
    return False


def _keep_vocabularies(network: keras.Model) -> None:
    """Make the vocabularies that layers were fitted to part of the network's architecture.

    Keras writes them into its own file format, but not into the configuration of the layers.
    """
    for layer in network._flatten_layers(include_self=False):
        if hasattr(layer, "input_vocabulary") and layer.input_vocabulary is None:
            layer.input_vocabulary = layer.get_vocabulary(include_special_tokens=False)


def tables_of(network: keras.Model) -> list[Any]:
    """Return the lookup tables of a network's layers."""
    layers = network._flatten_layers(include_self=False)
    return [layer.lookup_table for layer in layers if hasattr(layer, "lookup_table")]


def _is_functional(network: keras.Model) -> bool:
    """Return whether a network is a graph of layers, whose inputs have names and shapes."""
    return (isinstance(network, keras.Sequential) and network.built) or hasattr(network, "_inputs_struct")


def _graph(network: keras.Model) -> Any:
    """Return the graph of layers that a functional network is, or that a sequential one has inside."""
    return network._functional if isinstance(network, keras.Sequential) else network


def _single_precision(tensor: Any) -> Any:
    """Return float64 as float32, as Keras does with all data; any other dtype is left alone."""
    tensor = tf.convert_to_tensor(tensor)
    return tf.cast(tensor, keras.config.floatx()) if tensor.dtype == tf.float64 else tensor
