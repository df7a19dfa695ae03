"""One dense unit that learns to add its two inputs: the smallest regressor worth serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models.base import ArraySpec, BuiltModel, signature, weights_of

if TYPE_CHECKING:
    import tensorflow as tf

    from models.base import Tensors


class DenseRegressor:
    """A dense unit on two features, trained with the l2 loss: the sum of e^2 / 2 over the batch.

    Batch: feature `[B, 2]` float32, target `[B, 1]` float32. The metrics are `loss` (mean of e^2 / 2) and
    `absolute_error` (mean of |e|).
    """

    def arrays(self, metadata: Mapping[str, Any]) -> Mapping[str, ArraySpec]:
        """Return the specs of feature and target."""
        return {
            "feature": ArraySpec((None, 2), {"float32": None}),
            "target": ArraySpec((None, 1), {"float32": None}),
        }

    def build(self, batch: Mapping[str, tf.TensorSpec], metadata: Mapping[str, Any]) -> BuiltModel:
        """Make the variables, the loss and the signatures.

        `serving_default` takes a number `[B, 1]` and repeats it to make the feature `[B, 2]`.
        `predict_features` takes the feature itself.
        """
        import keras
        import tensorflow as tf

        network = keras.Sequential(
            [keras.Input((2,), name="feature"), keras.layers.Dense(1, name="output")],
            name="dense_regressor",
        )

        # `tf.nn.l2_loss` is a sum over the batch. The metric `loss` is a mean, as in every model: the two
        # differ by the factor of the batch size.
        def loss(batch: Tensors, seed: tf.Tensor) -> tuple[tf.Tensor, Tensors]:
            return tf.nn.l2_loss(network(batch["feature"]) - batch["target"]), {}

        @signature(tf.TensorSpec([None, 1], tf.float32, "number"))
        def serving_default(number: tf.Tensor) -> Tensors:
            return {"output": network(tf.tile(number, [1, 2]))}

        @signature(tf.TensorSpec([None, 2], tf.float32, "feature"))
        def predict_features(feature: tf.Tensor) -> Tensors:
            return {"output": network(feature)}

        def sums(output: tf.Tensor, target: tf.Tensor) -> Tensors:
            error = output - target
            return {
                "loss_sum": tf.reduce_sum(tf.square(error)) / 2,
                "absolute_error_sum": tf.reduce_sum(tf.abs(error)),
                "count": tf.size(error),
            }

        @signature(batch["feature"], batch["target"])
        def evaluate(feature: tf.Tensor, target: tf.Tensor) -> Tensors:
            return sums(network(feature), target)

        return BuiltModel(
            weights=weights_of(network),
            loss=loss,
            signatures={
                "serving_default": serving_default,
                "predict_features": predict_features,
                "evaluate": evaluate,
            },
            score=signature(tf.TensorSpec([None, 1], tf.float32, "output"), batch["target"])(sums),
            network=keras.Model({"feature": network.inputs[0]}, {"output": network.outputs[0]}),
            session_graph=serving_default,
        )
