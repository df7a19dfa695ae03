"""What a sweep saves: trials of the GRU in one sweep beside as many commands, and the sweep's own memory.

`python -m tests.benchmarks.sweep`: both ways in turn, each as often as `--repeats` says.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from pipeline.sweeps.ledger import Ledger
from tests.benchmarks import results
from tests.benchmarks.results import Line, Ratio, Table

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TARGET = 3.0


def sweep(num_trials: int, directory: Path) -> tuple[float, list[float]]:
    """Return the seconds that a sweep took, and its own resident memory in MB after each trial."""
    command = [*(sys.executable, "-m", "pipeline", "-m", "model=gru"), f"seed=range({num_trials})"]
    ledger = Ledger(directory / "sweep")
    memory: list[float] = []
    started = time.monotonic()
    with subprocess.Popen(
        [*command, f"hydra.sweep.dir={ledger.directory}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None:
            ended = sum(trial.seconds is not None for trial in ledger.read())
            if ended > len(memory):
                pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
                memory.append(int(pages) * PAGE_BYTES / 1e6)
            time.sleep(0.1)
    seconds = time.monotonic() - started
    trials = ledger.read()
    assert process.returncode == 0
    assert len({trial.pid for trial in trials}) == num_trials, "each trial has a process of its own"
    return seconds, memory


def commands(num_trials: int, directory: Path) -> float:
    """Return the seconds that as many commands took, one after the other."""
    started = time.monotonic()
    for seed in range(num_trials):
        command = [sys.executable, "-m", "pipeline", "model=gru", f"seed={seed}"]
        run = f"hydra.run.dir={directory / str(seed)}"
        subprocess.run([*command, run], check=True, capture_output=True)
    return time.monotonic() - started


def main() -> int:
    """Run both in turn; return 1 if the target is missed."""
    parser = results.parser(__doc__, repeats=1)
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    together, apart, memory = [], [], [0.0]
    for _ in tqdm(range(arguments.repeats), desc="turns", disable=None):
        with tempfile.TemporaryDirectory() as directory:
            seconds, memory = sweep(arguments.trials, Path(directory))
            together.append(seconds)
            apart.append(commands(arguments.trials, Path(directory)))
    ratio = Ratio(statistics.median(apart) / statistics.median(together), "x as fast", at_least=TARGET)
    row = f"{arguments.trials} trials of the GRU, 2 epochs each"
    lines = [Line(row, "one sweep", together), Line(row, "as many commands", apart, [ratio])]
    note = (
        f"The sweep's own memory: {memory[0]:.1f} MB after the first trial, {memory[-1]:.1f} MB at the end."
    )
    return results.show(Table("Sweep", "seconds", lines, note), arguments.into)


if __name__ == "__main__":
    sys.exit(main())
