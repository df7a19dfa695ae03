"""The report: one page that shows a run, what was restored of it, and how to use its exports.

It reads what the run's directory says of the run, and opens no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from pipeline.cli.quoting import override
from pipeline.config.formats import DEFAULT_SIGNATURE, FORMATS, ExportFormat
from pipeline.pages import charts, parts
from pipeline.pages.charts import Point, Series, element
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row
from pipeline.verification import receipt as receipts
from pipeline.verification.receipt import Receipt, VerifiedEpoch, verdict_of

MAX_PROBLEMS = 20
"""Problems beyond which the others are folded."""

MAX_EPOCHS = 24
"""Rows of the table of metrics beyond which those in the middle are folded, unless one does not match."""

MAX_PARITY_ROWS = 100
"""The same of the tables of exports, which have several rows for each export."""

UNVERIFIED = "not verified"

LEFT_ALIGNED = ("format", "version", "signature", "largest difference of a metric")


@dataclass(frozen=True)
class _Finished:
    """A run as its directory describes it.

    Attributes:
        run: The directory.
        facts: `run.json`.
        log: `metrics.jsonl`.
        receipt: The receipt; an empty one where there is none.
        verdict: The receipt's, or that there is none.
        problems: A sentence for everything that does not match.
    """

    run: RunDirectory
    facts: Mapping[str, Any]
    log: Sequence[Row]
    receipt: Receipt
    verdict: str
    problems: Sequence[str]

    @property
    def epochs(self) -> Mapping[int, VerifiedEpoch]:
        """The verified checkpoints by epoch."""
        return {found.epoch: found for found in self.receipt.epochs}

    @property
    def exports(self) -> Sequence[VerifiedEpoch]:
        """The verified exports, one for each epoch that an export holds."""
        return self.receipt.exported

    @property
    def model(self) -> str:
        section = self.facts["config"].get("model", {})
        # A class that is there for all networks says less than the network.
        return str(section.get("network") or str(section.get("_target_", "model")).rpartition(".")[2])

    @property
    def formats(self) -> str:
        return ", ".join(dict.fromkeys(found.format for found in self.exports)) or "checkpoints"


class _Line(NamedTuple):
    """A line of a table; its status is the last cell."""

    cells: Sequence[str]
    status: str


def write(run: RunDirectory) -> None:
    """Write the page of a run that has been verified.

    Raises:
        ConfigError: What the run wrote of itself is missing or damaged.
    """
    finished = _read(run)
    title = f"{finished.model}, {finished.formats}: {finished.verdict}"
    sections = (_header, _curves, _exports, _metrics, _facts, _commands)
    parts.write(run.report, title, (part for section in sections for part in section(finished)))


def _read(run: RunDirectory) -> _Finished:
    facts, log = run.read_facts(), run.read_rows()
    try:
        receipt = receipts.read(run.verification)
    except (OSError, ValueError) as error:
        problem = f"{run.verification} must be a receipt. Reading it failed: {error}. Evaluate the run again."
        return _Finished(run, facts, log, Receipt("", "", []), UNVERIFIED, [problem])
    return _Finished(run, facts, log, receipt, receipt.verdict, receipt.complaints())


def _header(finished: _Finished) -> Iterator[Element]:
    yield element("h1", finished.model)
    yield element("p", f"Exported as {finished.formats}.", class_="muted")
    yield element("p", element("code", str(finished.run.path.absolute())), class_="muted")
    sign = {parts.MATCH: "✓ ", parts.MISMATCH: "✗ "}.get(finished.verdict, "")
    num_exports = len({found.artifact for found in finished.exports})
    counts = (
        f"Epochs verified: {len(finished.epochs)} of {len(finished.log)}. Exports verified: {num_exports}. "
        "Each was restored, evaluated, and held against the log of the training."
    )
    badge = element("span", sign + finished.verdict, class_=f"badge {parts.status_class(finished.verdict)}")
    yield element("p", badge, element("span", counts), class_="verdict")
    if finished.problems:
        first, others = finished.problems[:MAX_PROBLEMS], finished.problems[MAX_PROBLEMS:]
        problems = [element("h2", f"Problems: {len(finished.problems)}"), parts.sentences(first)]
        if others:
            problems.append(parts.details(f"{len(others)} more", parts.sentences(others)))
        yield element("section", *problems, class_="problems")


def _curves(finished: _Finished) -> Iterator[Element]:
    yield element("h2", "Learning curves")
    names = dict.fromkeys(
        [*finished.log[0].test, *(name for row in finished.log for name in row.train or {})]
    )
    yield element("div", *(_curve(finished, name) for name in names), class_="curves")


def _curve(finished: _Finished, name: str) -> Element:
    test = [Point(x=row.epoch, y=row.test[name]) for row in finished.log if name in row.test]
    train = [Point(x=row.epoch, y=row.train[name]) for row in finished.log if row.train and name in row.train]
    judged = [row for row in finished.log if row.validation and name in row.validation]
    validation = [Point(x=row.epoch, y=row.judged[name]) for row in judged]
    series = [
        Series(name=f"train/{name}", points=train, color=2),
        Series(name=f"validation/{name}", points=validation, color=4),
        Series(name=f"test/{name}", points=test),
        Series(name="restored epoch", points=_restored(name, finished.epochs.values()), shape="circle"),
        Series(name="restored export", points=_restored(name, finished.exports), shape="square", color=3),
    ]
    series = [one for one in series if one.points]
    title = f"{name} by epoch: {', '.join(one.name for one in series)}"
    return charts.figure(name, title, series, x_label="epoch")


def _restored(name: str, rows: Iterable[VerifiedEpoch]) -> list[Point]:
    points = []
    for found in rows:
        metric = found.metrics.get(name)
        if metric:
            label = f"{found.format}, epoch {found.epoch}: {parts.number(metric.restored)}"
            points.append(Point(x=found.epoch, y=metric.restored, label=label, flagged=not metric.match))
    return points


def _exports(finished: _Finished) -> Iterator[Element]:
    if not finished.exports:
        return
    yield element("h2", "Exports")
    lines = [line for found in finished.exports for line in _parity(found)]
    if lines:
        header = [
            "format",
            "epoch",
            "signature",
            "max abs error",
            "argmax flips",
            "ms at batch 1",
            "ms at 32",
        ]
        yield element("h3", "Answers of each signature to recorded requests")
        yield from _table([*header, "version"], lines, MAX_PARITY_ROWS)
    yield element("h3", "Files and metrics")
    header = ["format", "epoch", "seconds to load", "size", "largest difference of a metric", "version"]
    yield from _table(header, list(map(_export, finished.exports)), MAX_PARITY_ROWS)
    reasons = dict.fromkeys(
        f"{_format(found)} leaves out {', '.join(names)}: {reason}."
        for found in finished.exports
        for reason, names in _by_reason(found.left_out).items()
    )
    if reasons:
        yield element("h3", "Left out")
        yield parts.sentences(reasons)


def _parity(found: VerifiedEpoch) -> Iterator[_Line]:
    for name, answers in found.signatures.items():
        cells = [
            _format(found),
            str(found.epoch),
            name,
            parts.number(answers.max_abs_error, ".3g"),
            str(answers.argmax_flips),
            *(parts.number(answers.latency_ms.get(size), ".3f") for size in (1, 32)),
            Path(found.artifact).name,
        ]
        yield _Line(cells, verdict_of(answers.match))


def _format(found: VerifiedEpoch) -> str:
    return found.format if found.quantization == "none" else f"{found.format} {found.quantization}"


def _export(found: VerifiedEpoch) -> _Line:
    differences = [(name, metric.difference) for name, metric in found.metrics.items()]
    name, worst = max(differences, key=lambda one: _extent(one[1]), default=("", None))
    largest = f"test/{name} {parts.number(worst, '+.3g')}" if worst else parts.number(worst)
    cells = [
        _format(found),
        str(found.epoch),
        parts.number(found.load_secs, ".2f"),
        _size(found.size_bytes),
        largest,
        Path(found.artifact).name,
    ]
    return _Line(cells, _status(found))


def _extent(difference: float) -> float:
    """Return the size of a difference; one that is no number is larger than all others."""
    return math.inf if math.isnan(difference) else abs(difference)


def _by_reason(left_out: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return by_reason


def _metrics(finished: _Finished) -> Iterator[Element]:
    yield element("h2", "Metrics of each epoch")
    names = [f"test/{name}" for name in finished.log[0].test]
    header = ["epoch", *(column for name in names for column in (name, "restored", "difference"))]
    epochs = finished.epochs
    lines = []
    for row in finished.log:
        found = epochs.get(row.epoch)
        cells = [str(row.epoch)]
        for name in names:
            metric = found.metrics.get(name.removeprefix("test/")) if found else None
            cells += [
                parts.number(row.test.get(name.removeprefix("test/"))),
                parts.number(metric and metric.restored),
                parts.number(metric and metric.difference, "+.3g"),
            ]
        lines.append(_Line(cells, _status(found) if found else UNVERIFIED))
    yield from _table(header, lines, MAX_EPOCHS)


def _status(found: VerifiedEpoch) -> str:
    return parts.DAMAGED if found.problems else verdict_of(found.match)


def _table(header: Sequence[str], lines: Sequence[_Line], max_lines: int) -> Iterator[Element]:
    """Yield a table with the status of each line; those that mismatch are never folded."""
    shown = []
    for line in lines:
        status = element("td", line.status, class_=parts.status_class(line.status))
        shown.append(parts.Line([*line.cells, status], is_kept=line.status not in (parts.MATCH, UNVERIFIED)))
    yield from parts.table([*header, "verdict"], shown, max_lines=max_lines, left=LEFT_ALIGNED)


def _facts(finished: _Finished) -> Iterator[Element]:
    facts = finished.facts
    config, data, model = facts["config"], facts["data"], facts.get("model", {})
    held_out = data.get("num_validation")
    yield element("h2", "What was run")
    yield parts.command("pipeline", *map(str, facts["overrides"]))
    said = {
        "Model": f"{config.get('model', {}).get('_target_', parts.MISSING)}, "
        f"{parts.number(model.get('parameters'), ',')} parameters",
        "Data": f"{config['data'].get('_target_', parts.MISSING)}, "
        f"{parts.number(data.get('num_train'), ',')} for training, "
        + (f"{parts.number(held_out, ',')} for validation, " if held_out else "")
        + f"{parts.number(data.get('num_test'), ',')} to test",
        "Data's fingerprint": f"SHA-256 {data['fingerprint']}",
        "Seed": str(facts["seed"]),
        "Device": _plain(facts.get("device", {})),
        "Versions": _plain(facts.get("versions", {})),
        "Graph": _size(facts.get("sizes", {}).get("graph_bytes")),
    }
    yield parts.facts(said.items())
    if variables := model.get("variables"):
        yield parts.details(f"Layers and their {len(variables)} variables", *_layers(variables))
    yield parts.details(
        "The whole configuration", element("pre", json.dumps(config, indent=2, ensure_ascii=False))
    )


def _layers(variables: Mapping[str, Mapping[str, Any]]) -> Iterator[Element]:
    """Yield a table of the layers; the path of a layer is that of its variables without their names."""
    layers: dict[str, dict[str, Mapping[str, Any]]] = {}
    for path, variable in variables.items():
        layer, _, name = path.rpartition("/")
        layers.setdefault(layer, {})[name] = variable
    lines = []
    for layer, of_layer in layers.items():
        trained = {bool(variable["trained"]) for variable in of_layer.values()}
        cells = [
            layer,
            ", ".join(f"{name} {variable['shape']}" for name, variable in of_layer.items()),
            parts.number(sum(math.prod(variable["shape"]) for variable in of_layer.values()), ","),
            "partly" if len(trained) > 1 else "yes" if trained == {True} else "no",
        ]
        lines.append(parts.Line(cells))
    header = ["layer", "variables", "parameters", "trained"]
    yield from parts.table(header, lines, max_lines=MAX_PARITY_ROWS, left=("layer", "variables"))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items()) or parts.MISSING
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _commands(finished: _Finished) -> Iterator[Element]:
    path = finished.run.path.absolute()
    run_dir = override("run_dir", path)
    yield element("h2", "How to use it")
    yield element("h3", "Verify it again, or export another epoch")
    yield parts.command("pipeline.evaluate", run_dir)
    yield parts.command("pipeline.export", run_dir, "export=onnx", "epoch=best")
    for name, row in FORMATS.items():
        directory = finished.run.newest_export(name)
        if directory:
            yield element("h3", name)
            yield parts.command("pipeline.predict", override("export_dir", path / "export" / name))
            yield element("pre", _snippet(finished, row, directory.absolute()), class_="command")


def _snippet(finished: _Finished, row: ExportFormat, directory: Path) -> str:
    """Return the program that opens an export, with the export's own paths and one of its signatures."""
    artifact = str(directory.relative_to(finished.run.path.absolute()))
    held = [found for found in finished.exports if found.artifact == artifact]
    names = sorted({name for found in held for name in found.signatures})
    signature = names[0] if names and DEFAULT_SIGNATURE not in names else DEFAULT_SIGNATURE
    epoch = max((found.epoch for found in held), default=finished.log[-1].epoch)
    path = directory / row.path_of(epoch=epoch, signature=signature)
    return row.snippet.format(directory=str(directory), path=str(path), signature=signature)


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return parts.MISSING
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.1f} kB"
