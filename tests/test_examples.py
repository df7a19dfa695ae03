"""The examples that open the docstrings of public classes and modules run, and show what they print."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.cases import CASES
from tests.conftest import Finished

(DENSE,) = (case for case in CASES if case.name == "dense")

EXAMPLES = (
    ("models.base", "ArraySpec"),
    ("models.base", "BuiltModel"),
    ("models.base", "Model"),
    ("data.base", "Dataset"),
    ("data.base", "Source"),
    ("pipeline.optimizers", "Schedule"),
    ("pipeline.optimizers", "Adam"),
    ("pipeline.optimizers", "SGD"),
    ("pipeline.optimizers", "RMSprop"),
)


def run_examples(module_name: str, name: str) -> None:
    """Run the examples of one docstring, not of the methods below it."""
    module = importlib.import_module(module_name)
    subject = getattr(module, name) if name else module
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(subject, name or module_name, module=module, globs=dict(vars(module)))
    assert example.examples, f"{module_name}.{name} has no example"
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    result = runner.run(example, out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize(("module", "name"), EXAMPLES, ids=lambda value: str(value))
def test_a_public_class_opens_with_an_example_that_runs(module: str, name: str) -> None:
    run_examples(module, name)


def test_the_predictor_opens_with_an_example_that_runs(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "RUN").symlink_to(finished.of(DENSE)[0])
    monkeypatch.chdir(tmp_path)
    run_examples("pipeline.predictor", "")
