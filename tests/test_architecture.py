"""The rules of who may import whom, and how long a function may be, held against the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.formats import FORMATS
from pipeline.formats import base

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "models", "data")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MAX_FUNCTION_LINES = 60

# Each level may import those below it, and its own package's neighbours where that is said.
MAINS = {"__main__", "preloaded", "round_trip", "evaluate", "export", "predict", "records"}
STAGES = {
    "resume",
    "training",
    "epoch_writer",
    "exporting",
    "verification",
    "receipts",
    "predictor",
    "formats",
    "search",
    "sweeps",
    "trials",
}

# What is imported before the configuration is known to be good.
BEFORE_TENSORFLOW = (
    "__main__",
    "round_trip",
    "records",
    "resume",
    "progress",
    "epochs",
    "operations",
    "sealed",
    "lock",
    "search",
    "sweeps",
    "trials",
    "ledger",
    "recorded",
    "sweep_report",
    "page",
    "charts",
    "processes",
    "evaluate",
    "export",
    "predict",
    "predictor",
    "receipts",
    "report",
    "evaluation",
    "command",
    "composition",
    "config",
    "binding",
    "run",
    "runtime",
    "optimizers",
)


def imports(tree: ast.AST, *, types: bool = True) -> Iterator[str]:
    """Yield the modules that a tree imports; without `types`, only those imported when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            if types:
                yield from imports(node)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, types=types)


def packages_of(path: Path, *, types: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    return {name.partition(".")[0] for name in imports(tree, types=types)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_keep_apart(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    others = set(PACKAGES) - {package}
    # The pipeline may name the contracts of models and data in its annotations, and nowhere else.
    assert not packages_of(path, types=package != "pipeline") & others
    if package == "pipeline":
        named = {n for n in imports(ast.parse(path.read_text())) if n.partition(".")[0] in others}
        assert {".".join(name.split(".")[:2]) for name in named} <= {"models.base", "data.base"}


def module_imports(name: str) -> set[str]:
    path = ROOT / "pipeline" / f"{name.replace('.', '/')}.py"
    path = path if path.exists() else ROOT / "pipeline" / name / "__init__.py"
    found = imports(ast.parse(path.read_text()), types=False)
    return {n.removeprefix("pipeline.") for n in found if n.startswith("pipeline.")}


def modules() -> list[str]:
    paths = sorted((ROOT / "pipeline").rglob("*.py"))
    names = (".".join(p.relative_to(ROOT / "pipeline").with_suffix("").parts) for p in paths)
    return [name.removesuffix(".__init__") for name in names if name != "__init__"]


@pytest.mark.parametrize("name", modules())
def test_arrows_point_down(name: str) -> None:
    if name not in MAINS:
        assert not module_imports(name) & MAINS
    if name.partition(".")[0] not in MAINS | STAGES:
        assert not module_imports(name) & STAGES
    if name.startswith("formats"):
        assert not module_imports(name) & STAGES - {"formats"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_tensorflow_before_it_must(path: Path) -> None:
    module = path.relative_to(ROOT)
    if module.parts[0] == "pipeline" and module.stem not in BEFORE_TENSORFLOW:
        return
    tree = ast.parse(path.read_text())
    top = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    found = {name.partition(".")[0] for name in imports(ast.Module(top, []), types=False)}
    assert not found & {"tensorflow", "keras", "sklearn"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_on_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name}: {length} lines"


def test_every_format_is_a_module_with_a_configuration() -> None:
    files = {path.stem for path in (ROOT / "pipeline" / "formats").glob("*.py")} - {"__init__", "base"}
    choices = {path.stem for path in (ROOT / "conf" / "export").glob("*.yaml")} - {"all"}
    assert files == choices == set(FORMATS)
    for name in FORMATS:
        module = base.load(name)
        assert callable(module.write)
        assert callable(module.open)
