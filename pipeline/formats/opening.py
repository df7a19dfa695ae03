"""Opening an export of any format, after a check of its files; and evaluating it.

    manifest, signatures = open(directory, epoch=3)
    signatures["serving_default"].call(images=images)["class_id"]

Whether the export was verified is not asked here: `pipeline.predictor` does that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DamagedError, UnsupportedError
from pipeline.formats import base
from pipeline.formats.manifest import Manifest, foreign_files, read_manifest
from pipeline.graphs.signatures import INITIAL_STATE, METRICS, Signature, predicting, scored
from pipeline.runs import checksums

if TYPE_CHECKING:
    from pipeline.graphs.checkpoints import Graph


def open(directory: Path, epoch: int) -> tuple[Manifest, Mapping[str, Signature]]:
    """Return the manifest and the signatures of an export, if all of its files have the right checksums.

    Raises:
        DamagedError: Files are missing, were changed or were added, with a sentence for each; or the export
            cannot be opened.
        UntrustedError: A graph has an operation that is not allowed.
    """
    # The checksums come first: a loader is not to see a file that nobody of this project has written.
    manifest = read_manifest(directory)
    problems = [*checksums.problems(directory, manifest.files), *foreign_files(directory, manifest)]
    if problems:
        raise DamagedError(*problems)
    return manifest, base.load(manifest.format).open(directory, epoch)


def evaluable(
    name: str, restored: Mapping[str, Signature], open_graph: Callable[[], Graph]
) -> Mapping[str, Signature]:
    """Return the signatures of an export, with an `evaluate` if it has none of its own.

    That `evaluate` scores the export's predictions with the model's `score`. What an evaluation needs besides
    is the run's own, too, where the export cannot hold it: it does not depend on the variables.

    Args:
        name: The name of the format, for the message.
        restored: The signatures of the export.
        open_graph: Returns the run's graph. It is called only if the export has no `evaluate`.

    Raises:
        UnsupportedError: The export has no `evaluate`; and it has no signature that predicts from arrays of
            the data, or the model has no `score`.
    """
    if "evaluate" in restored and (METRICS in restored or not restored["evaluate"].states):
        return restored
    graph = open_graph()
    # The initial state depends on the batch size alone, and metrics on sums.
    further = {name: graph.signatures[name] for name in (INITIAL_STATE, METRICS) if name in graph.signatures}
    if "evaluate" in restored:
        return {**further, **restored}
    evaluate = graph.signatures["evaluate"]
    predict = predicting(restored, evaluate)
    if predict is None or graph.score is None:
        raise UnsupportedError(
            f"export={name} cannot hold evaluate, so it is verified by scoring predictions. That needs a "
            f"signature that takes arrays of the data, and BuiltModel.score. Held: {sorted(restored)}; "
            f"score: {'stated' if graph.score else 'not stated'}. Use export=saved_model."
        )
    return {**further, **restored, "evaluate": scored(restored[predict], graph.score, evaluate)}
