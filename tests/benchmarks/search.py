"""What a search is worth: TPE with a median pruner beside random search, at the same number of trials.

`python -m tests.benchmarks.search`: on the CNN with scikit-learn's digits, the space of
`experiment=sweep_mnist_cnn`, several seeds, one after the other; every trial is exported and verified.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from pipeline.sweeps import leaderboard
from pipeline.sweeps.ledger import Ledger
from tests.benchmarks import results
from tests.benchmarks.results import Line, Ratio, Table

EPOCHS = 8
SAVED = 0.3
LOSS = [("loss", "minimize")]
OURS = "TPE, median pruner"
SEARCHES = {
    OURS: ["hydra/sweeper/sampler=tpe", "hydra/sweeper/pruner=median"],
    "random": ["hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none"],
}


def search(arguments: list[str], num_trials: int, seed: int, directory: str) -> tuple[float, int]:
    """Return the best loss of a search, and how many epochs it trained."""
    command = [
        *(sys.executable, "-m", "pipeline", "experiment=sweep_mnist_cnn", f"train.epochs={EPOCHS}"),
        *(f"hydra.sweep.dir={directory}", f"hydra.sweeper.n_trials={num_trials}"),
        *(f"hydra.sweeper.seed={seed}", *arguments),
    ]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode:
        sys.exit(f"{' '.join(command)} ended with {completed.returncode}:\n{completed.stderr}")
    trials = Ledger(Path(directory)).latest()
    best = leaderboard.best(trials, LOSS)
    assert best is not None
    assert best.objective is not None
    return best.objective, sum(trial.epochs for trial in trials)


def main() -> int:
    """Run the searches in turn; return 1 if a target is missed."""
    parser = results.parser(__doc__, repeats=5)
    parser.add_argument("--trials", type=int, default=30, help="trials of a search")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in SEARCHES}
    for seed in tqdm(range(arguments.repeats), desc="seeds", disable=None):
        for name, overrides in SEARCHES.items():
            with tempfile.TemporaryDirectory() as directory:
                found[name].append(search(overrides, arguments.trials, seed, directory))
    num_epochs = arguments.trials * EPOCHS * arguments.repeats
    losses = {name: [loss for loss, _ in trials] for name, trials in found.items()}
    saved = {name: 1 - sum(epochs for _, epochs in trials) / num_epochs for name, trials in found.items()}
    ours, random = map(statistics.median, losses.values())
    compared = [
        [
            Ratio(random / ours, "x as good as random search", at_least=1),
            Ratio(saved[OURS], "of the epochs saved", at_least=SAVED),
        ],
        [],
    ]
    row = f"the CNN on digits, {arguments.trials} trials of at most {EPOCHS} epochs"
    lines = [Line(row, *one) for one in zip(losses, losses.values(), compared, strict=True)]
    by_seed = "; ".join(
        f"{name}: {', '.join(f'{loss:.3f}' for loss in values)}" for name, values in losses.items()
    )
    note = f"By seed: {by_seed}."
    return results.show(Table("Search", "best test loss", lines, note), arguments.into)


if __name__ == "__main__":
    sys.exit(main())
