"""Opening exports: any format, files checked first, and a way to evaluate each.

manifest, signatures = open(directory, epoch=3)
signatures["serving_default"].call(images=images)["class_id"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DamagedError, UnsupportedError
from pipeline.formats import base
from pipeline.formats.manifest import Manifest, foreign_files, read_manifest
from pipeline.graphs.signatures import Signature, predicting, scored
from pipeline.runs import checksums

if TYPE_CHECKING:
    from pipeline.graphs.checkpoints import Graph


def open(directory: Path, epoch: int) -> tuple[Manifest, Mapping[str, Signature]]:
    """Open an export once its files are found to be those that were written; return its signatures.

    Raises:
        DamagedError: With each file that is missing, changed or foreign; or the export cannot be opened.
    """
    manifest = read_manifest(directory)
    problems = [*checksums.problems(directory, manifest.files), *foreign_files(directory, manifest)]
    if problems:
        raise DamagedError(*problems)
    return manifest, base.load(manifest.format).open(directory, epoch)


def evaluable(
    name: str, restored: Mapping[str, Signature], open_graph: Callable[[], Graph]
) -> Mapping[str, Signature]:
    """Return the signatures of an export with an `evaluate`: its own, or one that scores its predictions.

    Args:
        name: The format.
        restored: The signatures of the export.
        open_graph: Opens the run's graph, whose signatures and score stand in for those that the export
            lacks.

    Raises:
        UnsupportedError: The export has no `evaluate`, and no prediction that could be scored.
    """
    if "evaluate" in restored:
        return restored
    graph = open_graph()
    evaluate = graph.signatures["evaluate"]
    predict = predicting(restored, evaluate)
    if predict is None or graph.score is None:
        raise UnsupportedError(
            f"export={name} cannot hold evaluate, so it is verified by scoring predictions. That needs a "
            f"signature that takes arrays of the data, and BuiltModel.score. Held: {sorted(restored)}; "
            f"score: {'stated' if graph.score else 'not stated'}. Use export=saved_model."
        )
    signatures = {**restored, "evaluate": scored(restored[predict], graph.score, evaluate)}
    if evaluate.carried and "initial_state" not in signatures:
        signatures["initial_state"] = graph.signatures["initial_state"]
    return signatures
