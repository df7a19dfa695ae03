"""Export formats, one a module, each with `write` and `open` side by side.

A format writes from a run directory alone: the graph and an epoch's variables, never the model's code.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.formats.base import MANIFEST, Format, Manifest, Source, read_manifest, write_manifest
from pipeline.graphs.signatures import SESSION_GRAPH, Signature, predicting, scored
from pipeline.runs import checksums

if TYPE_CHECKING:
    from pipeline.graphs.checkpoints import Graph

RECEIPT = "verification.json"
DEFAULT = "serving_default"


def load(name: str) -> Format:
    """Return the module of a format."""
    module: Any = importlib.import_module(f"pipeline.formats.{name}")
    return module


def export(source: Source, name: str) -> Path:
    """Export epochs of a run in a format, as a new version; return its directory."""
    return source.run.publish(name, lambda directory: _write(source, name, directory))


def rehearse(source: Source, name: str) -> Mapping[str, str]:
    """Write, open and evaluate an export of the untrained model, so that no training ends in a failure.

    Returns:
        The signatures that the format cannot hold, each with the reason.

    Raises:
        ConfigError: The format cannot hold what is needed to verify it.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(source, name, Path(folder))
        manifest, held = open(Path(folder), 0)
        evaluable(name, held, source.graph)
    return manifest.left_out


def open(directory: Path, epoch: int) -> tuple[Manifest, Mapping[str, Signature]]:
    """Open an export once its files are found to be those that were written; return its signatures.

    Raises:
        ConfigError: With each file that is missing, changed or foreign; or it cannot be opened.
    """
    manifest = read_manifest(directory)
    problems = [*checksums.problems(directory, manifest.files), *_foreign(directory, manifest)]
    if problems:
        raise ConfigError(problems)
    return manifest, load(manifest.format).open(directory, epoch)


def _foreign(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the files that were not written, but would be opened as if they had been.

    Others may put theirs into `assets.extra`, such as TensorFlow Serving's requests to warm up with.
    """
    facts = load(manifest.format).TRAITS.facts
    expected = {Path(name) for name in manifest.files} | {Path(facts) / name for name in (MANIFEST, RECEIPT)}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if not path.is_dir() and name not in expected and name.parts[0] != "assets.extra" and not is_hidden:
            yield f"{path} must not be there. The export was written without it. Remove it."


def _write(source: Source, name: str, directory: Path) -> None:
    format = load(name)
    held = [key for key in source.requests if key != SESSION_GRAPH] + ["evaluate"]
    left_out = format.write(source, directory)
    quantization = source.options.quantization if name == "tflite" else "none"
    facts = Manifest(
        format=name,
        epochs=list(source.numbers),
        signatures=[key for key in held if key not in left_out],
        left_out=dict(left_out),
        run=str(source.run.path),
        quantization=quantization,
        quantized_tolerance=0.0 if quantization == "none" else source.quantized_tolerance,
        files=checksums.digests(directory, directory.rglob("*")),
        answers=checksums.digests(
            source.run.graph.parent, [source.run.answers(epoch) for epoch in source.numbers]
        ),
    )
    write_manifest(directory, format.TRAITS, facts)


def evaluable(
    name: str, restored: Mapping[str, Signature], open_graph: Callable[[], Graph]
) -> Mapping[str, Signature]:
    """Return the signatures of an export with an `evaluate`, which scores predictions if there is none.

    Args:
        name: The format.
        restored: The signatures of the export.
        open_graph: Opens the run's graph, whose signatures and score stand in for those that are lacking.

    Raises:
        ConfigError: There is none, and no prediction that could be scored.
    """
    if "evaluate" in restored:
        return restored
    graph = open_graph()
    evaluate = graph.signatures["evaluate"]
    predict = predicting(restored, evaluate)
    if predict is None or graph.score is None:
        raise ConfigError(
            [
                f"export={name} cannot hold evaluate, so it is verified by scoring predictions. That needs a "
                f"signature that takes arrays of the data, and BuiltModel.score. Held: {sorted(restored)}; "
                f"score: {'stated' if graph.score else 'not stated'}. Use export=saved_model."
            ]
        )
    signatures = {**restored, "evaluate": scored(restored[predict], graph.score, evaluate)}
    if evaluate.carried and "initial_state" not in signatures:
        signatures["initial_state"] = graph.signatures["initial_state"]
    return signatures
