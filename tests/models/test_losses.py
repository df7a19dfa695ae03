"""The loss that is trained on, against the loss that is evaluated."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from models.base import ArraySpec
from models.mnist_cnn import MnistCNN
from pipeline.training.setup import batch_specs
from tests.cases import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_training_loss_is_the_evaluated_one(case: Case) -> None:
    dataset = case.load()
    built = case.model().build(batch_specs(dataset), dataset.metadata)
    arrays = {name: array[: dataset.batch_size] for name, array in dataset.train.items()}
    batch = {name: tf.constant(array) for name, array in arrays.items()}
    if dataset.ordered:
        batch |= built.signatures["initial_state"](tf.constant(dataset.batch_size))
    loss, state = built.loss(batch, tf.constant([0, 0]))
    outputs = built.signatures["evaluate"](**batch)
    mean = outputs["loss_sum"] / tf.cast(outputs["count"], tf.float32)
    # The dense regressor's loss is a sum over the batch; the others' are means.
    expected = outputs["loss_sum"] if case.name == "dense" else mean
    np.testing.assert_allclose(loss.numpy(), expected.numpy(), rtol=1e-6)
    assert set(state) == set(outputs) & set(batch)
    for name, value in state.items():
        np.testing.assert_allclose(value.numpy(), outputs[name].numpy(), rtol=1e-5, atol=1e-6)


def test_bytes_and_fractions_are_the_same_image() -> None:
    specs = {
        "images": tf.TensorSpec([None, 28, 28, 1], tf.float32, "images"),
        "labels": tf.TensorSpec([None], tf.uint8, "labels"),
    }
    built = MnistCNN().build(specs, {})
    images = np.random.default_rng(0).integers(256, size=(2, 28, 28, 1), dtype=np.uint8)
    from_bytes = built.signatures["serving_uint8"](images=tf.constant(images))
    from_fractions = built.signatures["serving_default"](images=tf.constant(images) / 255)
    np.testing.assert_allclose(
        from_bytes["logits"].numpy(), from_fractions["logits"].numpy(), rtol=1e-5, atol=1e-6
    )
    assert built.signatures["evaluate"](images=images / np.float32(255), labels=[1, 2])["count"] == 2


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (ArraySpec((None, 3), {"float32": None}), "[any, 3] float32"),
        (ArraySpec((), {"uint8": (0, 9), "int32": (0, 9)}), "[] uint8/int32 in [0, 9]"),
        (ArraySpec((None,), {"uint8": None, "float32": (0, 1)}), "[any] uint8 or float32 in [0, 1]"),
    ],
)
def test_a_spec_reads_like_a_sentence(spec: ArraySpec, text: str) -> None:
    assert str(spec) == text
