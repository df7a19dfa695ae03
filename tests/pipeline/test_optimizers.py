from __future__ import annotations

from typing import Any

import pytest

from pipeline.optimizers import SGD, Adam, RMSprop


def rates(schedule: Any, steps: list[int]) -> list[float]:
    return [float(schedule(step)) for step in steps]


def test_constant_is_a_number() -> None:
    assert Adam(learning_rate=0.1).build_schedule(10) == 0.1


def test_warm_up_is_linear_then_constant() -> None:
    schedule = SGD(learning_rate=0.8, warmup_steps=4).build_schedule(10)
    assert rates(schedule, [0, 1, 2, 4, 9]) == pytest.approx([0, 0.2, 0.4, 0.8, 0.8])


def test_cosine_ends_at_the_final_fraction() -> None:
    schedule = RMSprop(learning_rate=1, schedule="cosine", final_fraction=0.1).build_schedule(10)
    assert rates(schedule, [0, 5, 10]) == pytest.approx([1, 0.55, 0.1])


def test_cosine_follows_the_warm_up() -> None:
    schedule = Adam(learning_rate=1, schedule="cosine", warmup_steps=2).build_schedule(12)
    assert rates(schedule, [0, 1, 2, 7, 12]) == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        (
            Adam(learning_rate=0.1, beta_1=0.8, beta_2=0.7, epsilon=1e-3),
            {"name": "adam", "beta_1": 0.8, "beta_2": 0.7, "epsilon": 1e-3},
        ),
        (
            SGD(learning_rate=0.1, momentum=0.5, nesterov=True),
            {"name": "sgd", "momentum": 0.5, "nesterov": True},
        ),
        (
            RMSprop(learning_rate=0.1, rho=0.8, momentum=0.2, epsilon=1e-3),
            {"name": "rmsprop", "rho": 0.8, "momentum": 0.2, "epsilon": 1e-3},
        ),
    ],
)
def test_every_value_reaches_keras(configuration: Any, expected: dict[str, Any]) -> None:
    keras_values = configuration.build(10).get_config()
    assert keras_values["learning_rate"] == pytest.approx(0.1)
    assert {key: keras_values[key] for key in expected} == expected
