"""Runs that are killed, damaged or hostile: really killed, every file damaged in turn, every trick tried."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import saved_model_pb2

from data.base import DataError
from data.npz import Npz
from pipeline import predict, predictor
from pipeline.cli import processes
from pipeline.errors import ConfigError, DamagedError, RoundtripError, UntrustedError
from pipeline.formats.manifest import Manifest
from pipeline.graphs import allowed_operations
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from tests.cases import CASES
from tests.conftest import Command, Finished, rewrite, rewrite_export
from tests.pipeline.test_evaluate import run_evaluate
from tests.slow_disk import main_job

DENSE = CASES[3]
TIMEOUT_SECS = 120


def results(run_dir: Path) -> dict[str, bytes]:
    """Return all that a run came to and that has no time in it: checkpoints, log, graph, answers."""
    found = {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in [*(run_dir / "checkpoints").rglob("*"), run_dir / "metrics.jsonl"]
        if path.is_file() and path.name != "fingerprint.pb"  # TensorFlow puts a random number into it.
    }
    receipt = checksums.checked((run_dir / "verification.json").read_text())
    metrics = [(row["epoch"], row["metrics"]) for row in receipt["epochs"]]
    return {**found, "verdict": receipt["verdict"].encode(), "metrics": json.dumps(metrics).encode()}


def timed(run_dir: Path, model: Sequence[str]) -> float:
    """Run the main job to its end; return its seconds."""
    started = time.monotonic()
    process = processes.start(main_job, run_dir, *model, spares=1)
    process.join(TIMEOUT_SECS)
    assert process.exitcode == 0, run_dir.with_suffix(".log").read_text()
    return time.monotonic() - started


AVERAGED = (
    "model=keras",
    "model.network=tests.zoo.averaged",
    "model.loss=mse",
    "model.targets=target",
    "data=numbers",
    "optimizer=keras",
    "optimizer.name=adam",
    "optimizer.options={use_ema: true}",
)


@pytest.mark.parametrize(
    ("num_kills", "model"),
    [
        # Two kills or more at each line of the log, and before the first; the rest is for the mark slow.
        (14, ("model=dense",)),
        *(pytest.param(number, ("model=dense",), marks=pytest.mark.slow) for number in (50, 500)),
        pytest.param(20, AVERAGED, marks=pytest.mark.slow),
    ],
    ids=["14", "50", "500", "20 of averages and seeds"],
)
def test_a_run_that_is_killed_at_any_instant_goes_on_to_the_same_bits(
    num_kills: int, model: tuple[str, ...], tmp_path: Path
) -> None:
    """Every run is killed once, by SIGKILL at a random instant, and started again with the same command.

    A random time after a random line of the log: where two runs share a processor, times alone would not say
    how far each is.
    """
    timed(tmp_path / "warm", model)
    seconds = timed(tmp_path / "whole", model)
    expected = results(tmp_path / "whole")
    generator = random.Random(0)
    num_rows = len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
    # The first kill after each line follows at once, so that every line has one however fast the run is.
    instants = [
        (number % (num_rows + 1), generator.uniform(0, seconds / 4) if number > num_rows else 0.0)
        for number in range(num_kills)
    ]

    def survive(number: int) -> int | None:
        """Return how many lines the log of a run had when it was killed; `None` if it was done before."""
        run_dir = tmp_path / str(number)
        after, delay = instants[number]
        process = processes.start(main_job, run_dir, *model, spares=1)
        while process.is_alive() and num_lines(run_dir) < after:
            time.sleep(0.002)
        process.join(delay)
        was_alive = process.is_alive()
        process.kill()
        process.join(TIMEOUT_SECS)
        lines = num_lines(run_dir)
        timed(run_dir, model)
        assert results(run_dir) == expected, f"killed {delay:.3f} s after line {after}, with {lines}"
        assert not list(run_dir.rglob(".*staging"))
        return lines if was_alive else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(survive, range(num_kills)))
    killed = [lines for lines in outcomes if lines is not None]
    print(f"\n{len(killed)} of {num_kills} killed, all went on to the same bits. Killed with so many lines:")
    print({lines: killed.count(lines) for lines in sorted(set(killed))})
    assert len(killed) >= 0.9 * num_kills
    assert len(set(killed)) > num_rows / 2


def num_lines(run_dir: Path) -> int:
    log = run_dir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def test_a_run_that_is_told_to_stop_goes_on_from_the_step(command: Command, tmp_path: Path) -> None:
    arguments = ["model=gru", "data.num_train=30000", "train.epochs=2", "export=checkpoint"]
    command("pipeline", *arguments, "hydra.run.dir=whole")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        run = tmp_path / number.name
        started = [sys.executable, "-m", "pipeline", *arguments, f"hydra.run.dir={run}"]
        with subprocess.Popen(started, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and not log_size(run):
                time.sleep(0.01)
            process.send_signal(number)
            signalled = time.monotonic()
            _, stderr = process.communicate(timeout=TIMEOUT_SECS)
        assert process.returncode == code, stderr
        assert time.monotonic() - signalled < 10
        assert f"go on with:  python -m pipeline train.resume={run}" in stderr
        unfinished = checksums.checked((run / "checkpoints" / "unfinished.json").read_text())
        assert unfinished["num_steps"] < 30000 // 32
        command("pipeline", f"train.resume={run}")
        assert results(run) == results(tmp_path / "whole")
    assert "nothing is left to do" in command("pipeline", f"train.resume={run}").stderr


def log_size(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.stat().st_size if log.exists() else 0


@pytest.mark.parametrize(("size", "file"), [(15_000, "checkpoints/graph"), (40_000, "metrics.jsonl")])
def test_a_disk_that_takes_no_more_stops_the_run_and_nothing_is_lost(
    size: int, file: str, command: Command, tmp_path: Path
) -> None:
    """A limit of the size of files: the graph is larger, or the log reaches it after some epochs."""
    arguments = ["pipeline", "model=dense", "train.epochs=90", "export=checkpoint"]
    command(*arguments, "hydra.run.dir=whole")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    limited = [sys.executable, "-m", *arguments, "hydra.run.dir=run"]
    env = {
        key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")
    }  # Its file, too.
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit, env=env)
    assert done.returncode == 1
    message, _ = done.stderr.splitlines()[-2:]
    assert message.startswith("error: A file could not be read or written. OSError: ")
    assert file in message
    assert message.endswith("when the cause is gone, the same command goes on from there.")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob(".*staging"))
    command(*arguments, "hydra.run.dir=run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


class TestFlippedBits:
    """One bit of one file at a time, and what becomes of it."""

    # What is said about a result rather than needed for it, or is made anew whenever it is verified.
    NOT_NEEDED = (".hydra/", ".lock", "pipeline.log", "report.html", "tensorboard/", "verification.json")

    def outcome(self, run: Path, name: str) -> str:
        """Return what the commands that need a file say."""
        found = re.match(r"export/(\w+)/\d+", name)
        try:
            if found:
                predictor.open(run / found[0])
            code = run_evaluate(run, epochs="all", format=found[1] if found else ["checkpoint", "onnx"])
        except RoundtripError as error:
            return f"refused: {error.problems[0].replace(str(run), '.')}"
        return "a mismatch" if code == 3 else "not noticed"

    def test_all_that_matters_is_noticed(
        self, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = Path(shutil.copytree(finished.of(DENSE)[0], tmp_path / "run"))
        generator = random.Random(0)
        names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
        lines, missed = [], []
        for name in names:
            path = run / name
            whole = path.read_bytes()
            if not whole:
                continue
            damaged = bytearray(whole)
            damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            receipt = (run / "verification.json").read_bytes()
            outcome = self.outcome(run, name)
            if outcome == "not noticed" and name.startswith(self.NOT_NEEDED):
                outcome = "no result depends on it"
            path.write_bytes(whole)
            if name != "verification.json":
                (run / "verification.json").write_bytes(receipt)
            lines.append(f"{re.sub(r'[0-9]{9,}', 'VERSION', name):<60}  {outcome[:90]}")
            if outcome == "not noticed":
                missed.append(name)
        capsys.readouterr()
        with capsys.disabled():
            print("\n" + "\n".join(lines))
        assert not missed
        assert len(lines) > 50
        assert sum("no result" in line for line in lines) <= 10
        assert run_evaluate(run) == 0


def save(directory: Path, function: Any) -> None:
    """Write a SavedModel whose `serving_default` is a function of `number`."""
    module = tf.Module()
    module.serving = tf.function(function, input_signature=[tf.TensorSpec([None, 1], tf.float32, "number")])
    module.weights = {}
    tf.saved_model.save(module, str(directory), signatures={"serving_default": module.serving})


def edit_graph(directory: Path, change: Callable[[Any], None]) -> None:
    path = directory / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(model.meta_graphs[0])
    path.write_bytes(model.SerializeToString())


def saving(meta: Any) -> str:
    """Return the name of the function that a saver runs."""
    return next(f.signature.name for f in meta.graph_def.library.function if "save" in f.signature.name)


def restore_saves(meta: Any) -> None:
    (node,) = (node for node in meta.graph_def.node if node.name == meta.saver_def.restore_op_name)
    node.attr["f"].func.name = saving(meta)


def signature_saves(meta: Any) -> None:
    output = next(iter(meta.signature_def["serving_default"].outputs.values()))
    output.name = meta.saver_def.save_tensor_name


def object_saves(meta: Any) -> None:
    meta.object_graph_def.concrete_functions[saving(meta)].SetInParent()


def initializer_saves(meta: Any) -> None:
    name = meta.saver_def.save_tensor_name.partition(":")[0]
    meta.collection_def["saved_model_main_op"].node_list.value[:] = [name]


def operation_saves(meta: Any) -> None:
    node = meta.graph_def.node.add()
    node.name, node.op = "sneaky", saving(meta)


def argument_saves(meta: Any) -> None:
    node = meta.graph_def.node.add()
    node.name, node.op = "sneaky", "PartitionedCall"
    node.attr["f"].func.attr["inner"].func.name = saving(meta)


def initializer_of_an_object_saves(meta: Any) -> None:
    node = meta.object_graph_def.nodes.add()
    node.bare_concrete_function.concrete_function_name = saving(meta)


def method_saves(meta: Any) -> None:
    meta.object_graph_def.nodes.add().function.concrete_functions.append(saving(meta))


def saver_writes_elsewhere(meta: Any) -> None:
    (saver,) = (f for f in meta.graph_def.library.function if f.signature.name == saving(meta))
    saver.node_def.add().op = "WriteFile"


def signature_restores(meta: Any) -> None:
    output = next(iter(meta.signature_def["serving_default"].outputs.values()))
    output.name = f"{meta.saver_def.restore_op_name}:0"


SAVED = "MergeV2Checkpoints, (RestoreV2, )?SaveV2, ShardedFilename"


class TestHostile:
    """Files that somebody made to do something else: refused before they do anything."""

    @pytest.fixture
    def run(self, finished: Finished, tmp_path: Path) -> Path:
        return Path(shutil.copytree(finished.of(DENSE)[0], tmp_path / "run"))

    def export(self, run: Path, format: str) -> Path:
        (directory,) = (run / "export" / format).iterdir()
        return directory

    def hide(self, target: Path) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        """Return a function in whose function's branch a file is written."""

        @tf.function
        def inner(number: tf.Tensor) -> tf.Tensor:
            def write() -> tf.Tensor:
                tf.io.write_file(str(target), "pwned")
                return number

            return tf.cond(tf.reduce_sum(number) > -1e9, write, lambda: number)

        return lambda number: {"output": inner(number)}

    @pytest.mark.parametrize("format", ["saved_model", "simple_save"])
    def test_a_file_that_is_written_by_a_function_of_a_function(
        self, format: str, run: Path, tmp_path: Path
    ) -> None:
        export, target = self.export(run, format), tmp_path / "target"
        save(export, self.hide(target))
        rewrite_export(export)
        for _ in range(2):
            with pytest.raises(
                UntrustedError, match="It has WriteFile. If you know what for, add trust=.WriteFile"
            ):
                predictor.open(export, allow_unverified=True)
        with pytest.raises(RoundtripError, match="It has WriteFile"):
            run_evaluate(run, format=format)
        assert not target.exists()

    def test_a_graph_of_a_run(self, run: Path, tmp_path: Path) -> None:
        save(run / "checkpoints" / "graph", self.hide(tmp_path / "target"))
        rewrite(run / "run.json", lambda facts: facts.update(files=RunDirectory(run).shared_files()))
        with pytest.raises(RoundtripError, match="It has WriteFile"):
            run_evaluate(run, format="checkpoint")
        assert not (tmp_path / "target").exists()

    def test_a_meta_graph(self, run: Path, tmp_path: Path) -> None:
        export = self.export(run, "meta_graph")
        (path,) = export.glob("*.meta")
        meta = tf.compat.v1.MetaGraphDef.FromString(path.read_bytes())
        for node in meta.graph_def.node[-1:]:
            node.op = "ReadFile"
        path.write_bytes(meta.SerializeToString())
        rewrite_export(export)
        with pytest.raises(UntrustedError, match="It has ReadFile"):
            predictor.open(export, allow_unverified=True)

    @pytest.mark.parametrize(
        ("change", "operation"),
        [
            (restore_saves, SAVED),
            (signature_saves, SAVED),
            (object_saves, SAVED),
            (initializer_saves, SAVED),
            (operation_saves, SAVED),
            (argument_saves, SAVED),
            (initializer_of_an_object_saves, SAVED),
            (method_saves, SAVED),
            (signature_restores, "RestoreV2"),
            (saver_writes_elsewhere, "WriteFile"),
        ],
    )
    def test_what_a_loader_runs_may_restore_and_no_more(
        self, change: Callable[[Any], None], operation: str, tmp_path: Path
    ) -> None:
        """The functions that save and restore are needed, but not to be called by anything else."""
        module = tf.Module()
        module.variable = tf.Variable([[1.0]])
        specs = [tf.TensorSpec([None, 1], tf.float32, "number")]
        module.serving = tf.function(lambda number: {"y": number @ module.variable}, input_signature=specs)
        tf.saved_model.save(module, str(tmp_path), signatures=module.serving)
        allowed_operations.check_saved_model(tmp_path)
        edit_graph(tmp_path, change)
        with pytest.raises(UntrustedError, match=f"It has {operation}[.]"):
            allowed_operations.check_saved_model(tmp_path)

    def test_a_graph_in_another_form(self, tmp_path: Path) -> None:
        save(tmp_path, lambda number: {"y": number})
        allowed_operations.check_saved_model(tmp_path)
        (tmp_path / "saved_model.pbtxt").touch()
        with pytest.raises(UntrustedError, match=r"saved_model.pb alone. It has saved_model.pbtxt"):
            allowed_operations.check_saved_model(tmp_path)

    def test_operations_can_be_trusted_for_a_while(self, tmp_path: Path) -> None:
        save(tmp_path / "model", self.hide(tmp_path / "target"))
        with allowed_operations.trusting(["WriteFile"]):
            allowed_operations.check_saved_model(tmp_path / "model")
        with pytest.raises(UntrustedError, match="It has WriteFile"):
            allowed_operations.check_saved_model(tmp_path / "model")

    def test_a_path_that_leads_out(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        export = self.export(run, "onnx")
        rewrite(
            export / "manifest.json", lambda manifest: manifest["files"].update({"../../../../secret": "0"})
        )
        with pytest.raises(DamagedError, match=f"must be inside of {export}. It leads to {tmp_path}/secret"):
            predictor.open(export, allow_unverified=True)
        rewrite(run / "run.json", lambda facts: facts["files"].update({"../secret": "0"}))
        with pytest.raises(DamagedError, match="must be inside of"):
            run_evaluate(run)

    @pytest.mark.parametrize(
        "target", ["os.system", "subprocess.Popen", "models.dense.DenseRegressor", "data"]
    )
    def test_a_class_that_is_no_data(self, target: str, run: Path, tmp_path: Path) -> None:
        def change(facts: dict[str, Any]) -> None:
            facts["config"]["data"] = {"_target_": target, "args": ["touch", str(tmp_path / "target")]}

        rewrite(run / "run.json", change)
        with pytest.raises(
            ConfigError, match=rf"must be in a package that is trusted: data. Received: {target}"
        ):
            run_evaluate(run)
        assert not (tmp_path / "target").exists()

    def test_a_function_that_is_not_trusted(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "stranger").mkdir()
        for name in ("__init__", "data"):
            (tmp_path / "stranger" / f"{name}.py").write_text("def load(): ...\nraise SystemExit('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        section = {"_target_": "data.python.PythonData", "function": "stranger.data.load"}
        rewrite(run / "run.json", lambda facts: facts["config"].update(data=section))
        with pytest.raises(
            ConfigError, match=r"of the package stranger. If it is yours, add trust=\[stranger\]"
        ):
            run_evaluate(run)

    @pytest.mark.parametrize("section", ["data", "verify", "best", "train"])
    def test_sections_that_are_none(self, section: str, run: Path) -> None:
        rewrite(run / "run.json", lambda facts: facts["config"].update({section: 3}))
        with pytest.raises(DamagedError, match=f"must hold config.{section}. It does not: it is damaged"):
            run_evaluate(run)

    def test_data_that_would_be_downloaded(self, run: Path, tmp_path: Path) -> None:
        mnist = {"_target_": "data.mnist.Mnist", "dir": str(tmp_path / "new"), "url": "http://127.0.0.1:9/"}
        rewrite(run / "run.json", lambda facts: facts["config"].update(data=mnist | {"download": True}))
        with pytest.raises(RoundtripError, match="data.download is false"):
            run_evaluate(run)
        assert not (tmp_path / "new").exists()
        with pytest.raises(RoundtripError, match="downloading http://127.0.0.1:9/train.* failed"):
            run_evaluate(run, data={"download": True})

    def test_a_keras_file_that_unpacks_to_far_more(self, run: Path) -> None:
        export = self.export(run, "keras")
        with zipfile.ZipFile(export / "model.keras", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb", bytes(10**8))
        rewrite_export(export)
        with pytest.raises(
            DamagedError, match="it unpacks to 100,.* At most .* are expected of a file of its"
        ):
            predictor.open(export, allow_unverified=True)

    def test_answers_with_the_header_of_a_huge_array(self, run: Path) -> None:
        huge_npz(RunDirectory(run).answers(3))
        for format in ("saved_model", "onnx"):
            rewrite_export(self.export(run, format))
        with pytest.raises(RoundtripError, match=r"answers-0003.npz must be a whole NumPy archive"):
            run_evaluate(run, format=["saved_model", "onnx"])


def huge_npz(path: Path) -> None:
    """Write an archive whose one array says that it has 10 TB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (50, 50_000_000_000)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serving_default:output.npy", header.getvalue() + b"\0" * 100)


def test_data_with_a_header_of_the_second_version(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array(member, np.zeros(100), version=(2, 0))
    assert Npz(path=path).load().num_train == 90


def test_data_with_the_header_of_a_huge_array(tmp_path: Path) -> None:
    huge_npz(tmp_path / "data.npz")
    with pytest.raises(
        DataError, match=r"must have the 10,000,000,000,000 bytes of \[50, 50000000000\] float32"
    ):
        Npz(path=tmp_path / "data.npz").load()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
REQUESTS = st.dictionaries(st.sampled_from(["number", "feature", "signature", "x"]), JSON, max_size=3)


class TestFuzzed:
    """Whatever is sent, and whatever a manifest says: an answer or a sentence."""

    @settings(max_examples=300, deadline=None)
    @given(request=REQUESTS)
    def test_requests(self, dense: predictor.Predictor, request: dict[str, Any]) -> None:
        for signature in dense.signatures.values():
            with contextlib.suppress(predictor.RequestError):
                for value in signature(**request).values():
                    assert value.dtype == np.float32

    @settings(max_examples=300, deadline=None)
    @given(line=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
    def test_lines(self, dense: predictor.Predictor, line: bytes) -> None:
        parsed = predict._parse(line, dense, None)
        predict._answer_all(dense, [parsed])
        answer = json.loads(predict._encode(parsed))
        assert set(answer) <= {"output", "error"}

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        changes=st.dictionaries(st.sampled_from([*Manifest.__dataclass_fields__]), JSON, max_size=3), raw=JSON
    )
    def test_manifests(self, dense: predictor.Predictor, tmp_path: Path, changes: Any, raw: Any) -> None:
        shutil.rmtree(tmp_path / "export", ignore_errors=True)
        shutil.copytree(dense.directory, tmp_path / "export")
        path = tmp_path / "export" / "manifest.json"
        facts = checksums.checked(path.read_text())
        texts = [json.dumps(raw)]
        with contextlib.suppress(ValueError):  # JSON has no word for infinities.
            texts.append(json.dumps(checksums.with_checksum(facts | changes)))
        for text in texts:
            path.write_text(text)
            with contextlib.suppress(RoundtripError):
                predictor.open(tmp_path / "export", allow_unverified=True)


@pytest.fixture(scope="session")
def dense(finished: Finished) -> predictor.Predictor:
    return predictor.open(finished.of(DENSE)[0] / "export" / "onnx")
