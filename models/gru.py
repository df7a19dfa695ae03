"""Bidirectional GRU classifier of sequences (Cho et al., 2014, arXiv:1406.1078)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from models.base import (
    ArraySpec,
    BuiltModel,
    classification_sums,
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
    """Bidirectional GRU, mean over time of the concatenated outputs, dense to the classes.

    Batch: features `[B, T, F]` float32, labels `[B]` integers in [0, C).
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
        """Describe features and labels."""
        return {
            "features": ArraySpec((None, None, self.num_features), {"float32": None}),
            "labels": indices(self.num_classes),
        }

    def build(self, batch: Mapping[str, tf.TensorSpec], metadata: Mapping[str, Any]) -> BuiltModel:
        """Make the variables, the loss and the signatures.

        `predict_dataset` batches its features with a `tf.data` pipeline that is part of the graph:
        whoever restores the export restores the input pipeline with it.
        """
        import keras
        import tensorflow as tf

        features_spec = tf.TensorSpec([None, None, self.num_features], tf.float32, "features")
        network = keras.Sequential(
            [
                keras.Input((None, self.num_features), name="features"),
                keras.layers.Bidirectional(
                    # The portable kernel: the GPU-only one would be baked into the exported graph.
                    keras.layers.GRU(self.units, return_sequences=True, use_cudnn=False, name="gru"),
                    name="bidirectional",
                ),
                keras.layers.GlobalAveragePooling1D(name="mean_over_time"),
                keras.layers.Dense(self.num_classes, name="output"),
            ],
            name="gru_classifier",
        )

        def loss(batch: Tensors, seed: tf.Tensor) -> tuple[tf.Tensor, Tensors]:
            logits = network(batch["features"])
            return tf.reduce_mean(cross_entropy(logits, batch["labels"])), {}

        @signature(features_spec)
        def serving_default(features: tf.Tensor) -> Tensors:
            return classify(network(features))

        @signature(features_spec, tf.TensorSpec([], tf.int64, "batch_size"))
        def predict_dataset(features: tf.Tensor, batch_size: tf.Tensor) -> Tensors:
            def append(logits: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
                return tf.concat([logits, network(rows)], axis=0)

            batches = tf.data.Dataset.from_tensor_slices(features).batch(batch_size)
            return {"logits": batches.reduce(tf.zeros([0, self.num_classes]), append)}

        @signature(batch["features"], batch["labels"])
        def evaluate(features: tf.Tensor, labels: tf.Tensor) -> Tensors:
            return classification_sums(network(features), labels)

        return BuiltModel(
            weights=weights_of(network),
            loss=loss,
            signatures={
                "serving_default": serving_default,
                "predict_dataset": predict_dataset,
                "evaluate": evaluate,
            },
        )
