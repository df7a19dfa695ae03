"""Character language model: one-hot, LSTM, dense to the vocabulary (Hochreiter & Schmidhuber, 1997)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from models.base import (
    ArraySpec,
    BuiltModel,
    classification_sums,
    cross_entropy,
    indices,
    signature,
    weights_of,
)
from models.lstm import lstm

if TYPE_CHECKING:
    from collections.abc import Callable

    import tensorflow as tf

    from models.base import Tensors


class CharLSTM:
    """An LSTM whose state is carried from each sequence to the next: truncated backpropagation through time.

    Batch: tokens `[B, T]` and targets `[B, T]`, integers in [0, V), indices into the vocabulary. Row b of a
    batch continues row b of the batch before. The metadata of the data must hold `vocabulary`: a string
    of V distinct characters in the order of their code points.

    Args:
        units: H, the number of units.
    """

    def __init__(self, *, units: Annotated[int, ">= 1"] = 500) -> None:
        self.units = units

    def arrays(self, metadata: Mapping[str, Any]) -> Mapping[str, ArraySpec]:
        """Return the specs of tokens and targets.

        Raises:
            ValueError: The metadata holds no vocabulary.
        """
        if not metadata.get("vocabulary"):
            raise ValueError(
                "models.char_lstm.CharLSTM needs data that states its vocabulary. "
                f"Received metadata: {sorted(metadata)}. Use data=text."
            )
        spec = indices(len(metadata["vocabulary"]), rank=2)
        return {"tokens": spec, "targets": spec}

    def _network(self, vocabulary_size: int) -> Any:
        """Return the network: tokens `[B, T]`, state_c and state_h -> probabilities `[B, T, V]`, states."""
        import keras

        tokens = keras.Input((None,), dtype="int32", name="tokens")
        state_c = keras.Input((self.units,), name="state_c")
        state_h = keras.Input((self.units,), name="state_h")
        # On a machine with a GPU, Keras would trace the cuDNN kernel into the exported graph.
        lstm = keras.layers.LSTM(
            self.units, return_sequences=True, return_state=True, use_cudnn=False, name="lstm"
        )
        hidden, last_h, last_c = lstm(
            keras.ops.one_hot(tokens, vocabulary_size), initial_state=[state_h, state_c]
        )
        logits = keras.layers.Dense(vocabulary_size, name="output")(hidden)
        probabilities = keras.layers.Softmax(name="probabilities")(logits)
        return keras.Model(
            {"tokens": tokens, "state_c": state_c, "state_h": state_h},
            {"probabilities": probabilities, "state_c": last_c, "state_h": last_h},
            name="char_lstm",
        )

    def build(self, batch: Mapping[str, tf.TensorSpec], metadata: Mapping[str, Any]) -> BuiltModel:
        """Make the variables, the loss and the signatures.

        `step`, which is also `serving_default`, reads tokens and returns the probabilities of the next ones.
        `initial_state` returns the state before the first token. `generate` samples a text inside the graph.
        """
        import tensorflow as tf

        vocabulary: str = metadata["vocabulary"]
        network = self._network(len(vocabulary))
        kernel = network.get_layer("lstm").cell.kernel.value
        state_c_spec = tf.TensorSpec([None, self.units], tf.float32, "state_c")
        state_h_spec = tf.TensorSpec([None, self.units], tf.float32, "state_h")

        def run(tokens: tf.Tensor, state_c: tf.Tensor, state_h: tf.Tensor) -> tuple[tf.Tensor, Tensors]:
            # A one-hot vector times the kernel is a row of the kernel, and a gather is cheaper.
            by_time = tf.gather(kernel, tf.transpose(tf.cast(tokens, tf.int32)))
            logits, state = _run(network, by_time, state_c, state_h)
            return tf.transpose(logits, [1, 0, 2]), state

        def loss(batch: Tensors, seed: tf.Tensor) -> tuple[tf.Tensor, Tensors]:
            return _training_loss(network, batch)

        @signature(tf.TensorSpec([None, None], tf.int32, "tokens"), state_c_spec, state_h_spec)
        def step(tokens: tf.Tensor, state_c: tf.Tensor, state_h: tf.Tensor) -> Tensors:
            logits, state = run(tokens, state_c, state_h)
            return {"probabilities": tf.nn.softmax(logits), **state}

        @signature(tf.TensorSpec([], tf.int32, "batch_size"))
        def initial_state(batch_size: tf.Tensor) -> Tensors:
            # Two tensors instead of one tensor twice: TensorFlow requires distinct outputs of a signature.
            shape = [batch_size, self.units]
            return {"state_c": tf.zeros(shape), "state_h": tf.zeros(shape)}

        @signature(batch["tokens"], batch["targets"], state_c_spec, state_h_spec)
        def evaluate(
            tokens: tf.Tensor, targets: tf.Tensor, state_c: tf.Tensor, state_h: tf.Tensor
        ) -> Tensors:
            logits, state = run(tokens, state_c, state_h)
            return {**_with_bits(classification_sums(logits, targets)), **state}

        return BuiltModel(
            weights=weights_of(network),
            loss=loss,
            signatures={
                "serving_default": step,
                "step": step,
                "initial_state": initial_state,
                "generate": _generate(run, initial_state, vocabulary),
                "evaluate": evaluate,
            },
            score=_score(len(vocabulary), batch["targets"]),
            network=network,
            session_graph=_session_graph(network),
        )


def _score(vocabulary_size: int, targets_spec: tf.TensorSpec) -> Callable[..., Tensors]:
    """Return the function (probabilities `[B, T, V]`, targets `[B, T]`) -> per-batch sums."""
    import tensorflow as tf

    @signature(tf.TensorSpec([None, None, vocabulary_size], tf.float32, "probabilities"), targets_spec)
    def score(probabilities: tf.Tensor, targets: tf.Tensor) -> Tensors:
        # A quantized probability may be 0. The logarithm of 0 would make every sum infinite.
        return _with_bits(classification_sums(tf.math.log(tf.maximum(probabilities, 1e-37)), targets))

    return score


def _session_graph(network: Any) -> Callable[..., Tensors]:
    """Return the function whose names the tensors of the format `meta_graph` get.

    Inputs: x `[T, B, V]` float32, one-hot; init_state `[2, B, H]` float32, the cell state before the hidden
    state. Outputs: probabilities `[T, B, V]`, current_state_c `[B, H]`, current_state_h `[B, H]`.
    """
    import tensorflow as tf

    kernel = network.get_layer("lstm").cell.kernel.value
    vocabulary_size, units = kernel.shape[0], kernel.shape[1] // 4

    @signature(
        tf.TensorSpec([None, None, vocabulary_size], tf.float32, "x"),
        tf.TensorSpec([2, None, units], tf.float32, "init_state"),
    )
    def session_graph(x: tf.Tensor, init_state: tf.Tensor) -> Tensors:
        logits, state = _run(network, tf.tensordot(x, kernel, axes=1), init_state[0], init_state[1])
        return {
            "probabilities": tf.nn.softmax(logits),
            **{f"current_{name}": value for name, value in state.items()},
        }

    return session_graph


def _with_bits(sums: Tensors) -> Tensors:
    """Return the sums with the loss in bits per character as well; `loss_sum` is in nats."""
    return {**sums, "bits_per_character_sum": sums["loss_sum"] / math.log(2)}


def _run(
    network: Any, by_time: tf.Tensor, state_c: tf.Tensor, state_h: tf.Tensor
) -> tuple[tf.Tensor, Tensors]:
    """Return the logits `[T, B, V]` and the last state for inputs times the input kernel, `[T, B, 4H]`.

    The result equals that of the network's own layers. The loop writes hidden states into one tensor instead
    of a list of tensors: LiteRT cannot hold such a list if the batch size is free.
    """
    import tensorflow as tf

    cell, output = network.get_layer("lstm").cell, network.get_layer("output")
    projected = by_time + cell.bias.value
    recurrent_kernel = cell.recurrent_kernel.value
    num_steps = tf.shape(projected)[0]
    units = recurrent_kernel.shape[0]

    def step(t: tf.Tensor, c: tf.Tensor, h: tf.Tensor, hidden: tf.Tensor) -> tuple[tf.Tensor, ...]:
        i, f, g, o = tf.split(projected[t] + tf.matmul(h, recurrent_kernel), 4, axis=-1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(c)
        return t + 1, c, h, tf.tensor_scatter_nd_update(hidden, [[t]], h[tf.newaxis])

    hidden = tf.zeros([num_steps, tf.shape(state_h)[0], units])
    _, c, h, hidden = tf.while_loop(
        lambda t, *_: t < num_steps, step, (tf.constant(0), state_c, state_h, hidden)
    )
    logits = tf.tensordot(hidden, output.kernel.value, axes=1) + output.bias.value
    return logits, {"state_c": c, "state_h": h}


def _training_loss(network: Any, batch: Tensors) -> tuple[tf.Tensor, Tensors]:
    """Return the mean cross-entropy in nats, and the state after the last step.

    The function uses the variables of the network and the recurrence of `models.lstm`, which is made for
    training. Time is the first dimension. A one-hot vector times the kernel is a row of the kernel.
    """
    import tensorflow as tf

    cell, output = network.get_layer("lstm").cell, network.get_layer("output")
    tokens, targets = (
        tf.transpose(tf.cast(batch[name], tf.int32)) for name in ("tokens", "targets")
    )  # [T, B]
    projected = tf.gather(cell.kernel.value, tokens) + cell.bias.value  # [T, B, 4H]
    hidden, last_h, last_c = lstm(projected, cell.recurrent_kernel.value, batch["state_h"], batch["state_c"])
    logits = tf.tensordot(hidden, output.kernel.value, axes=1) + output.bias.value  # [T, B, V]
    loss = tf.reduce_mean(cross_entropy(logits, targets))
    return loss, {"state_c": last_c, "state_h": last_h}


def _encode(text: tf.Tensor, code_points: tf.Tensor) -> tf.Tensor:
    """Return the tokens `[L]` int32 of a UTF-8 text `[]`.

    The graph fails with InvalidArgumentError on a character outside the vocabulary.

    Args:
        text: String `[]`.
        code_points: The vocabulary as sorted code points, int32 `[V]`.
    """
    import tensorflow as tf

    characters = tf.strings.unicode_decode(text, "UTF-8")
    # `searchsorted` returns V for a code point above all others, which would be out of the range of `gather`.
    tokens = tf.minimum(tf.searchsorted(code_points, characters), tf.size(code_points) - 1)
    known = tf.equal(tf.gather(code_points, tokens), characters)
    check = tf.debugging.Assert(
        tf.reduce_all(known),
        ["prompt has characters outside the vocabulary:", tf.boolean_mask(characters, ~known)],
    )
    with tf.control_dependencies([check]):
        return tf.identity(tokens)


def _sample(logits: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Return a token `[B]` int32 drawn from logits `[B, V]`; at temperature 0, the most probable token."""
    import tensorflow as tf

    greedy = tf.argmax(logits, axis=-1, output_type=tf.int32)
    # Both branches of `where` are computed, so the division must not be by 0 in the branch that is not taken.
    scaled = logits / tf.where(temperature > 0, temperature, 1.0)
    drawn = tf.random.stateless_categorical(scaled, 1, seed, dtype=tf.int32)[:, 0]
    return tf.where(temperature > 0, drawn, greedy)


def _generate(
    run: Callable[..., tuple[tf.Tensor, Tensors]],
    initial_state: Callable[..., Tensors],
    vocabulary: str,
) -> Callable[..., Tensors]:
    """Return the signature that samples a text by a loop inside the graph.

    Inputs: prompt `[]` string, length `[]` int32, temperature `[]` float32 >= 0, seed `[2]` int32. Output:
    text `[]` string, which is the prompt followed by `length` sampled characters. With an empty prompt, the
    first character is drawn with equal probabilities. At temperature 0 each character is the most probable.

    The vocabulary is a sorted constant of the graph. A lookup table would need to be initialised by every
    loader.
    """
    import tensorflow as tf

    code_points = tf.constant([ord(character) for character in vocabulary], tf.int32)

    @signature(
        tf.TensorSpec([], tf.string, "prompt"),
        tf.TensorSpec([], tf.int32, "length"),
        tf.TensorSpec([], tf.float32, "temperature"),
        tf.TensorSpec([2], tf.int32, "seed"),
    )
    def generate(prompt: tf.Tensor, length: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor) -> Tensors:
        given = _encode(prompt, code_points)
        first = tf.random.stateless_uniform([1], seed, 0, len(vocabulary), tf.int32)
        start = tf.cond(tf.size(given) > 0, lambda: given, lambda: first)
        # The random first character of an empty prompt is the first of the `length` sampled ones.
        total = tf.size(given) + tf.maximum(length, 0)
        num_sampled = tf.maximum(total - tf.size(start), 0)

        def append(
            position: tf.Tensor, sampled: tf.TensorArray, logits: tf.Tensor, state: Tensors
        ) -> tuple[tf.Tensor, tf.TensorArray, tf.Tensor, Tensors]:
            # The draw is a function of the seed and the position, so the same request gets the same text.
            step_seed = tf.random.experimental.stateless_fold_in(seed, position)
            token = _sample(logits[:, -1], temperature, step_seed)
            logits, state = run(token[:, tf.newaxis], **state)
            return position + 1, sampled.write(position, token[0]), logits[:, -1:], state

        logits, state = run(start[tf.newaxis, :], **initial_state(1))
        _, sampled, _, _ = tf.while_loop(
            lambda position, *_: position < num_sampled,
            append,
            (tf.constant(0), tf.TensorArray(tf.int32, num_sampled), logits[:, -1:], state),
        )
        text = tf.concat([start, sampled.stack()], axis=0)[:total]
        return {"text": tf.strings.unicode_encode(tf.gather(code_points, text), "UTF-8")}

    return generate
