"""Characters of a UTF-8 text, as parallel streams of consecutive sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np

from data.base import Arrays, DataError, Dataset


class Text:
    """Tokens `[N, T]` and targets `[N, T]`: indices of characters, and of the characters that follow them.

    `load` cuts each split into `batch_size` streams of equal length. Batch i holds the i-th sequence of
    `sequence_length` characters of every stream, so a model can carry its state from batch to batch.
    The vocabulary, `metadata["vocabulary"]`, is a string of all distinct characters of the text, sorted by
    code point. The dtype is the first of uint8, uint16 and int32 that holds every index.

    Args:
        path: A UTF-8 text file. `None` is the language reference that is part of Python (`pydoc_data`).
        batch_size: Number of streams, which is the number of rows in a batch.
        sequence_length: T, the characters in a row: the gradient does not go back further.
        test_fraction: Fraction of the text, from the end, that is the test split.
    """

    def __init__(
        self,
        *,
        path: Path | None = None,
        batch_size: Annotated[int, ">= 1"] = 16,
        sequence_length: Annotated[int, ">= 1"] = 100,
        test_fraction: Annotated[float, "> 0", "< 1"] = 0.1,
    ) -> None:
        self.path = path
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.test_fraction = test_fraction

    def load(self) -> Dataset:
        """Read the text and cut it into streams.

        Raises:
            DataError: The file cannot be read, is not UTF-8, or is too short.
        """
        text = self._read()
        vocabulary = "".join(sorted(set(text)))
        # A code point is four bytes in UTF-32, so NumPy looks all characters up without a Python loop.
        code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known = np.array([ord(character) for character in vocabulary], np.uint32)
        tokens = np.searchsorted(known, code_points).astype(_narrowest(len(vocabulary)))
        num_test = round(len(tokens) * self.test_fraction)
        return Dataset(
            train=self._streams(tokens[: len(tokens) - num_test]),
            test=self._streams(tokens[len(tokens) - num_test :]),
            batch_size=self.batch_size,
            ordered=True,
            metadata={"vocabulary": vocabulary},
        )

    def _read(self) -> str:
        if self.path is None:
            from pydoc_data.topics import topics

            return "\n\n".join(topics[name] for name in sorted(topics))
        try:
            return self.path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path} must be UTF-8 text. Byte {error.start} is not: {error.reason}."
            ) from error
        except OSError as error:
            raise DataError(f"data.path must name a text file. {self.path}: {error.strerror}.") from error

    def _streams(self, tokens: np.ndarray) -> Arrays:
        num_steps = (len(tokens) - 1) // self.batch_size // self.sequence_length
        if num_steps < 1:
            raise DataError(
                f"Each split of the text must have at least {self.batch_size} streams x "
                f"{self.sequence_length} characters + 1. Received: {len(tokens)}. Use a longer text, "
                "or a smaller data.batch_size or data.sequence_length."
            )
        shape = (self.batch_size, num_steps, self.sequence_length)
        used = self.batch_size * num_steps * self.sequence_length

        def rows(values: np.ndarray) -> np.ndarray:
            # Row step * batch_size + stream: consecutive batches then continue each stream.
            in_order = values[:used].reshape(shape).swapaxes(0, 1)  # [step, stream, T]
            return np.ascontiguousarray(in_order).reshape(-1, self.sequence_length)  # [N, T]

        return {"tokens": rows(tokens), "targets": rows(tokens[1:])}


def _narrowest(vocabulary_size: int) -> type[np.integer]:
    if vocabulary_size <= 1 << 8:
        return np.uint8
    return np.uint16 if vocabulary_size <= 1 << 16 else np.int32
