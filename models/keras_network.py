"""A user's own Keras model, trained, evaluated and exported as Keras itself would do it.

    model:
      network: mine.nets.classifier          # (metadata, **arguments) -> keras.Model; or a `.keras` file
      loss: sparse_categorical_crossentropy
      metrics: [sparse_categorical_accuracy]

The loss, its reduction, masks, weights and regularizers, and the metrics are those of `keras.Model.compile`;
the functions of Keras that compute them are called, and nothing of them is written anew.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib
import importlib.util
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.base import BuiltModel, weights_of

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


class KerasNetwork:
    """A Keras model of the user.

        >>> import sys, types, keras
        >>> mine = sys.modules["mine"] = types.ModuleType("mine")
        >>> def line(metadata, units=1):
        ...     x = keras.Input((2,), name="x")
        ...     return keras.Model(x, keras.layers.Dense(units, name="y_hat")(x))
        >>> mine.line = line
        >>> model = KerasNetwork(network="mine.line", loss="mse", metrics=["r2_score"])
        >>> import tensorflow as tf
        >>> shapes = {"x": [None, 2], "y": [None, 1]}
        >>> batch = {name: tf.TensorSpec(shape, tf.float32, name) for name, shape in shapes.items()}
        >>> built = model.build(batch, {})
        >>> sorted(built.signatures), list(built.weights)
        (['evaluate', 'metrics', 'serving_default'], ['y_hat/kernel', 'y_hat/bias'])

    The arrays of a batch that have the names of the network's inputs are its inputs; `sample_weight`, if
    there is one, weighs the examples; the rest are the targets. Several targets have the names of the
    network's outputs.

    Args:
        network: The path of a function `(metadata, **arguments) -> keras.Model`, such as
            `mine.nets.classifier`; or of a `.keras` file.
        arguments: Further arguments of the function.
        loss: A loss of Keras by name, or as `{class_name: Huber, config: {delta: 2.0}}`; the path of a
            function `(y_true, y_pred) -> loss`; or one of them for each output by name. `null` leaves the
            loss and the metrics to the network's own `compile`.
        loss_weights: The weight of each output's loss, by name.
        metrics: Metrics in the same ways; a list, or a list for each output by name.
        weighted_metrics: The same, weighted by `sample_weight`.
        class_weight: The weight of each class in the training loss, by number.
        targets: The array that is the target, or the array of each output by name, where names do not tell.
        trainable: Patterns of paths of variables, such as `head/*`, that train; all others are frozen.
            `null` leaves it to the network.
        signatures: The path of a function `(network) -> {name: tf.function}` of further signatures.
    """

    def __init__(
        self,
        *,
        network: str,
        arguments: dict[str, Any] | None = None,
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        class_weight: dict[int, float] | None = None,
        targets: Any = None,
        trainable: list[str] | None = None,
        signatures: str | None = None,
    ) -> None:
        self.network = network
        self.arguments = arguments or {}
        self.loss = loss
        self.loss_weights = loss_weights
        self.metrics = metrics
        self.weighted_metrics = weighted_metrics
        self.class_weight = class_weight or {}
        self.targets = targets
        self.trainable = trainable
        self.signatures = signatures
        self._train: Mapping[str, Any] = {}
        _check_network(network)
        if signatures is not None:
            _check_path("model.signatures", signatures)
        given = {"loss": loss, "metrics": metrics, "weighted_metrics": weighted_metrics}
        for key, value in given.items():
            for path in _paths_in(value):
                _check_path(f"model.{key}", path)
        if loss is None and (metrics or weighted_metrics):
            raise ValueError(
                "model.metrics needs model.loss: without it, the loss and the metrics are those that the "
                f"network was compiled with. Received: {metrics or weighted_metrics}."
            )

    def arrays(self, metadata: Mapping[str, Any]) -> None:
        """Return `None`: the network says what it takes, and `build` checks it."""

    def fit_preprocessing(self, train: Mapping[str, Any]) -> None:
        """Keep the training split, to which `build` fits layers such as `Normalization`.

        Args:
            train: Arrays `[N, ...]` by name.
        """
        self._train = train

    def build(self, batch: Mapping[str, tf.TensorSpec], metadata: Mapping[str, Any]) -> BuiltModel:
        """Make the network, and the signatures `serving_default`, `evaluate` and, if need be, `metrics`.

        Raises:
            ValueError: The network cannot be made, does not fit the data, or needs what only Keras' own
                `fit` does, such as a `train_step` of its own.
        """
        # Not above: the module needs Keras, which is imported once the configuration is known to be right.
        from models.keras_functions import Functions, fit_preprocessing, tables_of, wire

        network = self._make(metadata)
        _check_supported(network)
        wiring = wire(network, batch, self.targets)
        without = [name for name in wiring.outputs if name not in wiring.targets]
        if isinstance(self.loss, Mapping) and "class_name" not in self.loss:
            without = [name for name in without if self.loss.get(name) is not None]
        if self.loss is not None and without:
            raise ValueError(
                "The data must have a target for each output that has a loss. "
                f"Missing: {', '.join(without)}. It has {sorted(batch)}. "
                "Set model.targets={output: array}, or give model.loss by output."
            )
        fit_preprocessing(network, wiring.inputs, self._train)
        if self.trainable is not None:
            _freeze(network, self.trainable)
        self._compile(network)
        functions = Functions(wiring, batch, self.class_weight)
        return BuiltModel(
            weights=weights_of(network),
            loss=functions.loss,
            signatures={**self._further(network), **functions.signatures()},
            score=functions.score(),
            network=wiring.portable(batch),
            tables=tables_of(network),
        )

    def _make(self, metadata: Mapping[str, Any]) -> keras.Model:
        import keras
        from keras.src.backend.common import global_state

        # Keras numbers layers without a name over the whole process, and a checkpoint has their names.
        global_state.set_global_attribute("object_name_uids", None)
        if self.network.endswith(".keras"):
            network = keras.saving.load_model(Path(self.network).expanduser(), safe_mode=True)
        else:
            function = imported(self.network)
            try:
                network = function(metadata, **self.arguments)
            except Exception as error:  # The function is the user's.
                source = getattr(getattr(function, "__code__", None), "co_filename", None)
                frames = traceback.extract_tb(error.__traceback__)
                lines = [
                    f"{frame.filename}, line {frame.lineno}: " for frame in frames if frame.filename == source
                ]
                raise ValueError(
                    f"model.network={self.network} must make a network of the metadata, which has "
                    f"{sorted(metadata)}, and of the arguments {sorted(self.arguments)}. "
                    f"{lines[-1] if lines else ''}{type(error).__name__}: {error}"
                ) from error
        if not isinstance(network, keras.Model):
            raise ValueError(f"model.network must give a keras.Model. {self.network} gave {network!r}.")
        return network

    def _compile(self, network: keras.Model) -> None:
        """Compile the network with the loss and the metrics of the configuration, if it states a loss."""
        if self.loss is None:
            if not getattr(network, "compiled", False) or network.loss is None:
                raise ValueError(
                    "model.loss must be given, unless the network is compiled with a loss. "
                    "Add model.loss=mse, for instance."
                )
            return
        import keras

        try:
            network.compile(
                optimizer=None,
                loss=_resolved(self.loss, keras.losses.get),
                loss_weights=self.loss_weights,
                metrics=_resolved(self.metrics, keras.metrics.get),
                weighted_metrics=_resolved(self.weighted_metrics, keras.metrics.get),
                jit_compile=False,
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"model.loss and model.metrics must be Keras' own. {error}") from error

    def _further(self, network: keras.Model) -> Mapping[str, Any]:
        return {} if self.signatures is None else imported(self.signatures)(network)


def imported(path: str) -> Any:
    """Return what a path such as `mine.nets.classifier` names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _resolved(value: Any, get: Callable[[Any], Any]) -> Any:
    """Return losses or metrics, with an object in place of each path and each class with its arguments.

    Args:
        value: The value of the configuration: a name, a path such as `mine.losses.focal`, a class of Keras as
            `{class_name: Huber, config: {delta: 2.0}}`, or a list or mapping of them.
        get: Returns the object of a class with its arguments.
    """
    if isinstance(value, str) and "." in value:
        return imported(value)
    if isinstance(value, Mapping) and "class_name" in value:
        return get({"config": {}, **value})
    if isinstance(value, Mapping):
        return {key: _resolved(item, get) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_resolved(item, get) for item in value]
    return value


def _paths_in(value: Any) -> Iterator[str]:
    """Yield the paths of the user's own functions among losses or metrics."""
    if isinstance(value, str) and "." in value:
        yield value
    elif isinstance(value, Mapping) and "class_name" not in value:
        yield from itertools.chain.from_iterable(map(_paths_in, value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from itertools.chain.from_iterable(map(_paths_in, value))


def _check_network(network: str) -> None:
    """Check, without importing anything of the user's, that a network can be found.

    Raises:
        ValueError: There is no such file or function.
    """
    if network.endswith(".keras"):
        if not Path(network).expanduser().is_file():
            raise ValueError(f"model.network must name a .keras file or a function. Not found: {network}.")
    else:
        _check_path("model.network", network)


def _check_path(key: str, path: str) -> None:
    """Check that a module and a name in it exist. The module is read, not run: it may import TensorFlow."""
    module, _, name = path.rpartition(".")
    if hasattr(sys.modules.get(module), name):
        return
    try:
        found = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        found = None
    if found is None:
        ours = __name__.partition(".")[0]
        is_ours = module.partition(".")[0] == ours
        own = f" {ours} is Roundtrip's own package: yours needs another name." if is_ours else ""
        raise ValueError(
            f"{key} must be the path of a function, such as mine.nets.classifier, in a module that Python "
            f"finds from the working directory or PYTHONPATH. Received: {path}.{own}"
        )
    # A folder without a file `__init__.py` is a package without functions.
    tree = ast.parse(Path(found.origin).read_text() if found.origin else "")
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    # A name that is imported or assigned is taken for a function: only running the module would tell.
    others = [ast.unparse(node) for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    if name not in names and not any(name in line for line in others):
        where = found.origin or found.name
        raise ValueError(f"{key} must name a function of {where}. Received: {name}. Known: {sorted(names)}.")


def _check_supported(network: keras.Model) -> None:
    """Check that a network needs no more than its layers, its loss and its metrics.

    Raises:
        ValueError: It has steps of its own, or layers that carry state from batch to batch.
    """
    import keras

    own = [
        name
        for name in ("train_step", "test_step", "predict_step")
        if getattr(type(network), name) is not getattr(keras.Model, name)
    ]
    if own:
        raise ValueError(
            f"model.network must leave the steps to Roundtrip. {type(network).__name__} has {', '.join(own)} "
            "of its own. Write a class as models.base.Model describes, or override compute_loss instead."
        )
    if stateful := [layer.name for layer in network._flatten_layers() if getattr(layer, "stateful", False)]:
        raise ValueError(
            f"Layers must not carry state from one batch to the next, since batches are shuffled. Stateful: "
            f"{', '.join(stateful)}. Use stateful=False, or write a class as models.base.Model describes: "
            "models.char_lstm carries state."
        )


def _freeze(network: keras.Model, patterns: Sequence[str]) -> None:
    """Freeze every layer of which no variable fits a pattern, and every other variable that fits none.

    Raises:
        ValueError: A pattern fits no variable.
    """

    def fits(path: str) -> bool:
        return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)

    paths = [variable.path for variable in network.weights]
    if unused := [pattern for pattern in patterns if not fnmatch.filter(paths, pattern)]:
        raise ValueError(f"model.trainable must fit paths of variables. {unused} fit none of {paths}.")
    # Whatever the network froze by itself: a frozen model hides that a layer inside of it is not.
    network.trainable = True
    for layer in network._flatten_layers(include_self=False):
        if layer.weights and not layer._layers:
            # Of all its variables, since a BatchNormalization without any that train has averages.
            layer.trainable = any(fits(variable.path) for variable in layer.weights)
        for variable in layer._trainable_variables:
            variable.trainable = fits(variable.path)
    if not network.trainable_variables:
        raise ValueError(
            f"model.trainable must fit paths of variables that can train. {list(patterns)} fit others only."
        )
