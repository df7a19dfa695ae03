"""What a search is worth: TPE with a median pruner beside random search, at the same number of trials.

`python -m tests.benchmarks.search`: on the CNN with scikit-learn's digits, the space of
`experiment=sweep_mnist_cnn`, several seeds, one after the other; every trial is exported and verified.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from pipeline import ledger as ledgers
from pipeline.ledger import Ledger

EPOCHS = 8
SAVED = 0.3
LOSS = [("loss", "minimize")]
SEARCHES = {
    "TPE, median pruner": ["hydra/sweeper/sampler=tpe", "hydra/sweeper/pruner=median"],
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
    best = ledgers.best(trials, LOSS)
    assert best is not None
    assert best.objective is not None
    return best.objective, sum(trial.epochs for trial in trials)


def main() -> int:
    """Run the searches in turn, and print what each came to; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="seeds")
    parser.add_argument("--trials", type=int, default=30, help="trials of a search")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in SEARCHES}
    for seed in tqdm(range(arguments.repeats), desc="seeds", disable=None):
        for name, overrides in SEARCHES.items():
            with tempfile.TemporaryDirectory() as directory:
                found[name].append(search(overrides, arguments.trials, seed, directory))
    print(
        f"the CNN on digits, {arguments.trials} trials of at most {EPOCHS} epochs, {arguments.repeats} seeds"
    )
    print(f"\n{'':20}{'best test loss by seed':>42}{'median':>10}{'epochs':>10}{'saved':>8}")
    medians, shares = {}, {}
    for name, results in found.items():
        losses, epochs = zip(*results, strict=True)
        medians[name] = statistics.median(losses)
        by_seed = "".join(f"{loss:8.3f}" for loss in losses)
        shares[name] = saved = 1 - sum(epochs) / (arguments.trials * EPOCHS * arguments.repeats)
        print(f"{name:20}{by_seed:>42}{medians[name]:10.3f}{sum(epochs):10}{saved:8.0%}")
    ours, random = medians.values()
    saved, _ = shares.values()
    is_better, is_cheaper = ours < random, saved >= SAVED
    print(f"\nmedian better than random search's: {'yes' if is_better else 'no'}")
    print(f"at least {SAVED:.0%} of the epochs saved: {'yes' if is_cheaper else 'no'}")
    return int(not (is_better and is_cheaper))


if __name__ == "__main__":
    sys.exit(main())
