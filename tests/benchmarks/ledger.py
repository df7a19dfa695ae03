"""Processor time of a sweep's bookkeeping for one trial, by the number of trials before it."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pipeline.sweeps import leaderboard
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps.leaderboard import LeaderboardFile
from pipeline.sweeps.ledger import Ledger, Trial

LOSS = [("loss", "minimize")]
NUM_MEASURED = 40


def trial_of(number: int) -> Trial:
    """Return a trial as it is when it starts."""
    overrides = [f"optimizer.learning_rate={1e-4 * (number + 1)!r}", f"model.units={number % 97}", "seed=0"]
    digest = ledgers.config_hash({"number": number})
    return Trial(number, overrides, digest, ledgers.RUNNING, f"/sweeps/long/{number}", study_trial=number)


def ended(trial: Trial) -> Trial:
    """Return the same trial as it is when it has ended."""
    objective = 1 / (trial.number + 1)
    return replace(
        trial, state=ledgers.DONE, objective=objective, verdict="match", epochs=10, seconds=12.5, pid=4711
    )


def run_trial(ledger: Ledger, file: LeaderboardFile, number: int) -> None:
    """Do what a sweep does for one trial besides running it."""
    trial = trial_of(ledger.next_number())
    assert ledger.finished(trial.config_hash) is None
    ledger.write(trial)
    ledger.write(replace(trial, pid=4711))
    ledger.write(ended(trial))
    file.update()
    assert leaderboard.best(ledger.latest(), LOSS) is not None
    assert trial.number == number


def main(num_trials: int) -> None:
    """Print the processor time per trial after so many trials."""
    with tempfile.TemporaryDirectory() as directory:
        ledger = Ledger(Path(directory))
        with ledger.locked():
            for number in range(num_trials):
                ledger.write(ended(trial_of(number)))
            file = LeaderboardFile(ledger, LOSS)
            begin = time.process_time()
            for number in range(num_trials, num_trials + NUM_MEASURED):
                run_trial(ledger, file, number)
            each = (time.process_time() - begin) / NUM_MEASURED
    print(f"{num_trials} trials: {1e3 * each:.1f} ms of processor time for the next one")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
