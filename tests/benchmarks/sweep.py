"""What a sweep saves: trials of the GRU in one sweep beside as many commands, and the sweep's own memory.

`python -m tests.benchmarks.sweep`: both ways in turn, each as often as `--repeats` says.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from pipeline.ledger import Ledger

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--trials", type=int, default=20)
    arguments = parser.parse_args()
    ratios = []
    for _ in tqdm(range(arguments.repeats), desc="turns", disable=None):
        with tempfile.TemporaryDirectory() as directory:
            together, memory = sweep(arguments.trials, Path(directory))
            apart = commands(arguments.trials, Path(directory))
        ratios.append(apart / together)
        print(f"{arguments.trials} trials of the GRU, 2 epochs each, {os.cpu_count()} cores, seconds")
        print(f"one sweep            {together:8.1f}")
        print(f"as many commands     {apart:8.1f}    {ratios[-1]:.2f} times the sweep's")
        print(
            f"memory of the sweep  {memory[0]:8.1f} MB after the first trial, {memory[-1]:.1f} MB at the end"
        )
    ratio = statistics.median(ratios)
    print(f"\nmedian {ratio:.2f}    target at least {TARGET:g}: {'yes' if ratio >= TARGET else 'no'}")
    return int(ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())
