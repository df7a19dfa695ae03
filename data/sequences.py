"""Synthetic sequences: standard normal features with random labels."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from data.base import Dataset


class Sequences:
    """Features `[N, T, F]` float32 ~ N(0, 1), labels `[N]` int32 in [0, C), both drawn from `seed`.

    Features and labels are independent, so a model can learn nothing that holds on the test split.

    Args:
        batch_size: Rows in a batch.
        num_train: Rows of the training split.
        num_test: Rows of the test split.
        num_steps: T, the number of time steps.
        num_features: F, the number of features in each time step.
        num_classes: C, the number of classes.
        seed: Seed of the random numbers. It is not the seed of the run, so that runs that differ in their
            seeds train on the same data.
    """

    def __init__(
        self,
        *,
        batch_size: Annotated[int, ">= 1"] = 32,
        num_train: Annotated[int, ">= 1"] = 64,
        num_test: Annotated[int, ">= 1"] = 64,
        num_steps: Annotated[int, ">= 1"] = 10,
        num_features: Annotated[int, ">= 1"] = 30,
        num_classes: Annotated[int, ">= 2"] = 5,
        seed: Annotated[int, ">= 0"] = 0,
    ) -> None:
        self.batch_size = batch_size
        self.num_train = num_train
        self.num_test = num_test
        self.num_steps = num_steps
        self.num_features = num_features
        self.num_classes = num_classes
        self.seed = seed

    def load(self) -> Dataset:
        """Draw both splits."""
        generator = np.random.default_rng(self.seed)
        splits = []
        for num_rows in (self.num_train, self.num_test):
            shape = (num_rows, self.num_steps, self.num_features)
            features = generator.standard_normal(shape, dtype=np.float32)
            labels = generator.integers(self.num_classes, size=num_rows, dtype=np.int32)
            splits.append({"features": features, "labels": labels})
        return Dataset(train=splits[0], test=splits[1], batch_size=self.batch_size)
