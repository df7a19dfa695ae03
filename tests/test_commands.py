"""The commands, run as a user runs them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.formats import FORMATS
from pipeline.graphs import checkpoints
from tests.cases import CASES, CORPUS, Case, policy
from tests.conftest import Command, Finished
from tests.markdown import DOCS, blocks
from tests.pipeline.test_evaluate import edit_row

cases = pytest.mark.parametrize("case", CASES, ids=str)

NO_MODEL_CODE = """
import runpy, sys
sys.argv = ["evaluate", *sys.argv[1:]]
try:
    runpy.run_module("pipeline.evaluate", run_name="__main__", alter_sys=True)
except SystemExit as exit:
    assert exit.code == 0, exit.code
assert "tensorflow" in sys.modules
seen = [name for name in sys.modules if name.partition(".")[0] == "models"]
assert not seen, seen
"""

NO_TENSORFLOW = """
import runpy, sys
sys.argv = ["pipeline", *sys.argv[1:]]
try:
    runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
except SystemExit as exit:
    code = exit.code or 0
seen = [name for name in ("tensorflow", "keras", "sklearn") if name in sys.modules]
assert not seen, seen
sys.exit(code)
"""


def run_without_tensorflow(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the main command in a process that fails if it imports TensorFlow."""
    return subprocess.run(
        [sys.executable, "-c", NO_TENSORFLOW, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def only_rows(table: str) -> list[str]:
    return [line for line in table.splitlines() if line.endswith(("yes", "NO"))]


@cases
class TestMainJob:
    def test_every_row_is_restored_exactly(self, case: Case, finished: Finished) -> None:
        run, completed = finished.of(case)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = only_rows(completed.stdout)
        labels = [line.split()[0] for line in lines]
        last = rows[-1]["epoch"]
        exports = [f"{name}@{last}" for name in FORMATS]
        signatures = labels[len(rows) + len(exports) :]
        assert labels[: len(rows) + len(exports)] == [*(str(row["epoch"]) for row in rows), *exports]
        assert list(dict.fromkeys(signatures)) == exports, "the parity table"
        assert all(line.endswith("yes") for line in lines)
        assert completed.stdout.splitlines()[-1].startswith("verdict: match")
        (again,) = re.findall(r"evaluate again:  (.*)", completed.stderr)
        assert shlex.split(again) == ["python", "-m", "pipeline.evaluate", f'run_dir="{run}"']
        assert "\r" not in completed.stderr  # no progress bars where no one watches

    def test_the_run_directory_holds_what_it_must(self, case: Case, finished: Finished) -> None:
        run, _ = finished.of(case)
        assert sorted(path.name for path in run.iterdir()) == [
            ".hydra",
            ".lock",
            ".verification.json.lock",
            "checkpoints",
            "export",
            "metrics.jsonl",
            "pipeline.log",
            "report.html",
            "run.json",
            "tensorboard",
            "verification.json",
        ]
        for pattern in ("**/.*staging*", "**/*.tmp*"):
            assert not list(run.glob(pattern))
        facts = json.loads((run / "run.json").read_text())
        assert facts["config"]["model"]["_target_"].startswith(f"models.{case.name}.")
        (export,) = (run / "export" / "saved_model").iterdir()
        assert abs(int(export.name) - time.time()) < 24 * 3600
        assert sorted(path.name for path in export.iterdir()) == [
            "assets",
            "assets.extra",
            "saved_model.pb",
            "variables",
        ]

    def test_the_restoring_process_never_sees_the_models_code(
        self, case: Case, finished: Finished, tmp_path: Path
    ) -> None:
        run, _ = finished.of(case)
        command = [sys.executable, "-c", NO_MODEL_CODE, f"run_dir='{run}'"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=600)

    def test_the_export_serves_through_the_v1_loader(self, case: Case, finished: Finished) -> None:
        """As TensorFlow Serving loads it: every signature gives what the trained variables give."""
        run, _ = finished.of(case)
        (export,) = (run / "export" / "saved_model").iterdir()
        graph = checkpoints.open_graph(run / "checkpoints" / "graph")
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        checkpoints.restore(run / last["checkpoint"], {"weights": graph.weights})
        expected = {
            name: graph.signatures[name].call(**{k: tf.constant(v) for k, v in request.items()})
            for name, request in case.requests.items()
        }
        expected = {n: {k: v.numpy() for k, v in outputs.items()} for n, outputs in expected.items()}
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(export))
            for name, request in case.requests.items():
                definition = loaded.signature_def[name]
                outputs = session.run(
                    {key: output.name for key, output in definition.outputs.items()},
                    {definition.inputs[key].name: value for key, value in request.items()},
                )
                for key, value in expected[name].items():
                    np.testing.assert_array_equal(outputs[key], value, err_msg=f"{name} {key}")


def test_gru_logits_of_both_batches_through_the_restored_input_pipeline(finished: Finished) -> None:
    """`predict_dataset` batches inside the graph: its logits are those of each batch by itself."""
    run, _ = finished.of(CASES[0])
    (export,) = (run / "export" / "saved_model").iterdir()
    trained = CASES[0].model().build(_specs(CASES[0]), {})
    checkpoints.restore(run / "checkpoints" / "epoch-0002", {"weights": trained.weights})
    features = CASES[0].load().train["features"]
    restored = tf.saved_model.load(str(export)).signatures["predict_dataset"](
        features=tf.constant(features), batch_size=tf.constant(32, tf.int64)
    )["logits"]
    for start in (0, 32):
        batch = tf.constant(features[start : start + 32])
        logits = trained.signatures["serving_default"](features=batch)["logits"]
        np.testing.assert_array_equal(restored[start : start + 32].numpy(), logits.numpy())


CALL = """
request = dict(prompt="License", length=50, temperature=0.8, seed=[1, 2])
print(repr(generate(**{key: tf.constant(value) for key, value in request.items()})["text"].numpy().decode()))
"""

# The programs of docs/formats.md: one with the model's code, and one with neither that nor Roundtrip.
WITH_THE_CODE, WITH_NEITHER = (
    block.text for block in blocks(DOCS / "formats.md", "python") if "generate" in block.text
)
NO_CODE = 'import sys; assert not {"pipeline", "models", "data"} & set(sys.modules)'


def test_three_ways_back_of_the_char_lstm(tmp_path: Path) -> None:
    """The same text in the program that trained, in one with the model's code, in one with neither."""
    from pipeline.config.schema import Export, Verify
    from pipeline.formats import exporting
    from pipeline.optimizers import Adam
    from pipeline.runs.directory import RunDirectory
    from pipeline.training import setup

    lstm = CASES[2]
    dataset = lstm.load()
    run = RunDirectory(tmp_path / "run")
    with run.claimed():
        trained = setup.prepare(
            run,
            lstm.model(),
            dataset,
            Adam(learning_rate=1e-2),
            policy=policy(compile="xla"),
            seed=0,
            metrics=("loss",),
            config={},
            stopped=lambda: False,
        )
        trained.fit()
        nothing = Verify(abs_tolerance=None, rel_tolerance=None, quantized_tolerance=None)
        task = exporting.task_of(
            run, run.read_rows()[2:], Export(formats={"saved_model": True}), dataset, nothing
        )
        exporting.export(task)
    generate = trained.built.signatures["generate"]
    request = {"prompt": "License", "length": 50, "temperature": 0.8}

    def sample(seed: list[int]) -> str:
        inputs = {key: tf.constant(value) for key, value in {**request, "seed": seed}.items()}
        text: bytes = generate(**inputs)["text"].numpy()
        return text.decode()

    assert sample([1, 2]) != sample([1, 3])
    (version,) = (run.path / "export" / "saved_model").iterdir()
    written = {
        'Path("TEXT"))': f'Path("{CORPUS}"), batch_size=4, sequence_length=20)',
        "units=500": "units=8",
        "DIR": str(run.path),
        "VERSION": version.name,
    }
    for program in (WITH_THE_CODE, f"{WITH_NEITHER}{NO_CODE}"):
        for name, value in written.items():
            program = program.replace(name, value)
        arguments = [sys.executable, "-c", program + CALL]
        restored = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
        assert restored.stdout.splitlines()[-1] == repr(sample([1, 2]))


def _specs(case: Case) -> dict[str, tf.TensorSpec]:
    from pipeline.training.setup import batch_specs

    return batch_specs(case.load())


def test_dense_doubles_a_number(command: Command, tmp_path: Path) -> None:
    command("pipeline", "experiment=dense", "hydra.run.dir=run")
    (export,) = (tmp_path / "run" / "export" / "saved_model").iterdir()
    serve = tf.saved_model.load(str(export)).signatures["serving_default"]
    assert serve(number=tf.constant([[7.0]]))["output"].numpy() == pytest.approx(14, abs=0.05)


def test_saved_model_cli_reads_like_documentation(finished: Finished) -> None:
    for case in CASES:
        run, _ = finished.of(case)
        (export,) = (run / "export" / "saved_model").iterdir()
        command = [str(Path(sys.executable).with_name("saved_model_cli")), "show", "--all", "--dir"]
        shown = subprocess.run(
            [*command, str(export)], capture_output=True, text=True, check=True, timeout=120
        ).stdout
        for name, (inputs, outputs) in case.signatures.items():
            (section,) = re.findall(rf"signature_def\['{name}'\]:(.*?)(?:\n\n|\Z)", shown, re.DOTALL)
            assert set(re.findall(r"inputs\['(\w+)'\]", section)) == inputs
            assert set(re.findall(r"outputs\['(\w+)'\]", section)) == outputs
        assert not re.search(r"output_0|inputs_1|args_0", shown)


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "messages"),
        [
            (
                ["train.epoch=3"],
                [
                    "error: train.epoch is not a key. Known here: epochs, compile, precision, "
                    "deterministic, on_interrupt, resume, validation_fraction, init_from, keep, "
                    "limit_batches, overfit_batches, max_seconds, checkpoint_secs, early_stopping. "
                    "Did you mean epochs?"
                ],
            ),
            (
                ["model=gruu"],
                [
                    "error: model must be one of char_lstm, dense, gru, keras, mnist_cnn. Received: gruu. "
                    "Did you mean gru?"
                ],
            ),
            (
                ["export=onxx"],
                [
                    "error: export must be one of all, checkpoint, keras, meta_graph, onnx, saved_model, "
                    "simple_save, tflite. Received: onxx. Did you mean onnx?"
                ],
            ),
            (
                ["export=[saved_model,onxx]"],
                [
                    "error: export must be one of all, checkpoint, keras, meta_graph, onnx, saved_model, "
                    "simple_save, tflite. Received: onxx. Did you mean onnx?"
                ],
            ),
            (
                ["model=gru", "model.nits=3", "train.epochs=-1", "foo.bar=1"],
                [
                    "3 errors:",
                    "  model.nits is not a key. Known here: _target_, num_features, units, "
                    "num_classes. Did you mean units?",
                    "  foo.bar is not a key. Known here: seed, epoch, trust, best, sweep, train, verify, "
                    "optimizer, data, model, export.",
                    "  train.epochs must be >= 0. Received: -1.",
                ],
            ),
            (
                ["model=gru,dense"],
                ["error: model=gru,dense names several values. Add --multirun (-m) to run them all."],
            ),
            (["data=npz"], ["error: data.path must be given. Add data.path=... to the command."]),
            (["--config-dir=nowhere"], ["error: --config-dir must name a folder. Not found: nowhere."]),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else None,
    )
    def test_are_explained_before_tensorflow_is_imported(
        self, arguments: list[str], messages: list[str], tmp_path: Path
    ) -> None:
        completed = run_without_tensorflow(arguments, tmp_path)
        assert completed.returncode == 2, completed.stderr
        assert completed.stderr.splitlines() == messages
        assert completed.stdout == ""
        assert not list(tmp_path.iterdir())

    def test_an_override_that_cannot_be_read(self, command: Command) -> None:
        stderr = command("pipeline", "model=[", code=2).stderr
        assert stderr.startswith("error: model=[ is not an override that can be read: ")

    def test_an_interpolation_that_leads_nowhere(self, command: Command) -> None:
        stderr = command("pipeline", "data.batch_size=${nowhere}", code=2).stderr
        assert stderr == "error: Interpolation key 'nowhere' not found\n"

    def test_help_needs_no_tensorflow(self, tmp_path: Path) -> None:
        for flags in (["--help"], ["--cfg", "job"], ["--hydra-help"]):
            completed = run_without_tensorflow(flags, tmp_path)
            assert completed.returncode == 0, completed.stderr
            assert completed.stdout
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("arguments", "budget"), [(["--help"], 120), (["train.epoch=3"], 220)])
    def test_start_imports_little(self, arguments: list[str], budget: int) -> None:
        """A module takes about a millisecond; seconds would be noise."""
        hydra = "import sys, hydra; print(len(sys.modules))"
        counted = NO_TENSORFLOW.replace("sys.exit(code)", "print(len(sys.modules))")
        numbers = [
            int(
                subprocess.check_output(
                    [sys.executable, "-c", *code], text=True, stderr=subprocess.DEVNULL
                ).split()[-1]
            )
            for code in ([hydra], [counted, *arguments])
        ]
        assert numbers[1] - numbers[0] <= budget

    def test_help_lists_the_choices_and_the_keys(self, command: Command) -> None:
        stdout = command("pipeline", "--help", "model=dense").stdout
        assert "\nmodel: char_lstm, dense, gru, keras, mnist_cnn\n" in stdout
        assert "\n  _target_: models.dense.DenseRegressor\n" in stdout
        assert "hydra:" not in stdout

    def test_a_run_directory_in_use_is_left_as_it_was(self, finished: Finished, command: Command) -> None:
        run, _ = finished.of(CASES[0])
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        arguments = ["export=all", *CASES[0].overrides, f"hydra.run.dir='{run}'"]
        stderr = command("pipeline", *arguments, "seed=5", code=2).stderr
        assert f"seed must be 0, as in the run in {run}. Received: 5. Choose another" in stderr
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before

    def test_data_that_the_model_does_not_take(self, command: Command, tmp_path: Path) -> None:
        stderr = command("pipeline", "model=gru", "data=numbers", code=2).stderr
        assert "features: [any, any, 30] float32" in stderr
        assert "Received: feature [100, 2] float32" in stderr
        assert not list(tmp_path.rglob("checkpoints"))

    def test_a_model_that_needs_a_vocabulary(self, command: Command, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", tokens=np.zeros((40, 5), np.uint8))
        stderr = command("pipeline", "model=char_lstm", "data=npz", "data.path=a.npz", code=2).stderr
        assert "needs data that states its vocabulary" in stderr

    def test_an_error_is_a_sentence_and_the_traceback_is_in_the_log(
        self, command: Command, tmp_path: Path
    ) -> None:
        overrides = [
            "model=dense",
            "optimizer=sgd",
            "optimizer.learning_rate=1e30",
            "hydra.run.dir=run",
        ]
        completed = command("pipeline", *overrides, code=1)
        assert "error: NonFiniteLoss: The training loss must be finite" in completed.stderr
        assert completed.stderr.endswith(f"traceback: {tmp_path / 'run' / 'pipeline.log'}\n")
        assert "Traceback" in (tmp_path / "run" / "pipeline.log").read_text()
        full = command("pipeline", "train.epochs=-1", code=2, env={"HYDRA_FULL_ERROR": "1"})
        assert "Traceback" in full.stderr
        assert full.stderr.endswith("error: train.epochs must be >= 0. Received: -1.\n")

    def test_a_mismatch_exits_with_3(self, gru_run: Path, command: Command) -> None:
        edit_row(gru_run, 1, lambda row: row["test"].update(loss=2.0))
        completed = command("pipeline.evaluate", f"run_dir={gru_run}", code=3)
        assert "verdict: mismatch" in completed.stdout
        assert completed.stderr == ""

    def test_a_run_directory_that_is_none(self, command: Command, tmp_path: Path) -> None:
        stderr = command("pipeline.evaluate", "run_dir=nowhere", code=2).stderr
        assert stderr.startswith("error: run_dir must be a directory that a run has written.")
        assert not list(tmp_path.iterdir())

    def test_a_configuration_that_does_not_exist(self, command: Command) -> None:
        for overrides in ([], ["train.epoch=3"]):
            stderr = command("pipeline", "--config-name=nowhere", *overrides, code=2).stderr
            assert stderr.startswith("error: Cannot find primary config 'nowhere'.")

    def test_a_configuration_path_changes_nothing_about_the_verdict(
        self, gru_run: Path, command: Command
    ) -> None:
        conf = Path(__file__).parent.parent / "conf"
        arguments = ["pipeline.evaluate", f"--config-path={conf}", f"run_dir={gru_run}", "epochs=last"]
        command(*arguments)
        edit_row(gru_run, 2, lambda row: row["test"].update(loss=2.0))
        command(*arguments, code=3)
        command("pipeline", "--config-path=nowhere", code=2)
        command("pipeline", "--experimental-rerun=job.pickle", code=2)

    def test_changed_bytes_of_the_data(self, command: Command, tmp_path: Path) -> None:
        features = np.random.default_rng(0).normal(size=(80, 4, 30)).astype(np.float32)
        labels = np.arange(80, dtype=np.int32) % 5
        np.savez(tmp_path / "a.npz", features=features, labels=labels)
        command("pipeline", "model=gru", "data=npz", "data.path=a.npz", "hydra.run.dir=run")
        features[3, 1, 7] += 1e-3
        np.savez(tmp_path / "a.npz", features=features, labels=labels)
        stderr = command("pipeline.evaluate", "run_dir=run", code=2).stderr
        assert stderr.startswith("error: The data must be what the run was trained on, SHA-256 ")

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("hydra.run.dir=null", "error: hydra.run.dir"),
            ("train=[1]", "error: train"),
            ("model=null", "error: "),
            ("hydra.run.dir='run[1]'", "error: hydra.run.dir must have none of "),
        ],
    )
    def test_odd_overrides(self, command: Command, argument: str, message: str) -> None:
        stderr = command("pipeline", argument, code=2).stderr
        assert stderr.startswith(message)
        assert "is not a key" not in stderr
        assert len(stderr.splitlines()) == 1

    def test_a_choice_that_does_not_exist_in_a_sweep(self, command: Command) -> None:
        stderr = command("pipeline", "-m", "model=gru,gruu", code=2).stderr
        assert "error: In 'config': Could not find 'model/gruu' Available options in 'model'" in stderr


def start(arguments: list[str], cwd: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "pipeline", *arguments], cwd=cwd, text=True, **options)


def wait_for_rows(process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "on_interrupt", "code"),
    [(signal.SIGTERM, "stop", 143), (signal.SIGINT, "export", 130)],
)
def test_a_signal_stops_cleanly(number: signal.Signals, on_interrupt: str, code: int, tmp_path: Path) -> None:
    arguments = ["model=dense", "train.epochs=100000", "hydra.run.dir=run"]
    process = start(
        [*arguments, f"train.on_interrupt={on_interrupt}"],
        tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for_rows(process, log)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == code, stderr
    assert f"{number.name}: stopping in good order" in stderr
    assert stderr.splitlines()[-1] == f"error: stopped by {number.name}"
    rows = log.read_text().splitlines()
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.index"))
    exported = tmp_path / "run" / "export" / "saved_model"
    if on_interrupt == "stop":
        assert not exported.exists()
        assert stdout == ""
    else:
        assert f"saved_model@{len(rows) - 1} " in stdout
        assert "verdict: match" in stdout


def test_ctrl_c_stops_a_whole_sweep(tmp_path: Path) -> None:
    arguments = ["-m", "model=dense", "train.epochs=100000", "seed=0,1", "hydra.sweep.dir=sweep"]
    arguments.append("hydra.launcher.n_jobs=1")
    process = start(arguments, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_rows(process, tmp_path / "sweep" / "0" / "metrics.jsonl")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert not (tmp_path / "sweep" / "1").exists()


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def forked_of(pid: int) -> list[int]:
    """Return the processes that a command's fork server has forked."""
    return [forked for server in children_of(pid) for forked in children_of(server)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 1), (signal.SIGTERM, 143)])
def test_a_signal_to_the_verification(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """Killed, it fails the command; told to stop, the command takes it along."""
    process = start(
        ["model=dense", "train.epochs=500", "hydra.run.dir=run"],
        tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    exported = tmp_path / "run" / "export" / "saved_model"
    while not (exported.exists() and forked_of(process.pid)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    (child,) = forked_of(process.pid)
    os.kill(child if number == signal.SIGKILL else process.pid, number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert not Path(f"/proc/{child}").exists()
    assert not (tmp_path / "run" / "verification.json").exists()


def test_ctrl_c_before_the_first_step(tmp_path: Path) -> None:
    arguments = ["model=dense", "train.epochs=100000", "hydra.run.dir=run"]
    process = start(arguments, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    claimed = tmp_path / "run" / "checkpoints"
    while not claimed.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "error: stopped by SIGINT"


def test_bars_show_on_a_terminal(tmp_path: Path) -> None:
    terminal, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = start(["model=dense", "train.epochs=5", "hydra.run.dir=run"], tmp_path, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
    os.close(terminal)
    assert process.wait(timeout=300) == 0
    text = shown.decode()
    assert re.search(r"epochs: 100%.*5/5", text)
    assert re.search(r"steps:.*5/5.*loss ", text)
    assert "loss=" in text


def test_a_sweep_runs_every_combination(command: Command, tmp_path: Path) -> None:
    command("pipeline", "-m", "model=dense", "train.epochs=1,2", "hydra.sweep.dir=sweep")
    for job, epochs in (("0", 1), ("1", 2)):
        receipt = json.loads((tmp_path / "sweep" / job / "verification.json").read_text())
        assert receipt["verdict"] == "match"
        assert len(receipt["epochs"]) == epochs + 1
    failing = ["-m", "model=dense", "seed=1,-1", "train.epochs=1"]
    stderr = command("pipeline", *failing, code=2).stderr
    assert "seed must be >= 0. Received: -1. (model=dense seed=-1 train.epochs=1)" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sweep", "outputs"]
    assert not list(tmp_path.glob("outputs/**/checkpoints")), "no trial was run"


def test_the_reader_of_the_output_may_go_away(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start(["--help"], tmp_path, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr
