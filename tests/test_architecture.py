"""The rules of the structure, held against the source: who may import whom, and how long a function may be.

Each rule has its negative: a source that breaks it, in every form that an import can take, is found.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.config.formats import FORMATS
from pipeline.formats import base

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "models", "data")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MAX_FUNCTION_LINES = 60
MAX_MODULES_OUTSIDE_OF_ROOMS = 14

# From top to bottom, as CONTRIBUTING.md draws them. A room is a folder or a single module of `pipeline`.
FLOORS = (
    {"__main__", "evaluate", "export", "predict", "records", "preloaded"},
    {"round_trip"},
    {"resume", "predictor", "sweeps"},
    {"training", "verification"},
    {"formats"},
    {"graphs"},
    {"pages"},
    {"runs"},
    {"config", "cli"},
    {"runtime", "optimizers"},
    {"errors"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Modules that import TensorFlow when they are imported. All others are imported before the configuration is
# checked.
WITH_TENSORFLOW = (
    "models.keras_functions",
    "pipeline.formats.exporting",
    "pipeline.formats.meta_graph",
    "pipeline.formats.simple_save",
    "pipeline.graphs.checkpoints",
    "pipeline.graphs.sessions",
    "pipeline.preloaded",
    "pipeline.training",
    "pipeline.verification.verifier",
)


def module_of(path: Path) -> str:
    """Return the name under which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, *, types: bool = True) -> Iterator[str]:
    """Yield every module that a source may import, wherever the import stands, and in whatever form.

    `from a import b` yields `a.b`, too: `b` may be a module.

    Args:
        source: The text of a module.
        types: Whether imports for annotations alone count.
    """

    def walk(tree: ast.AST) -> Iterator[str]:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, "imports are absolute"
                yield str(node.module)
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield from walk(node)

    return walk(ast.parse(source))


def room_of(module: str) -> str:
    """Return the room of a module of `pipeline`, such as `runs` for `pipeline.runs.log`."""
    return ([*module.split("."), ""])[1]


def upward(module: str, source: str) -> set[str]:
    """Return the rooms that a module imports although they are on its own floor, or above it."""
    own = room_of(module)
    others = {room_of(name) for name in imports(source) if name.startswith("pipeline.")} - {own}
    return {room for room in others if FLOOR_OF.get(room, len(FLOORS)) <= FLOOR_OF[own]}


def foreign(module: str, source: str) -> set[str]:
    """Return the modules of other packages that a module of this project may not import."""
    package = module.partition(".")[0]
    others = {name for name in imports(source) if name.partition(".")[0] in set(PACKAGES) - {package}}
    if package != "pipeline":
        return others
    # The pipeline may name the contracts of models and data in its annotations, and nowhere else.
    at_run_time = set(imports(source, types=False))
    return {name for name in others if name in at_run_time or name.split(".")[1:2] not in ([], ["base"])}


def every_form(module: str) -> list[str]:
    """Return sources that import a module, in every form that Python has."""
    parent, _, name = module.rpartition(".")
    return [
        f"import {module}",
        f"import {module} as alias",
        f"from {parent} import {name}",
        f"from {parent} import {name} as alias",
        f"from {module} import anything",
        f"from {module}.deeper import anything",
        f"def function():\n    from {parent} import {name}",
        f"class Class:\n    def method(self):\n        if True:\n            import {module}.deeper as alias",
    ]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_packages_keep_apart(path: Path) -> None:
    assert not foreign(module_of(path), path.read_text())


@pytest.mark.parametrize("source", every_form("models.gru"))
def test_a_package_that_does_not_keep_apart_is_found(source: str) -> None:
    assert foreign("pipeline.runs.log", source)
    assert foreign("data.npz", source)
    assert not foreign("models.dense", source)


def test_a_contract_may_be_named_in_annotations() -> None:
    annotation = "if TYPE_CHECKING:\n    from models.base import Model"
    assert not foreign("pipeline.training.loop", annotation)
    assert foreign("pipeline.training.loop", annotation.replace("base", "gru"))
    assert foreign("pipeline.training.loop", "from models.base import Model")
    assert foreign("data.npz", annotation)


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=module_of)
def test_arrows_point_down(path: Path) -> None:
    if path.parent.name != "pipeline" or path.name != "__init__.py":
        assert not upward(module_of(path), path.read_text())


@pytest.mark.parametrize("source", every_form("pipeline.training"))
def test_an_arrow_that_points_up_is_found(source: str) -> None:
    assert upward("pipeline.runs.log", source) == {"training"}
    assert upward("pipeline.verification.verifier", source) == {"training"}, "the same floor"
    assert not upward("pipeline.training.setup", source)
    assert not upward("pipeline.round_trip", source)


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(module_of(path)) for path in (ROOT / "pipeline").rglob("*.py")} - {""}
    assert rooms == set(FLOOR_OF)
    assert sum(map(len, FLOORS)) == len(FLOOR_OF)
    assert len(list((ROOT / "pipeline").glob("*.py"))) <= MAX_MODULES_OUTSIDE_OF_ROOMS


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules that cannot be put in an order, because they import each other in a circle."""
    left = {name: needed & graph.keys() - {name} for name, needed in graph.items()}
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_there_is_no_circle() -> None:
    graph = {module_of(path): set(imports(path.read_text(), types=False)) for path in SOURCES}
    # A package's `__init__` that re-exports a name of its own room is no circle.
    graph = {name: {n for n in needed if n != name.rpartition(".")[0]} for name, needed in graph.items()}
    assert not circle(graph)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]
    assert not circle({"a": {"b"}, "b": {"c", "elsewhere"}, "c": set()})


IMPORT_ALL = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
found = [name for name in sys.argv[1].split(",") if name in sys.modules]
sys.exit(f"imported: {found}" if found else 0)
"""


def imported(forbidden: str, modules: list[str]) -> str:
    """Import modules in a new interpreter; return which of the forbidden ones come with them."""
    command = [sys.executable, "-c", IMPORT_ALL, forbidden, *modules]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120).stderr


def test_no_module_imports_tensorflow_before_it_must() -> None:
    modules = [module_of(path) for path in SOURCES]
    early = [name for name in modules if not name.startswith(WITH_TENSORFLOW)]
    assert not imported("tensorflow,keras,sklearn,matplotlib", early)
    assert "tensorflow" in imported("tensorflow", ["pipeline.graphs.checkpoints"])


def test_pages_know_nothing_of_commands() -> None:
    pages = [name for name in map(module_of, SOURCES) if ".pages." in name or name.endswith(".page")]
    assert len(pages) > 2
    assert not imported("hydra,tensorflow", pages)
    assert "hydra" in imported("hydra,tensorflow", [*pages, "pipeline.cli.composition"])


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_functions_fit_on_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name}: {length} lines"


def test_every_format_is_a_module_with_a_row_and_a_choice() -> None:
    shared = {"__init__", "base", "exporting", "manifest", "opening"}
    files = {path.stem for path in (ROOT / "pipeline" / "formats").glob("*.py")} - shared
    choices = {path.stem for path in (ROOT / "conf" / "export").glob("*.yaml")} - {"all"}
    assert files == choices == set(FORMATS)
    for name in FORMATS:
        module = base.load(name)
        assert callable(module.write)
        assert callable(module.open)
