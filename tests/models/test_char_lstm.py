"""What only the language model does: sampling inside the graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from models.char_lstm import CharLSTM

VOCABULARY = "\n abcé😀"
Sample = Callable[..., str]


@pytest.fixture(scope="module")
def sample() -> Sample:
    """Return `generate` of a model with fixed weights, as a function of Python values."""
    specs = {name: tf.TensorSpec([None, 5], tf.uint8, name) for name in ("tokens", "targets")}
    built = CharLSTM(units=4).build(specs, {"vocabulary": VOCABULARY})
    for number, variable in enumerate(built.variables.values()):
        values = np.sin(np.arange(variable.shape.num_elements()) + number)
        variable.assign(values.reshape(variable.shape).astype(np.float32))

    def generate(
        prompt: str = "a", length: int = 10, temperature: float = 1.0, seed: tuple[int, int] = (0, 0)
    ) -> str:
        outputs = built.signatures["generate"](
            prompt=tf.constant(prompt),
            length=tf.constant(length),
            temperature=tf.constant(temperature),
            seed=tf.constant(seed),
        )
        text: bytes = outputs["text"].numpy()
        return text.decode()

    return generate


@pytest.mark.parametrize("prompt", ["", "a", "abc é😀\n"])
@pytest.mark.parametrize("length", [0, 1, 7])
def test_the_text_is_the_prompt_and_as_many_characters(sample: Sample, prompt: str, length: int) -> None:
    text = sample(prompt, length)
    assert text.startswith(prompt)
    assert len(text) == len(prompt) + length
    assert set(text) <= set(VOCABULARY)


def test_a_negative_length_is_none(sample: Sample) -> None:
    assert sample("abc", -2) == "abc"


def test_the_seed_decides(sample: Sample) -> None:
    assert sample(seed=(1, 2), length=30) == sample(seed=(1, 2), length=30)
    assert len({sample(seed=(1, n), length=30) for n in range(10)}) == 10
    assert len({sample("", 1, seed=(n, 0)) for n in range(50)}) > 3


def test_a_longer_text_goes_on_from_the_shorter(sample: Sample) -> None:
    assert sample(length=40).startswith(sample(length=20))


def test_temperature_0_takes_the_likeliest(sample: Sample) -> None:
    assert len({sample(temperature=0.0, seed=(0, n)) for n in range(5)}) == 1
    assert sample(temperature=0.0) == sample(temperature=1e-6)


@pytest.mark.parametrize("prompt", ["abz", "~", "\x00"])
def test_a_character_outside_the_vocabulary_is_refused(sample: Sample, prompt: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="outside the vocabulary"):
        sample(prompt)


def test_a_vocabulary_is_needed() -> None:
    with pytest.raises(ValueError, match=r"states its vocabulary. Received metadata: \['x'\]"):
        CharLSTM().arrays({"x": 1})
