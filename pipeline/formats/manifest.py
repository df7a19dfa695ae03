"""The manifest of an export: its epochs, its signatures, and the SHA-256 of every file in it.

    manifest.json        Manifest, with its own checksum
    verification.json    the receipt, once the export is verified (`pipeline.verification.receipt`)

Both lie in the folder `facts` of the format's row in `pipeline.config.formats`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.config.binding import parse
from pipeline.config.formats import FORMATS
from pipeline.errors import DamagedError, unknown
from pipeline.runs import checksums
from pipeline.runs.files import write_text

MANIFEST = "manifest.json"
RECEIPT = "verification.json"
FOLDERS = tuple(dict.fromkeys(row.facts for row in FORMATS.values()))
"""Folders inside an export that may have the manifest and the receipt, depending on the format."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        format: Name of the format.
        epochs: The epochs that the export holds; empty in a rehearsal.
        signatures: Names of the signatures that the export holds.
        left_out: The model's other signatures, each with the reason.
        run: The run's directory when the export was written.
        quantization: See `pipeline.config.schema.Export`.
        quantized_tolerance: See `pipeline.config.schema.Verify`; 0 if the export is not quantized.
        files: SHA-256 of each file of the export, by its path in it.
        answers: SHA-256 of each file in the run's `checkpoints/` with the answers that the export must give.
    """

    format: str
    epochs: list[int]
    signatures: list[str]
    left_out: dict[str, str]
    run: str
    quantization: str
    quantized_tolerance: float
    files: dict[str, str]
    answers: dict[str, str]


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest of an export, with its checksum."""
    folder = directory / FORMATS[manifest.format].facts
    folder.mkdir(exist_ok=True)
    write_text(folder / MANIFEST, json.dumps(checksums.with_checksum(asdict(manifest)), indent=2) + "\n")


def has_manifest(directory: Path) -> bool:
    """Return whether a directory has the manifest of an export."""
    return any((directory / folder / MANIFEST).is_file() for folder in FOLDERS)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of an export.

    Raises:
        DamagedError: The manifest is missing, was changed, or lacks a key.
    """
    folder = next((one for one in FOLDERS if (directory / one / MANIFEST).is_file()), FOLDERS[-1])
    path = directory / folder / MANIFEST
    try:
        manifest = parse(Manifest, checksums.checked(path.read_text()))
        if manifest.format not in FORMATS:
            raise ValueError(unknown("format", manifest.format, FORMATS))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} must say what the export holds. Reading it failed: {error}") from error
    return manifest


def foreign_files(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a sentence for each file that was put into an export after it was written.

    A loader might open such a file, although no checksum covers it. Hidden files and those in `assets.extra`
    are accepted: other programs write there, and no loader of ours reads them. TensorFlow Serving's warm-up
    requests are an example (https://www.tensorflow.org/tfx/serving/saved_model_warmup).
    """
    facts = Path(FORMATS[manifest.format].facts)
    expected = {Path(name) for name in manifest.files} | {facts / MANIFEST, facts / RECEIPT}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if not path.is_dir() and name not in expected and name.parts[0] != "assets.extra" and not is_hidden:
            yield f"{path} must not be there. The export was written without it. Remove it."
