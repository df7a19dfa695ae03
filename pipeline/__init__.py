"""Roundtrip: training pipelines whose exports are proven."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

ROOT = Path(__file__).parent.parent

SIBLINGS = ("conf", "data", "models")
"""Packages of this project whose names a user's folders may have, too."""


class Siblings(MetaPathFinder):
    """Finds the packages beside this one, whatever has their names in the working directory.

    `python -m` searches the working directory first, where a folder `conf` or `data` is nothing unusual. Only
    commands put this finder before Python's own: a program of the user that imports `pipeline.predictor`
    keeps its own packages.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return where a package of ours is; `None` for any other module."""
        return PathFinder.find_spec(fullname, [str(ROOT)]) if fullname in SIBLINGS else None


def whose(target: str) -> str:
    """Return a sentence that says which package has the name of a target's, if it is one of ours.

    Args:
        target: A path such as `models.nets.classifier`.
    """
    name = target.partition(".")[0]
    if name not in SIBLINGS:
        return ""
    return f" {name} is Roundtrip's own package, {ROOT / name}: yours needs another name."


def _runs_a_command() -> bool:
    """Return whether this interpreter was started as `python -m pipeline`, or with a module of it."""
    _, _, module = " ".join(sys.orig_argv).partition(" -m ")
    return module.split(" ")[0].partition(".")[0] == __name__


# Python imports this package before it looks for the module that it is to run.
if _runs_a_command():
    sys.meta_path.insert(0, Siblings())
