"""`python -m tests.benchmarks`: all benchmarks or one of them, side by side, on this machine.

python -m tests.benchmarks
python -m tests.benchmarks --rows gru
python -m tests.benchmarks --rows predictor --repeats 21

Each runs in a process of its own. What they print is kept as `outputs/bench/<time>/bench.json`, with the
machine's name, and as a page, `bench.html`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from xml.etree.ElementTree import Element

from pipeline.pages import charts, parts
from pipeline.pages.charts import element
from tests.benchmarks import results
from tests.benchmarks.results import Table
from tests.benchmarks.training_speed import ROWS

TRAINING = {"training": ["training_speed"]} | {name: ["training_speed", "--rows", name] for name in ROWS}
OTHERS = {
    "evaluation": ["batch_evaluation"],
    "predictor": ["predictor_latency"],
    "overheads": ["overheads"],
}
LONG = {"sweep": ["sweep"], "search": ["search"]}
"""Those that are run by name only: they take 5 and 15 minutes."""

HEADER = ("", "contender", "median (range)", "compared", "target")


def commands(rows: str) -> list[list[str]]:
    """Return the module and the arguments of each benchmark asked for."""
    if rows == "all":
        return [TRAINING["training"], *OTHERS.values()]
    return [(TRAINING | OTHERS | LONG)[rows]]


def machine() -> dict[str, object]:
    """Return what the figures are of."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    versions = {}
    for name in ("tensorflow", "keras", "numpy", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": known.get("model name") or platform.processor() or platform.machine(),
        "instructions": " ".join(
            flag for flag in ("avx2", "avx512f") if flag in known.get("flags", "").split()
        ),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
    }


def sections(facts: dict[str, object], tables: Sequence[Table]) -> Iterator[Element]:
    """Yield what the page consists of."""
    yield element("h1", "Benchmarks")
    yield parts.facts((name, str(value)) for name, value in facts.items())
    for table in tables:
        yield element("h2", f"{table.title}, {table.unit}")
        if table.note:
            yield element("p", table.note, class_="muted")
        lines = [
            parts.Line(
                [line.row, line.contender, line.measured, str(ratio or ""), ratio.target if ratio else ""]
            )
            for line in table.lines
            for ratio in line.ratios or (None,)
        ]
        yield from parts.table(HEADER, lines, max_lines=len(lines), left=HEADER[:2])
        yield element("div", *figures(table), class_="curves")


def figures(table: Table) -> Iterator[Element]:
    """Yield a chart for each row: the contenders beside the largest of them."""
    for row in dict.fromkeys(line.row for line in table.lines):
        medians = {line.contender: line.median for line in table.lines if line.row == row}
        largest = max(medians.values())
        title = f"{row}: {table.unit}, 100 % = {largest:,.4g}"
        drawn = charts.bars(title, {name: median / largest for name, median in medians.items()})
        yield element("figure", element("figcaption", element("strong", title)), drawn)


def main() -> int:
    """Run the benchmarks asked for; return the largest of their exit codes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="What is fast, side by side."
    )
    parser.add_argument("--rows", default="all", choices=["all", *TRAINING, *OTHERS, *LONG])
    parser.add_argument("--repeats", type=int, help="turns of each contender, in place of a benchmark's own")
    arguments = parser.parse_args()
    repeats = [] if arguments.repeats is None else ["--repeats", str(arguments.repeats)]
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "tables.jsonl"
        codes = []
        for module, *options in commands(arguments.rows):
            command = [
                sys.executable,
                "-m",
                f"{__package__}.{module}",
                *options,
                *repeats,
                "--into",
                str(into),
            ]
            codes.append(subprocess.run(command).returncode)
        tables = results.read(into)
    directory = Path("outputs/bench") / time.strftime("%Y-%m-%d_%H-%M-%S")
    directory.mkdir(parents=True)
    kept = {"machine": facts, "tables": [asdict(table) for table in tables]}
    (directory / "bench.json").write_text(json.dumps(kept, indent=2) + "\n")
    parts.write(directory / "bench.html", "Benchmarks", sections(facts, tables))
    print(f"kept: {directory}/bench.json    page: {directory}/bench.html")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
