"""Going on with a run: the same bits as without the stop, or a sentence that says why not."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from data.base import Dataset
from data.numbers import Numbers
from data.tfrecord import TFRecord, Writer
from models.base import BuiltModel
from models.dense import DenseRegressor
from pipeline import resume
from pipeline.errors import ConfigError, DamagedError, DataSetError, DiskFullError
from pipeline.graphs import checkpoints, sessions
from pipeline.optimizers import SGD, Adam
from pipeline.runs import checksums, progress
from pipeline.runs.directory import RunDirectory
from pipeline.runs.files import naming
from pipeline.runs.progress import Progress
from pipeline.training import loop
from tests.cases import CASES, Case
from tests.conftest import Command, rewrite
from tests.pipeline.test_training import DENSE, files, prepare

STEPS = [1, 5]


def stop_after(num_chunks: int) -> Callable[[], bool]:
    """Return what says stop when it is asked for the time after so many chunks."""
    asked = iter([False] * num_chunks + [True])
    return lambda: next(asked)


def go_on(path: Path, case: Case = DENSE, **changes: Any) -> bool:
    found = progress.find(RunDirectory(path))
    return prepare(path, case, **changes).fit(found)


@pytest.fixture(autouse=True)
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training be stopped after any step."""
    monkeypatch.setattr(loop, "_next_chunk", lambda num_steps, elapsed: 1)


class Dropout(DenseRegressor):
    """Drops what its seed says."""

    def build(self, batch: Any, metadata: Any) -> BuiltModel:
        built = super().build(batch, metadata)

        def loss(batch: dict[str, tf.Tensor], seed: tf.Tensor) -> Any:
            kept = tf.random.stateless_uniform(tf.shape(batch["feature"]), seed) > 0.3
            return built.loss({**batch, "feature": tf.where(kept, batch["feature"], 0.0)}, seed)

        return dataclasses.replace(built, loss=loss)


class KerasDropout(DenseRegressor):
    """Drops what the state of a layer says, which is none of the model's weights."""

    def build(self, batch: Any, metadata: Any) -> BuiltModel:
        import keras

        built = super().build(batch, metadata)
        dropout = keras.layers.Dropout(0.3)

        def loss(batch: dict[str, tf.Tensor], seed: tf.Tensor) -> Any:
            return built.loss({**batch, "feature": dropout(batch["feature"], training=True)}, seed)

        return dataclasses.replace(built, loss=loss)


class Noise(DenseRegressor):
    """Draws numbers from a state that no checkpoint has."""

    def build(self, batch: Any, metadata: Any) -> BuiltModel:
        built = super().build(batch, metadata)

        def loss(batch: dict[str, tf.Tensor], seed: tf.Tensor) -> Any:
            noise = tf.random.normal(tf.shape(batch["feature"]))
            return built.loss({**batch, "feature": batch["feature"] + noise}, seed)

        return dataclasses.replace(built, loss=loss)


def shards(folder: Path) -> Dataset:
    folder.mkdir(exist_ok=True)
    if not any(folder.iterdir()):
        list(Writer(num_shards=3).write(DENSE.load(), folder))
    return TFRecord(dir=folder, batch_size=20).load()


@pytest.mark.parametrize("num_chunks", STEPS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(case: Case, num_chunks: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 3, "compile": "xla" if case.name == "char_lstm" else "graph"}
    dataset = case.load()
    if case.name == "mnist_cnn":  # Few steps will do.
        dataset = dataclasses.replace(dataset, train={k: v[:300] for k, v in dataset.train.items()})
    assert prepare(tmp_path / "whole", case, dataset=dataset, **options).fit()
    stopped = prepare(tmp_path / "run", case, dataset=dataset, stopped=stop_after(num_chunks), **options)
    assert not stopped.fit()
    assert progress.find(RunDirectory(tmp_path / "run")).unfinished is not None
    assert go_on(tmp_path / "run", case, dataset=dataset, **options)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert not (tmp_path / "run" / "checkpoints" / "unfinished.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": Dropout()},
        {"model": KerasDropout()},
        {"optimizer": Adam(learning_rate=0.1, schedule="cosine", warmup_steps=3)},
        {"optimizer": SGD(learning_rate=1e-5, momentum=0.9)},
        {"keep": 1},
        {"patience": 2, "min_delta": 1e9},
        {"dataset": shards},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_it_depends_on_goes_on_too(changes: dict[str, Any], tmp_path: Path) -> None:
    if "dataset" in changes:
        changes = {"dataset": shards(tmp_path / "shards")}
    options: dict[str, Any] = {"epochs": 4, **changes}
    assert prepare(tmp_path / "whole", **options).fit()
    assert not prepare(tmp_path / "run", stopped=stop_after(7), **options).fit()
    stops = 1
    while not go_on(tmp_path / "run", stopped=stop_after(4), **options):
        stops += 1
    assert stops >= 1
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_what_cannot_go_on_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert prepare(tmp_path / "dense", epochs=1).fit()
    assert not caplog.text
    assert prepare(tmp_path / "noise", epochs=1, model=Noise()).fit()
    assert "the model draws numbers with RandomStandardNormal, whose state no checkpoint has" in caplog.text


def test_a_killed_run_begins_the_epoch_again(tmp_path: Path) -> None:
    """Nothing is said of the epoch after the last row; what is there of it may be half."""
    assert prepare(tmp_path / "whole", epochs=3).fit()
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    run.rewrite_rows(run.read_rows()[:2])
    with run.log.open("a") as log:
        log.write('{"epoch": 2, "st')
    run.checkpoint(3).with_suffix(".index").unlink()
    (run.path / "checkpoints" / "epoch-0002.data-00000-of-00001").write_bytes(b"half")
    with run.claimed():
        run.rewrite_rows(run.read_rows())
        assert go_on(run.path, epochs=3)
    assert files(run.path) == files(tmp_path / "whole")


def test_raised_epochs_are_trained_on(tmp_path: Path) -> None:
    assert prepare(tmp_path / "whole", epochs=4).fit()
    assert prepare(tmp_path / "run", epochs=2).fit()
    assert go_on(tmp_path / "run", epochs=4)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert RunDirectory(tmp_path / "run").read_facts()["config"]["train"]["epochs"] == 4
    assert go_on(tmp_path / "run", epochs=4)  # Nothing is left.
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_a_schedule_over_all_epochs_cannot_be_stretched(tmp_path: Path) -> None:
    cosine: dict[str, Any] = {"optimizer": Adam(learning_rate=0.1, schedule="cosine")}
    assert prepare(tmp_path / "run", epochs=2, **cosine).fit()
    with pytest.raises(ConfigError, match="train.epochs cannot be raised: the learning rate follows"):
        go_on(tmp_path / "run", epochs=3, **cosine)
    warm: dict[str, Any] = {"optimizer": Adam(learning_rate=0.1, warmup_steps=4)}
    assert prepare(tmp_path / "warm", epochs=2, **warm).fit()
    assert go_on(tmp_path / "warm", epochs=3, **warm)


def test_other_data_is_refused(tmp_path: Path) -> None:
    assert prepare(tmp_path / "run", epochs=1).fit()
    with pytest.raises(DataSetError, match="The data must be what the run in .* was begun with, SHA-256"):
        go_on(tmp_path / "run", epochs=2, dataset=Numbers(count=99).load())


def test_other_versions_and_devices_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(tmp_path / "run", epochs=1).fit()
    assert go_on(tmp_path / "run", epochs=2)
    assert not caplog.text

    def change(facts: dict[str, Any]) -> None:
        facts["versions"]["tensorflow"] = "2.0"
        facts["device"]["onednn"] = "sometimes"

    rewrite(tmp_path / "run" / "run.json", change)
    assert go_on(tmp_path / "run", epochs=3)
    assert f"going on with tensorflow {tf.__version__}, begun with 2.0: the bits may differ" in caplog.text
    assert "begun with sometimes" in caplog.text


class TestDamage:
    """What is no longer what was written is not gone on from."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Iterator[RunDirectory]:
        path = tmp_path / "run"
        assert not prepare(path, epochs=3, stopped=stop_after(12)).fit()
        yield RunDirectory(path)
        assert prepare(tmp_path / "whole", epochs=3).fit()
        if (path / "run.json").exists():
            assert go_on(path, epochs=3)
            assert files(path) == files(tmp_path / "whole")

    def test_the_newest_whole_epoch_is_gone_on_from(
        self, run: RunDirectory, caplog: pytest.LogCaptureFixture
    ) -> None:
        flip(run.path / "checkpoints" / "epoch-0002.data-00000-of-00001")
        before = run.log.read_bytes()
        for epoch in (1, 2):
            run.answers(epoch).touch()
        found = progress.find(run)
        assert [path.name for path in run.graph.parent.glob("answers-*")] == ["answers-0001.npz"]
        assert (run.path / "metrics.jsonl.damaged").read_bytes() == before
        assert [row.epoch for row in found.rows] == [0, 1]
        assert found.unfinished is None  # It is of the epoch after the damaged one.
        assert "going on from epoch 1: Epoch 2: " in caplog.text
        assert len(run.read_rows()) == 2

    def test_a_damaged_line_of_the_log(self, run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
        lines = run.read_lines()
        run.log.write_text("\n".join([lines[0], lines[1].replace("5", "6"), lines[2], ""]))
        assert [row.epoch for row in progress.find(run).rows] == [0]
        assert "going on from epoch 0: Line 2 of " in caplog.text

    @pytest.mark.parametrize("damage", ["unfinished.json", "step-*.index", "step-*.data*"])
    def test_an_unfinished_epoch_that_is_damaged_begins_again(
        self, run: RunDirectory, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        (path,) = (run.path / "checkpoints").glob(damage)
        flip(path)
        assert progress.find(run).unfinished is None
        assert "going on from the beginning of epoch 3: " in caplog.text

    def test_a_damaged_graph_stops_it(self, run: RunDirectory) -> None:
        flip(run.graph / "saved_model.pb")
        with pytest.raises(DamagedError, match=r"saved_model.pb must have the SHA-256"):
            progress.find(run)
        flip(run.graph / "saved_model.pb")

    def test_nothing_whole(self, run: RunDirectory) -> None:
        for path in (run.path / "checkpoints").glob("epoch-*.index"):
            flip(path)
        with pytest.raises(DamagedError, match="has no epoch to go on from. Start a new one"):
            progress.find(run)
        for path in (run.path / "checkpoints").glob("epoch-*.index"):
            flip(path)

    def test_digests_that_are_missing(self, run: RunDirectory) -> None:
        row = dataclasses.replace(run.read_rows()[2], files={"../../etc/passwd": "0"})
        with pytest.raises(DamagedError, match="The row of epoch 2 must have digests of its checkpoint"):
            run.check_row(row)
        line = json.dumps(checksums.with_checksum(dataclasses.asdict(row) | {"files": 3}))
        with pytest.raises(DamagedError, match="Line 3 of .* Received: digests 3"):
            run.parse_row(2, line)


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file; again, and it is as before."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_checkpoint_without_what_is_asked_for(tmp_path: Path) -> None:
    checkpoints.write_checkpoint(tmp_path / "step", {"losses": {"losses": tf.Variable([1.0])}})
    assert checkpoints.read_group(tmp_path / "step", "losses", ["losses"])["losses"] == np.float32(1)
    with pytest.raises(DamagedError, match="step must hold state. Reading it failed"):
        checkpoints.read_group(tmp_path / "step", "state", ["h"])


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DiskFullError, match=r"must have room for 3 checkpoints of 0.0 MB: 0 MB. Free: 0 MB"):
        prepare(tmp_path / "run")
    with pytest.raises(DiskFullError, match="must have room for 2 checkpoints"):
        prepare(tmp_path / "run", keep="best")


def test_a_new_run_has_no_progress(tmp_path: Path) -> None:
    assert progress.find(RunDirectory(tmp_path)) == Progress()


def test_seals() -> None:
    facts: dict[Any, Any] = {"b": [1, {"x": (1.5, None)}], 3: "a"}
    text = json.dumps(checksums.with_checksum(facts), indent=2)
    assert checksums.checked(text) == {"b": [1, {"x": [1.5, None]}], "3": "a"}
    for broken in (text.replace("1.5", "1.6"), text.replace("sha256", "sha255"), "{}", "[]", "3"):
        with pytest.raises(ValueError, match="checksum does not fit|no JSON object"):
            checksums.checked(broken)
    with pytest.raises(ValueError, match="it is nested too deeply"):
        checksums.checked("[" * 200_000)


def test_no_file_outside_is_opened(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "link").symlink_to("/dev/zero")
    for name in ("../secret", "/etc/passwd", "link"):
        (problem,) = checksums.problems(tmp_path / "export", {name: "0"})
        assert f"must be inside of {tmp_path / 'export'}" in problem


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a" * 300])
def test_a_name_that_is_none_is_a_problem(name: str, tmp_path: Path) -> None:
    (problem,) = checksums.problems(tmp_path, {name: "0"})
    assert problem.startswith(f"{tmp_path} must hold {name!r}. Reading it failed: ")


def test_a_variable_of_an_optimizer_is_found_by_its_position(tmp_path: Path) -> None:
    """Earlier versions named it after TensorFlow's variable, not after the path."""
    written = {"2/adam/momentum": tf.Variable([1.0, 2.0]), "21/adam/momentum": tf.Variable([3.0, 4.0])}
    checkpoints.write_checkpoint(tmp_path / "epoch", {"optimizer": written})
    found = tf.Variable([0.0, 0.0])
    checkpoints.restore(tmp_path / "epoch", {"optimizer": {"2/dense_kernel_momentum": found}})
    assert found.numpy().tolist() == [1.0, 2.0]
    with pytest.raises(DamagedError, match="must hold the variable '3/x'. It is missing"):
        checkpoints.restore(tmp_path / "epoch", {"optimizer": {"3/x": found}})


class TestRecordedOverrides:
    """`train.resume=DIR` brings the overrides that the run recorded."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        prepare(tmp_path / "run", overrides=["model=dense", "+data.name='a/b: c'", "train.epochs=3"])
        return tmp_path / "run"

    def test_those_that_are_not_given(self, run: Path) -> None:
        given = [f"train.resume={run}", "train.epochs=5"]
        assert resume.with_recorded(given) == ["model=dense", "+data.name='a/b: c'", *given]

    @pytest.mark.parametrize(
        "override",
        [
            "+data={_target_: os.system}",
            "model._target_=os.system",
            "model=../../stranger",
            "model@data=../x",
            "+data={count: 3}",
            "data.path=${oc.create:x}",
            "hydra.run.dir=elsewhere",
            "hydra/launcher=joblib",
            "trust=[WriteFile]",
            "train.resume=elsewhere",
        ],
    )
    def test_those_that_choose_code_are_given_anew(self, override: str, run: Path) -> None:
        rewrite(run / "run.json", lambda facts: facts["overrides"].append(override))
        given = [f"train.resume={run}", "train.epochs=5"]
        assert resume.with_recorded(given) == ["model=dense", "+data.name='a/b: c'", *given]

    @pytest.mark.parametrize(
        ("override", "package"),
        [
            ("data.function=os.system", "os"),
            ("+data.function=os.system", "os"),
            ("model.network=mine.nets.price", "mine"),
            ("model.network=/elsewhere/a.keras", "/elsewhere/a.keras"),
            ("model.loss={a: mse, b: mine.losses.focal}", "mine"),
            ("model.metrics.a=[mine.f]", "mine"),
            ("model.loss={class_name: Focal, module: mine, config: {}}", "mine"),
            ("model.loss={class_name: A, config: {fn: {module: mine.losses, class_name: f}}}", "mine"),
            ("model.loss.module=mine", "mine"),
        ],
    )
    def test_functions_need_trust(self, override: str, package: str, run: Path) -> None:
        rewrite(run / "run.json", lambda facts: facts["overrides"].append(override))
        given = [f"train.resume={run}"]
        with pytest.raises(
            ConfigError, match=re.escape(f"is code. If it is yours, add trust=[{package}], or")
        ):
            resume.with_recorded(given)
        again = f"{override.partition('=')[0]}=other"
        assert resume.with_recorded([*given, again])[-2:] == [*given, again]
        if package.isidentifier():
            assert override in resume.with_recorded([*given, f"trust=[{package}]"])

    def test_names_of_keras_are_no_code(self, run: Path) -> None:
        named = [
            "model.loss={class_name: Huber, config: {delta: 2.5}}",
            "model.loss_weights={a: 0.5}",
            "model.metrics=[mae,auc]",
        ]
        rewrite(run / "run.json", lambda facts: facts["overrides"].extend(named))
        assert set(named) < set(resume.with_recorded([f"train.resume={run}"]))

    def test_the_arguments_to_go_on_with_are_enough(self, run: Path) -> None:
        begun = ["model=keras", "model.network=mine.nets.price", "model.loss=mse"]
        rewrite(run / "run.json", lambda facts: facts.update(overrides=begun))
        settings: Any = SimpleNamespace(overrides=begun, trust=["WriteFile"])
        given = shlex.split(resume.arguments(run, settings))
        assert given[1:] == ["trust=[WriteFile,mine]"]
        assert resume.with_recorded(given) == [*begun, *given]
        settings.overrides, settings.trust = ["model=dense"], []
        assert resume.arguments(run, settings) == f"train.resume={run}"

    def test_without_a_run_nothing_is_added(self, run: Path) -> None:
        for given in ([], ["train.resume=null"], ["train.resume=nowhere"], ["a=[", f"train.resume={run}"]):
            assert resume.with_recorded(given) == given

    @pytest.mark.parametrize("damage", [["[a=[]"], "a", [3]])
    def test_what_is_damaged_is_not_there(self, run: Path, damage: Any) -> None:
        rewrite(run / "run.json", lambda facts: facts.update(overrides=damage))
        assert resume.with_recorded([f"train.resume={run}"]) == [f"train.resume={run}"]


def test_where_a_run_goes_on(command: Command, tmp_path: Path) -> None:
    stderr = command("pipeline", "train.resume=nowhere", code=2).stderr
    assert (
        f"train.resume must be the directory of a run that has begun. Received: {tmp_path}/nowhere." in stderr
    )
    arguments = ["model=dense", "train.epochs=1", "export=[checkpoint,saved_model]", "hydra.run.dir=run"]
    command("pipeline", *arguments)
    stderr = command("pipeline", "train.resume=run", "hydra.run.dir=other", code=2).stderr
    assert (
        f"train.resume is where the run goes on: {tmp_path}/run. Received also: {tmp_path}/other." in stderr
    )
    stderr = command("pipeline", "train.resume=run", "train.epochs=0", code=2).stderr
    assert "train.epochs may only be raised, from 1, in the run in" in stderr
    stderr = command("pipeline", "train.resume=run", "model=gru", code=2).stderr
    assert "model._target_ must be 'models.dense.DenseRegressor', as in the run in" in stderr
    assert "nothing is left to do" in command("pipeline", *arguments).stderr
    (tmp_path / "elsewhere").mkdir()
    resumed = command("pipeline", "train.resume=../run", cwd=tmp_path / "elsewhere")
    assert "nothing is left to do" in resumed.stderr
    # What is missing is made again, and no more.
    answers = tmp_path / "run" / "checkpoints" / "answers-0001.npz"
    recorded = answers.stat()
    (export,) = (tmp_path / "run" / "export" / "saved_model").iterdir()
    (export / "assets.extra" / "manifest.json").write_text("{}")
    (tmp_path / "run" / "verification.json").unlink()
    completed = command("pipeline", "train.resume=run")
    assert "verdict: match" in completed.stdout
    assert answers.stat().st_ino == recorded.st_ino  # Other exports are held to them.
    assert len(list((tmp_path / "run" / "export" / "saved_model").iterdir())) == 2
    assert len(list((tmp_path / "run" / "export" / "checkpoint").iterdir())) == 1
    rewrite(tmp_path / "run" / "verification.json", lambda receipt: receipt.update(exports=[]))
    assert "verdict: match" in command("pipeline", *arguments).stdout
    # An epoch that is kept was not verified, and an export is damaged.
    rewrite(tmp_path / "run" / "verification.json", lambda receipt: receipt["epochs"][1].update(epoch=7))
    flip(next((tmp_path / "run" / "export" / "checkpoint").glob("*/*.data-*")))
    assert "verdict: match" in command("pipeline", *arguments).stdout
    assert len(list((tmp_path / "run" / "export" / "checkpoint").iterdir())) == 2
    flip(tmp_path / "run" / "checkpoints" / "epoch-0000.index")
    stderr = command("pipeline", *arguments, code=2).stderr
    assert "epoch-0000.index must have the SHA-256" in stderr


def test_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    variables = {"weights": {"w": tf.Variable([1.0, 2.0])}}
    with pytest.raises(DamagedError, match="nowhere must be a whole checkpoint. Opening it failed"):
        checkpoints.restore(tmp_path / "nowhere", variables)
    checkpoints.write_checkpoint(tmp_path / "epoch", variables)
    (tmp_path / "epoch.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(DamagedError, match="epoch is damaged at 'w'"):
        checkpoints.restore(tmp_path / "epoch", variables)


def test_graphs_that_cannot_be_loaded(tmp_path: Path) -> None:
    """Whole as far as their digest says, and no SavedModel."""
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(DamagedError, match="must be a whole SavedModel. Loading it failed"):
        checkpoints.open_graph(tmp_path)
    with pytest.raises(DamagedError, match="must be a whole SavedModel. Loading it failed"):
        sessions.load(tmp_path)


def test_what_the_disk_says_is_said_once(tmp_path: Path) -> None:
    full = tf.errors.ResourceExhaustedError(None, None, "{{node x}} No space left on device [Op:SaveV2]")
    with (
        pytest.raises(OSError, match=f"^{tmp_path}: No space left on device$"),
        checkpoints.writing(tmp_path),
    ):
        raise full
    for error in (OSError("all is said"), OSError(2, "No such file", "file")):
        with pytest.raises(OSError, match="said|file") as raised, naming(tmp_path):
            raise error
        assert raised.value is error
    with pytest.raises(OSError, match=f"full: '{tmp_path}'"), naming(tmp_path):
        raise OSError(28, "full")


def test_a_log_that_is_no_file(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.log.mkdir()
    with pytest.raises(DamagedError, match="metrics.jsonl must be a file. Reading it failed"):
        run.read_rows()
