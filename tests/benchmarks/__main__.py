"""`python -m tests.benchmarks`: all benchmarks, or one row of one, each in a process of its own.

python -m tests.benchmarks
python -m tests.benchmarks --rows gru
python -m tests.benchmarks --rows predictor --repeats 21
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.benchmarks.training_speed import ROWS

TRAINING = "training_speed"
OTHERS = {"evaluation": "batch_evaluation", "predictor": "predictor_latency"}
LONG = {"sweep": "sweep", "search": "search"}
"""Those that are run by name only: they take 5 and 15 minutes."""


def commands(rows: str) -> list[list[str]]:
    """Return the module and the arguments of each benchmark that has the rows asked for."""
    if rows in OTHERS | LONG:
        return [[(OTHERS | LONG)[rows]]]
    training = [TRAINING, "--rows", rows]
    return [training, *([module] for module in OTHERS.values())] if rows == "all" else [training]


def main() -> int:
    """Run the benchmarks asked for; return the largest of their exit codes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="What is fast, side by side."
    )
    parser.add_argument("--rows", default="all", choices=["all", *ROWS, *OTHERS, *LONG])
    parser.add_argument("--repeats", type=int, help="turns of each contender, in place of a benchmark's own")
    arguments = parser.parse_args()
    repeats = [] if arguments.repeats is None else ["--repeats", str(arguments.repeats)]
    codes = []
    for number, (module, *options) in enumerate(commands(arguments.rows)):
        if number:
            print(flush=True)
        command = [sys.executable, "-m", f"{__package__}.{module}", *options, *repeats]
        codes.append(subprocess.run(command).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
