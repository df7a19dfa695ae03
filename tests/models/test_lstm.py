"""The recurrence for training against Keras' own layer, in float64: value and every gradient."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.lstm import lstm

T, B, F, H = 7, 3, 5, 4


@pytest.mark.parametrize("use_xla", [False, True], ids=["graph", "xla"])
def test_values_and_gradients_are_keras_own(use_xla: bool) -> None:
    generator = np.random.default_rng(0)

    def random(*shape: int) -> tf.Variable:
        return tf.Variable(generator.normal(size=shape))

    inputs, state_h, state_c = random(B, T, F), random(B, H), random(B, H)
    weights = {"hidden": random(B, T, H), "h": random(B, H), "c": random(B, H)}
    layer = keras.layers.LSTM(H, return_sequences=True, return_state=True, use_cudnn=False, dtype="float64")
    layer.build((B, T, F))
    for variable in layer.weights:
        variable.assign(generator.normal(size=variable.shape))
    kernel, recurrent_kernel, bias = (variable.value for variable in layer.weights)
    sources = [inputs, state_h, state_c, kernel, recurrent_kernel, bias]

    def total(hidden: tf.Tensor, h: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """Weigh every output on its own, so that no error cancels another."""
        parts = ((hidden, "hidden"), (h, "h"), (c, "c"))
        return tf.add_n([tf.reduce_sum(value * weights[name]) for value, name in parts])

    @tf.function(jit_compile=use_xla, autograph=False)
    def ours() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            projected = tf.tensordot(tf.transpose(inputs, [1, 0, 2]), kernel, axes=1) + bias
            hidden, h, c = lstm(projected, recurrent_kernel, state_h, state_c)
            value = total(tf.transpose(hidden, [1, 0, 2]), h, c)
        return value, tape.gradient(value, sources)

    with tf.GradientTape() as tape:
        expected = total(*layer(inputs, initial_state=[state_h, state_c]))
    expected_gradients = tape.gradient(expected, sources)
    value, gradients = ours()
    np.testing.assert_allclose(value.numpy(), expected.numpy(), rtol=1e-12)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient.numpy(), expected_gradient.numpy(), rtol=1e-10, atol=1e-12)
