"""Search spaces: what overrides state, and what cannot be searched."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.sweeps.space import grid_of
from tests.pipeline.sweeps.searching import space_of


class TestSpace:
    def test_what_an_override_states(self) -> None:
        space = space_of(
            "a=tag(log, interval(1e-4, 1e-1))",
            "b=int(interval(4, 16))",
            "c=range(0, 10, 3)",
            "d=range(0.0, 1.0, 0.25)",
            "e=choice(adam, sgd)",
            "f=1,2",
            "g=7",
            "+h.i=x",
        )
        assert {key: repr(value).partition("(")[0] for key, value in space.distributions.items()} == {
            "a": "FloatDistribution",
            "b": "IntDistribution",
            "c": "IntDistribution",
            "d": "FloatDistribution",
            "e": "CategoricalDistribution",
            "f": "CategoricalDistribution",
        }
        a, _, c, d, *_ = space.distributions.values()
        assert (a.low, a.high, a.log) == (1e-4, 1e-1, True)  # type: ignore[attr-defined]
        assert (c.low, c.high, c.step) == (0, 9, 3)  # type: ignore[attr-defined]
        assert (d.low, d.high, d.step) == (0.0, 0.75, 0.25)  # type: ignore[attr-defined]
        assert space.fixed == ["g=7", "+h.i=x"]
        values = {"a": 1e-05, "b": 4, "c": 9, "d": 0.5, "e": "sgd", "f": "2"}
        assert space.overrides(values)[-6:] == ["a=1e-05", "b=4", "c=9", "d=0.5", "e=sgd", "f=2"]

    def test_the_last_of_two_counts(self) -> None:
        assert space_of("a=1,2", "b=1,2", "a=3").fixed == ["a=3"]
        assert list(space_of("a=3", "a=1,2").distributions) == ["a"]

    def test_every_choice_and_both_ends_are_seen_before_any_trial(self) -> None:
        corners = space_of("x=interval(0, 1)", "c=a,b,c", "fixed=3").corners()
        assert [corner[1:] for corner in corners] == [
            ["x=0.0", "c=a"],
            ["x=1.0", "c=a"],
            ["x=0.0", "c=b"],
            ["x=0.0", "c=c"],
        ]
        assert all(corner[0] == "fixed=3" for corner in corners)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("a=tag(log, interval(0, 1))", r"a must state values that can be searched. a=tag\(log"),
            ("a=interval(2, 1)", "a must state values"),
            ("a=range(1, 1)", "the range is empty"),
            ("a=tag(log, range(1, 9))", "only an interval can be logarithmic"),
            ("a=1", "A search needs a key with several values"),
        ],
    )
    def test_what_cannot_be_searched(self, override: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            space_of(override)

    def test_a_grid_needs_values_that_can_be_counted(self) -> None:
        space = space_of("a=1,2", "b=range(0, 10, 5)", "c=range(0, 1, 0.5)")
        assert grid_of(space) == {"a": ["1", "2"], "b": [0, 5], "c": [0.0, 0.5]}
        with pytest.raises(ConfigError, match=r"sampler=grid needs a choice\(...\) or range\(...\) for x"):
            grid_of(space_of("x=interval(0, 1)"))
        with pytest.raises(ConfigError, match="at most 10000 combinations. Received: 40000"):
            grid_of(space_of("x=range(0, 200)", "y=range(0, 200)"))
