"""Bidirectional GRU classifier of sequences (Cho et al., 2014, arXiv:1406.1078)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from models.base import (
    ArraySpec,
    BuiltModel,
    classification_sums,
    classifier,
    classify,
    cross_entropy,
    indices,
    signature,
    weights_of,
)

if TYPE_CHECKING:
    import tensorflow as tf

    from models.base import Tensors


class GRUClassifier:
    """Bidirectional GRU, mean over time of the concatenated outputs, dense layer to the classes.

    Batch: features `[B, T, F]` float32, labels `[B]` integers in [0, C).

    Args:
        num_features: F, the number of features in each time step.
        units: H, the number of units in each direction.
        num_classes: C, the number of classes.
    """

    def __init__(
        self,
        *,
        num_features: Annotated[int, ">= 1"] = 30,
        units: Annotated[int, ">= 1"] = 10,
        num_classes: Annotated[int, ">= 2"] = 5,
    ) -> None:
        self.num_features = num_features
        self.units = units
        self.num_classes = num_classes

    def arrays(self, metadata: Mapping[str, Any]) -> Mapping[str, ArraySpec]:
        """Return the specs of features and labels."""
        return {
            "features": ArraySpec((None, None, self.num_features), {"float32": None}),
            "labels": indices(self.num_classes),
        }

    def _network(self) -> Any:
        import keras

        layers = keras.layers
        return keras.Sequential(
            [
                keras.Input((None, self.num_features), name="features"),
                layers.Bidirectional(
                    # On a machine with a GPU, Keras would trace the cuDNN kernel into the exported graph. The
                    # graph would then not run on a machine without a GPU.
                    layers.GRU(self.units, return_sequences=True, use_cudnn=False, name="gru"),
                    name="bidirectional",
                ),
                layers.GlobalAveragePooling1D(name="mean_over_time"),
                layers.Dense(self.num_classes, name="output"),
            ],
            name="gru_classifier",
        )

    def build(self, batch: Mapping[str, tf.TensorSpec], metadata: Mapping[str, Any]) -> BuiltModel:
        """Make the variables, the loss and the signatures.

        `predict_dataset` divides the features into batches by a `tf.data` pipeline that is part of the graph.
        A program that restores the export therefore restores the input pipeline, too.
        """
        import tensorflow as tf

        features_spec = tf.TensorSpec([None, None, self.num_features], tf.float32, "features")
        network = self._network()

        def logits_of(features: tf.Tensor) -> tf.Tensor:
            output = network.get_layer("output")
            return tf.matmul(_mean_over_time(network, features), output.kernel.value) + output.bias.value

        def loss(batch: Tensors, seed: tf.Tensor) -> tuple[tf.Tensor, Tensors]:
            return tf.reduce_mean(cross_entropy(logits_of(batch["features"]), batch["labels"])), {}

        @signature(features_spec)
        def serving_default(features: tf.Tensor) -> Tensors:
            return classify(logits_of(features))

        @signature(features_spec, tf.TensorSpec([], tf.int64, "batch_size"))
        def predict_dataset(features: tf.Tensor, batch_size: tf.Tensor) -> Tensors:
            # Without the decorator, `reduce` hands the function to AutoGraph. It is to be traced as it is
            # written, like the signature.
            @tf.autograph.experimental.do_not_convert
            def append(logits: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
                return tf.concat([logits, logits_of(rows)], axis=0)

            batches = tf.data.Dataset.from_tensor_slices(features).batch(batch_size)
            return {"logits": batches.reduce(tf.zeros([0, self.num_classes]), append)}

        @signature(batch["features"], batch["labels"])
        def evaluate(features: tf.Tensor, labels: tf.Tensor) -> Tensors:
            return classification_sums(logits_of(features), labels)

        @signature(tf.TensorSpec([None, self.num_classes], tf.float32, "logits"), batch["labels"])
        def score(logits: tf.Tensor, labels: tf.Tensor) -> Tensors:
            return classification_sums(logits, labels)

        return BuiltModel(
            weights=weights_of(network),
            loss=loss,
            signatures={
                "serving_default": serving_default,
                "predict_dataset": predict_dataset,
                "evaluate": evaluate,
            },
            score=score,
            network=classifier(network),
        )


def _mean_over_time(network: Any, features: tf.Tensor) -> tf.Tensor:
    """Return the mean over time of the outputs of both directions, `[B, 2H]`, for features `[B, T, F]`.

    The result equals that of the network's own layers. One loop computes a step of both directions, and adds
    the outputs up instead of collecting them. A collection would be a list of tensors whose size is not
    known in advance, which LiteRT cannot hold; and the loop runs fewer operations.
    """
    import tensorflow as tf

    layer = network.get_layer("bidirectional")
    cells = (layer.forward_layer.cell, layer.backward_layer.cell)
    # Keras' GRU has two biases (`reset_after`, as in cuDNN): of the inputs, then of the recurrence.
    recurrent_kernel = tf.stack([cell.recurrent_kernel.value for cell in cells])  # [2, H, 3H]
    recurrent_bias = tf.stack([cell.bias.value[1] for cell in cells])[:, tf.newaxis]  # [2, 1, 3H]
    by_time = tf.transpose(features, [1, 0, 2])  # [T, B, F]
    forward, backward = (
        tf.tensordot(by_time, cell.kernel.value, axes=1) + cell.bias.value[0] for cell in cells
    )
    projected = tf.stack([forward, tf.reverse(backward, [0])], axis=1)  # [T, 2, B, 3H]
    num_steps = tf.shape(by_time)[0]

    # The gates in the order of Keras' kernels: update z, reset r, candidate (arXiv:1406.1078, equations 5
    # to 8, but with r applied after the recurrent product).
    def step(t: tf.Tensor, h: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        of_input = tf.split(projected[t], 3, axis=-1)
        of_state = tf.split(tf.matmul(h, recurrent_kernel) + recurrent_bias, 3, axis=-1)
        z = tf.sigmoid(of_input[0] + of_state[0])
        r = tf.sigmoid(of_input[1] + of_state[1])
        h = z * h + (1 - z) * tf.tanh(of_input[2] + r * of_state[2])
        return t + 1, h, total + h

    zeros = tf.zeros([2, tf.shape(features)[0], recurrent_kernel.shape[1]])
    _, _, total = tf.while_loop(
        lambda t, *_: t < num_steps,
        step,
        (tf.constant(0), zeros, zeros),
        # XLA differentiates a loop only if the number of steps has an upper bound.
        maximum_iterations=features.shape[1],
    )
    return tf.concat([total[0], total[1]], axis=-1) / tf.cast(num_steps, tf.float32)
