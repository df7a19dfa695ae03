"""Searches: what is asked of a study, by one process or several, and what becomes of unfinished trials."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.config.formats import lacks
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps import search as searches
from pipeline.sweeps.ledger import Ledger, Trial
from pipeline.sweeps.search import Search
from pipeline.sweeps.space import Space
from pipeline.sweeps.study import RETRIES
from tests.conftest import Command
from tests.pipeline.sweeps.searching import (
    COUNTED,
    SAMPLERS,
    SPACE,
    end,
    found,
    open_search,
    space_of,
    started,
    work,
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "IDLE_SECS", 0.0)


class TestOneProcess:
    @pytest.mark.parametrize("sampler", list(SAMPLERS))
    @pytest.mark.parametrize("in_ask", [False, True])
    def test_a_search_that_was_killed_comes_to_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, in_ask: bool
    ) -> None:
        """Killed while a trial runs, or while it is being asked for, with some values known or none."""
        space = COUNTED if sampler == "grid" else SPACE
        work(open_search(tmp_path / "whole", space, sampler=SAMPLERS[sampler], n_trials=12))
        for turn, most in enumerate((0, 3, 5)):
            broken = open_search(tmp_path / "broken", space, sampler=SAMPLERS[sampler], n_trials=12)
            work(broken, most)
            if in_ask:
                broken.study.ask(dict(list(space.distributions.items())[:turn]))
            else:
                while started(broken) is None:  # NSGA-II may ask for what is known.
                    pass
        rest = open_search(tmp_path / "broken", space, sampler=SAMPLERS[sampler], n_trials=12)
        work(rest)
        assert rest.is_complete()
        assert rest.num_ended == 12
        if sampler not in ("cmaes", "nsga2"):  # They look at numbers, in which repeated trials count.
            assert found(tmp_path / "broken") == found(tmp_path / "whole")
            assert len(set(found(tmp_path / "whole"))) == 12

    def test_the_number_of_trials_is_a_total(self, tmp_path: Path) -> None:
        assert work(open_search(tmp_path, n_trials=3)) == 3
        search = open_search(tmp_path, n_trials=5)
        assert search.num_ended == 3
        assert not search.is_complete()
        assert work(search) == 2
        assert search.num_ended == 5
        assert work(open_search(tmp_path, n_trials=4)) == 0

    def test_another_seed_is_another_search(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            work(open_search(tmp_path / str(seed), seed=seed))
        assert not set(found(tmp_path / "0")) & set(found(tmp_path / "1"))

    def test_a_result_that_was_not_told_is_told_later(self, tmp_path: Path) -> None:
        search = open_search(tmp_path)
        trial = started(search)
        assert trial is not None
        search.ledger.write(replace(trial, state=ledgers.DONE, verdict="match", objective=0.5))
        again = open_search(tmp_path)
        assert again.study.trials[0].value == 0.5
        assert work(again) == 7

    def test_a_trial_that_failed_is_repeated_by_the_same_command(self, tmp_path: Path) -> None:
        search = open_search(tmp_path, n_trials=2)
        for changes in ({"state": ledgers.FAILED, "objective": None}, {}):
            trial = started(search)
            assert trial is not None
            end(search, trial, **changes)
        assert started(search) is None
        assert search.is_complete()
        again = open_search(tmp_path, n_trials=2)
        assert not again.is_complete()
        assert work(again) == 1
        first, _, repeated = again.ledger.read()
        assert repeated.overrides == first.overrides
        assert again.num_ended == 2

    def test_values_that_were_tried_are_not_run_again(self, tmp_path: Path) -> None:
        search = open_search(tmp_path, space_of("c=a,b"), n_trials=6)
        count = 0
        while not search.is_complete():
            trial = started(search)
            if trial is not None:
                end(search, trial, objective=1.0)
                count += 1
        assert count == 2
        assert [trial.value for trial in search.study.trials] == [1.0] * 6

    def test_what_the_ledger_knows_is_not_run_again_without_the_study(self, tmp_path: Path) -> None:
        assert work(open_search(tmp_path, n_trials=3)) == 3
        (tmp_path / "study.db").unlink()
        search = open_search(tmp_path, n_trials=3)
        assert work(search) == 0
        assert [trial.value for trial in search.study.trials] == [
            trial.objective for trial in search.ledger.read()
        ]

    def test_what_was_done_at_the_third_attempt_is_done(self, tmp_path: Path) -> None:
        for _ in range(2):
            assert started(open_search(tmp_path, n_trials=1)) is not None, "and then it is killed"
        search = open_search(tmp_path, n_trials=1)
        first, second = search.ledger.read()
        assert not search.is_repeated(first)
        assert work(search) == 1
        assert search.is_repeated(first)
        assert search.is_repeated(second)
        assert not search.is_repeated(search.ledger.read()[2])
        assert search.num_ended == 1

    def test_a_trial_is_given_up_once(self, tmp_path: Path) -> None:
        search = open_search(tmp_path)
        assert started(search) is not None
        (trial,) = search.study.trials
        search._give_up(trial)
        search._give_up(trial)
        assert [one.state for one in search.study.trials] == [TrialState.FAIL, TrialState.WAITING]

    def test_a_mismatch_is_no_result_for_the_study(self, tmp_path: Path) -> None:
        search = open_search(tmp_path, n_trials=1)
        trial = started(search)
        assert trial is not None
        end(search, trial, state=ledgers.MISMATCH, verdict="mismatch")
        assert search.study.trials[0].state == TrialState.FAIL
        assert work(open_search(tmp_path, n_trials=1)) == 0

    def test_a_trial_that_does_not_look_good_is_stopped(self, tmp_path: Path) -> None:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
        search = open_search(tmp_path, pruner=pruner, n_trials=3)
        for value in (1.0, 2.0):
            trial = started(search)
            assert trial is not None
            assert not search.decide(trial.number, 1, {"loss": value})
            end(search, trial, objective=value)
        trial = started(search)
        assert trial is not None
        assert search.decide(trial.number, 1, {"loss": 9.0})
        end(search, trial, state=ledgers.PRUNED, objective=9.0, verdict=None)
        assert search.study.trials[2].state == TrialState.PRUNED
        assert search.study.trials[2].value == 9.0
        assert search.is_complete()

    def test_two_objectives(self, tmp_path: Path) -> None:
        objectives = [("loss", "minimize"), ("accuracy", "maximize")]
        search = open_search(
            tmp_path, sampler=SAMPLERS["nsga2"], n_trials=2, params={"objectives": objectives}
        )
        for further in (0.25, 0.75):
            trial = started(search)
            assert trial is not None
            assert not search.decide(trial.number, 1, {"loss": 1.0, "accuracy": 0.0})
            end(search, trial, objective=1.0, further=[further])
        assert [trial.values for trial in search.study.best_trials] == [[1.0, 0.75]]


class TestSeveralProcesses:
    """Two searches with ledgers of their own, and one study."""

    @pytest.fixture
    def pair(self, tmp_path: Path) -> Callable[..., tuple[Search, Search]]:
        def make(space: Space = SPACE, **changes: Any) -> tuple[Search, Search]:
            shared = {"storage": f"sqlite:///{tmp_path}/shared.db", "study_name": "s", **changes}
            one, two = (open_search(tmp_path / name, space, **shared) for name in "ab")
            return one, two

        return make

    def test_they_draw_different_values_from_the_same_seed(
        self, pair: Callable[..., tuple[Search, Search]], tmp_path: Path
    ) -> None:
        one, two = pair(n_trials=6)
        while (first := started(one)) is not None and (second := started(two)) is not None:
            end(one, first)
            end(two, second)
        assert one.is_complete()
        assert len({*found(tmp_path / "a"), *found(tmp_path / "b")}) == 6

    def test_one_too_many_is_withdrawn(
        self, pair: Callable[..., tuple[Search, Search]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = pair(n_trials=1)
        ask = two.study.ask
        first: list[Trial | None] = []

        def late(distributions: Any) -> optuna.Trial:
            first.append(started(one))
            return ask(distributions)

        monkeypatch.setattr(two.study, "ask", late)
        assert started(two) is None
        (trial,) = first
        assert trial is not None
        end(one, trial)
        assert two.num_ended == 1
        assert two.study.trials[1].state == TrialState.FAIL

    @pytest.mark.parametrize("dies", [False, True])
    def test_a_grid_is_gone_through_once(
        self,
        pair: Callable[..., tuple[Search, Search]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        dies: bool,
    ) -> None:
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        one, two = pair(COUNTED, sampler=SAMPLERS["grid"], n_trials=3, grace_secs=6.0)
        if dies:
            one.study.ask({})  # And before it has any values, its process dies.
        running: list[tuple[Search, Trial]] = []
        workers = (two,) if dies else (one, two)
        while not two.is_complete():
            running += [(worker, trial) for worker in workers if (trial := started(worker)) is not None]
            if running:
                end(*running.pop(0))
            clock[0] += 1.0
            two.tick()
            assert clock[0] < 60
        assert sorted([*found(tmp_path / "a"), *found(tmp_path / "b")]) == sorted(
            (f"x={x}", f"n={n}", f"c={c}") for x in range(3) for n in (1, 2) for c in "ab"
        )

    def test_one_that_dies_while_it_asks_costs_no_trial(
        self, pair: Callable[..., tuple[Search, Search]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        one, two = pair(n_trials=3, grace_secs=6.0)
        one.study.ask({})
        assert work(two) == 2
        for clock[0] in (10.0, 17.0):
            two.tick()
        assert work(two) == 1
        assert two.is_complete()
        assert two.num_ended == 3
        assert len(set(found(two.ledger.directory))) == 3

    def test_values_of_another_one_are_not_run_again(
        self, pair: Callable[..., tuple[Search, Search]]
    ) -> None:
        one, two = pair(space_of("c=a,b"), n_trials=8)
        for _ in range(2):
            trial = started(one)
            assert trial is not None
            end(one, trial, objective=float(trial.values["c"] == "a"))
        values = {trial.params["c"] for trial in one.study.trials}
        while not two.is_complete():
            trial = started(two)
            if trial is not None:
                values.add(trial.values["c"])
                end(two, trial, objective=0.0)
        assert len(one.ledger.read()) + len(two.ledger.read()) == len(values)

    def test_what_a_dead_one_left_is_tried_again(
        self,
        pair: Callable[..., tuple[Search, Search]],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        one, two = pair(n_trials=2, grace_secs=6.0)
        left, trial = started(one), started(two)
        assert left is not None
        assert trial is not None
        for clock[0] in (10.0, 12.0, 15.0):  # Both live.
            one.tick()
            two.tick()
        for clock[0] in (16.5, 18.0, 20.5):  # One has died.
            two.tick()
            assert started(two) is None
        end(two, trial)
        assert not two.is_complete()
        clock[0] = 22.5
        two.tick()
        assert "trial 0 of the study has not been heard of" in caplog.text
        assert work(two) == 1
        assert two.is_complete()
        assert two.ledger.read()[-1].overrides == left.overrides
        assert two.num_ended == 2
        # It was not dead after all: what it has to say comes too late.
        assert one.is_repeated(one.ledger.read()[0])
        assert one.decide(left.number, 1, {"loss": 1.0}), "it need not go on"
        clock[0] = 40.0
        one.tick()
        end(one, left)
        assert one.study.trials[0].state == TrialState.FAIL
        assert two.num_ended == 2


GRU = ["-m", "model=gru", "hydra/sweeper=optuna", "hydra.sweep.dir=sweep"]
RATES = "optimizer.learning_rate=tag(log, interval(1e-4, 1e-1))"


class TestCommand:
    def test_two_objectives(self, command: Command, tmp_path: Path) -> None:
        search = [
            "hydra/sweeper/sampler=nsga2",
            "hydra.sweeper.n_trials=2",
            "model.units=int(interval(4, 9))",
        ]
        command(
            "pipeline", *GRU, *search, "sweep.metric=[loss,parameters]", "sweep.direction=[minimize,minimize]"
        )
        for trial in Ledger(tmp_path / "sweep").read():
            facts = json.loads((tmp_path / "sweep" / str(trial.number) / "run.json").read_text())
            assert trial.further == [facts["model"]["parameters"]]

    def test_a_search_of_the_gru(self, command: Command, tmp_path: Path) -> None:
        search = ["hydra.sweeper.n_trials=3", "hydra/sweeper/pruner=median", RATES, "model.units=4,8"]
        completed = command("pipeline", *GRU, *search)
        trials = Ledger(tmp_path / "sweep").read()
        assert [trial.state for trial in trials] == [ledgers.DONE] * 3
        assert len({trial.pid for trial in trials}) == 3
        assert completed.stdout.splitlines()[0].split()[:4] == [
            "trial",
            "optimizer.learning_rate",
            "model.units",
            "loss",
        ]
        assert "It takes 4 completed trials" in (tmp_path / "sweep" / "sweep.html").read_text()
        again = command("pipeline", *GRU, *search)
        assert again.stdout == completed.stdout
        assert Ledger(tmp_path / "sweep").read() == trials
        evaluated = command("pipeline.evaluate", "run_dir=sweep", "epochs=last")
        assert evaluated.stdout.splitlines()[-1] == "verdict: match    runs: 3"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "A search needs a key with several values"),
            ([RATES.replace("1e-4", "0")], "optimizer.learning_rate must state values that can be searched"),
            ([RATES, "hydra/launcher=basic"], "needs hydra/launcher=forked, .* Received: basic"),
            ([RATES, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials must be >= 1. Received: 0"),
            ([RATES, "hydra.launcher.n_jobs=-1"], "hydra.launcher.n_jobs must be >= 1. Received: -1"),
            ([RATES, "hydra/sweeper/sampler=grid"], "grid needs a choice.* for optimizer.learning_rate"),
            ([RATES, "model.unit=1,2"], "model.unit is not a key|Key 'unit' is not in struct"),
            (["optimizer=adam,sgdd"], "sgdd"),
            (["train.epochs=int(interval(-1, 3))"], "train.epochs must be >= 0. Received: -1"),
        ],
    )
    def test_what_is_refused_before_any_trial(
        self, command: Command, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        completed = command("pipeline", *GRU, *arguments, code=2)
        assert completed.stderr.startswith("error: ")
        assert re.search(message, completed.stderr), completed.stderr
        assert not list(tmp_path.glob("sweep/[0-9]*"))


def test_a_search_without_its_packages_is_refused() -> None:
    assert lacks("hydra/sweeper=optuna", "sweep", ("optuna", "no_such_package")) == (
        "hydra/sweeper=optuna needs no_such_package. Not installed. "
        "Install the extra: pip install 'roundtrip[sweep]'."
    )


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL server of Debian's package on a free port of this machine; give its URL."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed")  # .ci/run installs it
    # The server refuses to run as root, and must own its directory.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="pg-") as directory, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        if user:
            shutil.chown(directory, "postgres")
        cluster = f"{directory}/data"
        initdb = [*user, str(programs[-1] / "initdb"), "-D", cluster, "-U", "tester", "-A", "trust", "-N"]
        subprocess.run(initdb, check=True, capture_output=True, timeout=120, cwd=directory)
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {directory} -c fsync=off"
        control = [*user, str(programs[-1] / "pg_ctl"), "-D", cluster, "-w", "-l", f"{directory}/log"]
        subprocess.run([*control, "-o", options, "start"], check=True, timeout=120, cwd=directory)
        try:
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, timeout=120, cwd=directory)


def test_two_workers_share_a_postgresql_study_and_one_is_killed(postgresql: str, tmp_path: Path) -> None:
    search = [
        *("-m", "model=dense", "train.epochs=2", "hydra/sweeper=optuna", "hydra.launcher.n_jobs=1"),
        *("hydra.sweeper.n_trials=6", f"hydra.sweeper.storage='{postgresql}'", "hydra.sweeper.grace_secs=6"),
        *("hydra.sweeper.study_name=shared", "optimizer.learning_rate=tag(log, interval(1e-3, 1e-1))"),
    ]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", *search, f"hydra.sweep.dir={name}"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("killed", "living")
    ]
    killed = Ledger(tmp_path / "killed")
    while not any(trial.state == ledgers.RUNNING for trial in killed.read()):
        assert workers[0].poll() is None, workers[0].communicate()[0]
        time.sleep(0.05)
    workers[0].kill()
    workers[0].communicate()
    output, _ = workers[1].communicate(timeout=300)
    assert workers[1].returncode == 0, output
    storage = optuna.storages.RDBStorage(postgresql)
    trials = optuna.load_study(study_name="shared", storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    retried = {int(found.user_attrs[RETRIES]) for found in trials if RETRIES in found.user_attrs}
    states = [found.state for found in trials if found.number not in retried]
    assert states == [TrialState.COMPLETE] * 6, "none is lost, none is one too many"
    assert len(retried) == 1
    complete = [found for found in trials if found.state == TrialState.COMPLETE]
    assert len({json.dumps(found.params) for found in complete}) == 6, "none was run twice"
    assert trials[retried.pop()].params in [found.params for found in complete]
    ran = [trial.study_trial for name in ("killed", "living") for trial in Ledger(tmp_path / name).read()]
    assert len(set(ran)) == len(ran) == 7
