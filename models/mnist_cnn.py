"""Convolutional classifier of 28 x 28 grey images."""

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

IMAGE = (28, 28, 1)


class MnistCNN:
    """Two convolutions with max-pooling, two hidden dense layers and a dense layer to the classes.

    The activation between layers is ReLU.

    Batch: images `[B, 28, 28, 1]`, uint8 in [0, 255] or float32 in [0, 1]; labels `[B]` integers in
    [0, C). The graph divides uint8 images by 255.

    Args:
        filters: Filters of each convolution.
        hidden_units: Units of each hidden dense layer.
        num_classes: C, the number of classes.
    """

    def __init__(
        self,
        *,
        filters: Annotated[int, ">= 1"] = 16,
        hidden_units: Annotated[int, ">= 1"] = 100,
        num_classes: Annotated[int, ">= 2"] = 10,
    ) -> None:
        self.filters = filters
        self.hidden_units = hidden_units
        self.num_classes = num_classes

    def arrays(self, metadata: Mapping[str, Any]) -> Mapping[str, ArraySpec]:
        """Return the specs of images and labels."""
        return {
            "images": ArraySpec((None, *IMAGE), {"uint8": None, "float32": (0, 1)}),
            "labels": indices(self.num_classes),
        }

    def _network(self) -> Any:
        import keras

        layers = keras.layers
        return keras.Sequential(
            [
                keras.Input(IMAGE, name="images"),
                layers.Conv2D(self.filters, 5, padding="same", activation="relu", name="convolution_1"),
                layers.MaxPooling2D(2, name="pooling_1"),
                layers.Conv2D(self.filters, 3, padding="same", activation="relu", name="convolution_2"),
                layers.MaxPooling2D(2, name="pooling_2"),
                layers.Flatten(name="flatten"),
                layers.Dense(self.hidden_units, activation="relu", name="hidden_1"),
                layers.Dense(self.hidden_units, activation="relu", name="hidden_2"),
                layers.Dense(self.num_classes, name="output"),
            ],
            name="mnist_cnn",
        )

    def build(self, batch: Mapping[str, tf.TensorSpec], metadata: Mapping[str, Any]) -> BuiltModel:
        """Make the variables, the loss and the signatures, for float32 images in [0, 1] and for uint8."""
        import tensorflow as tf

        network = self._network()

        def logits_of(images: tf.Tensor) -> tf.Tensor:
            if images.dtype == tf.uint8:
                # A division by a constant becomes a product with its inverse, which differs in the last bit
                # from the caller's own division. TensorFlow leaves `divide_no_nan` as it is.
                images = tf.math.divide_no_nan(tf.cast(images, tf.float32), 255.0)
            return network(images)

        def loss(batch: Tensors, seed: tf.Tensor) -> tuple[tf.Tensor, Tensors]:
            logits = logits_of(batch["images"])
            return tf.reduce_mean(cross_entropy(logits, batch["labels"])), {}

        @signature(tf.TensorSpec([None, *IMAGE], tf.float32, "images"))
        def serving_default(images: tf.Tensor) -> Tensors:
            return classify(logits_of(images))

        @signature(tf.TensorSpec([None, *IMAGE], tf.uint8, "images"))
        def serving_uint8(images: tf.Tensor) -> Tensors:
            return classify(logits_of(images))

        @signature(batch["images"], batch["labels"])
        def evaluate(images: tf.Tensor, labels: tf.Tensor) -> Tensors:
            return classification_sums(logits_of(images), labels)

        @signature(tf.TensorSpec([None, self.num_classes], tf.float32, "logits"), batch["labels"])
        def score(logits: tf.Tensor, labels: tf.Tensor) -> Tensors:
            return classification_sums(logits, labels)

        # A TF1 program has no host loop that adds sums up, so its graph also has the means over the batch.
        @signature(
            tf.TensorSpec([None, *IMAGE], tf.float32, "images"), tf.TensorSpec([None], tf.int64, "labels")
        )
        def session_graph(images: tf.Tensor, labels: tf.Tensor) -> Tensors:
            logits = logits_of(images)
            sums = classification_sums(logits, labels)
            count = tf.cast(sums["count"], tf.float32)
            return {
                **classify(logits),
                **sums,
                "accuracy_op": sums["accuracy_sum"] / count,
                "cross_entropy_op": sums["loss_sum"] / count,
            }

        return BuiltModel(
            weights=weights_of(network),
            loss=loss,
            signatures={
                "serving_default": serving_default,
                "serving_uint8": serving_uint8,
                "evaluate": evaluate,
            },
            score=score,
            network=classifier(network),
            session_graph=session_graph,
        )
