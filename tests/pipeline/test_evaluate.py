"""Restoring by hand, and what is said when something is not as it was: a negative for every proof."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from omegaconf import OmegaConf

from pipeline.errors import ConfigError, DamagedError, RoundtripError
from pipeline.evaluate import check, evaluate
from pipeline.graphs import checkpoints
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps.ledger import Ledger, Trial
from tests.conftest import rewrite, rewrite_export


def run_evaluate(run: Path, **changes: Any) -> int:
    """Call the command's function with its own configuration file and some changes."""
    defaults: Any = OmegaConf.load(Path(__file__).parents[2] / "conf" / "evaluate.yaml")
    values: Any = OmegaConf.masked_copy(defaults, ["epochs", "format", "verify", "data", "trust"])
    values.update({"run_dir": str(run), **changes})
    return evaluate(check(values))


def receipt(run: Path) -> dict[str, Any]:
    return checksums.checked((run / "verification.json").read_text())


def timeless(receipt: Any) -> Any:
    """Return a receipt without what was measured in seconds."""
    if isinstance(receipt, list):
        return [timeless(item) for item in receipt]
    if isinstance(receipt, dict):
        return {k: timeless(v) for k, v in receipt.items() if k not in ("load_secs", "latency_ms")}
    return receipt


def edit_row(run: Path, epoch: int, change: Callable[[dict[str, Any]], None]) -> None:
    log = run / "metrics.jsonl"
    rows = [checksums.checked(line) for line in log.read_text().splitlines()]
    change(rows[epoch])
    log.write_text("".join(json.dumps(checksums.with_checksum(row)) + "\n" for row in rows))


def rewrite_checkpoint(run: Path, epoch: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Read a checkpoint's weights, change them, and write them back under the same names."""
    prefix = RunDirectory(run).checkpoint(epoch)
    graph = checkpoints.open_graph(RunDirectory(run).graph)
    checkpoints.restore(prefix, {"weights": graph.weights})
    values = {name: variable.numpy() for name, variable in graph.weights.items()}
    change(values)
    checkpoints.remove_checkpoint(prefix)
    variables = {name: tf.Variable(value) for name, value in values.items()}
    files = checkpoints.write_checkpoint(prefix, {"weights": variables})
    edit_row(run, epoch, lambda row: row.update(files=files))


FORWARD = "gru_classifier/bidirectional/forward_gru/gru_cell/kernel"
BACKWARD = "gru_classifier/bidirectional/backward_gru/gru_cell/kernel"


class TestMatch:
    def test_every_epoch_and_export_is_in_the_receipt(self, gru_run: Path) -> None:
        before = receipt(gru_run)
        (gru_run / "verification.json").unlink()
        assert run_evaluate(gru_run) == 0
        assert timeless(receipt(gru_run)) == timeless(before)
        assert before["verdict"] == "match"
        assert [row["epoch"] for row in before["epochs"]] == [0, 1, 2]
        assert [row["format"] for row in before["exports"]] == ["saved_model", "checkpoint"]
        logged = [json.loads(line) for line in (gru_run / "metrics.jsonl").read_text().splitlines()]
        for row in before["epochs"]:
            for name, value in logged[row["epoch"]]["test"].items():
                assert row["metrics"][f"test/{name}"] == {
                    "logged": value,
                    "restored": value,
                    "difference": 0.0,
                    "tolerance": 0.0,
                    "match": True,
                }

    def test_each_export_carries_its_own_receipt(self, gru_run: Path) -> None:
        for row in receipt(gru_run)["exports"]:
            folder = {"saved_model": "assets.extra", "checkpoint": "."}[row["format"]]
            inside = checksums.checked((gru_run / row["artifact"] / folder / "verification.json").read_text())
            assert inside == row
            assert inside["verdict"] == "match"
            assert [(r["epoch"], r["artifact"]) for r in inside["epochs"]] == [(2, row["artifact"])]

    @pytest.mark.parametrize(
        ("changes", "shown"),
        [
            ({"epochs": "last"}, ["2", "saved_model@2", "checkpoint@2"]),
            ({"epochs": "best", "format": "checkpoint"}, ["0", "checkpoint@2"]),
            ({"epochs": [2, 0], "format": "checkpoint"}, ["2", "0", "checkpoint@2"]),
            ({"format": "saved_model"}, ["saved_model@2"]),
        ],
    )
    def test_a_part_can_be_chosen(
        self,
        gru_run: Path,
        capsys: pytest.CaptureFixture[str],
        changes: dict[str, Any],
        shown: list[str],
    ) -> None:
        before = receipt(gru_run)
        assert run_evaluate(gru_run, **changes) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == [
            "epoch",
            "test_accuracy",
            "test_loss",
            "restored_accuracy",
            "restored_loss",
            "match",
        ]
        header = lines.index("") if "" in lines else len(lines) - 1
        assert [line.split()[0] for line in lines[1:header]] == shown
        assert lines[-1].startswith("verdict: match")
        assert timeless(receipt(gru_run)) == timeless(before)

    def test_a_run_that_crashed_is_evaluated_up_to_where_it_came(self, gru_run: Path) -> None:
        shutil.rmtree(gru_run / "export")
        (gru_run / "verification.json").unlink()
        log = gru_run / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(lines[:2]) + lines[2][:30])
        for path in (gru_run / "checkpoints").glob("epoch-0002*"):
            path.unlink()
        assert run_evaluate(gru_run) == 0
        found = receipt(gru_run)
        assert [row["epoch"] for row in found["epochs"]] == [0, 1]
        assert (found["format"], found["artifact"]) == ("checkpoint", "checkpoints")
        assert "exports" not in found


class TestMismatch:
    def test_a_tampered_log_line(self, gru_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def better(row: dict[str, Any]) -> None:
            row["test"]["loss"] = np.nextafter(row["test"]["loss"], 0)

        edit_row(gru_run, 1, better)
        assert run_evaluate(gru_run) == 3
        out = capsys.readouterr().out
        assert "checkpoints/epoch-0001, epoch 1: test/loss must be 1." in out
        assert "verdict: mismatch" in out
        found = receipt(gru_run)
        assert found["verdict"] == "mismatch"
        verdicts = [row["metrics"]["test/loss"]["match"] for row in found["epochs"]]
        assert verdicts == [True, False, True]

    def test_a_tolerance_is_the_users_to_choose(self, gru_run: Path) -> None:
        def off(row: dict[str, Any]) -> None:
            row["test"]["loss"] *= 1 + 1e-6

        edit_row(gru_run, 1, off)
        assert run_evaluate(gru_run) == 3
        assert run_evaluate(gru_run, verify={"rel_tolerance": 1e-7}) == 3
        assert run_evaluate(gru_run, verify={"rel_tolerance": 1e-5}) == 0
        assert run_evaluate(gru_run, verify={"abs_tolerance": 1e-5}) == 0

    def test_one_good_epoch_does_not_clear_the_run(self, gru_run: Path) -> None:
        edit_row(gru_run, 1, lambda row: row["test"].update(loss=0.0))
        assert run_evaluate(gru_run) == 3
        assert run_evaluate(gru_run, epochs=2) == 0
        assert receipt(gru_run)["verdict"] == "mismatch"

    def test_a_swapped_pair_of_variables(self, gru_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def swap(values: dict[str, Any]) -> None:
            values[FORWARD], values[BACKWARD] = values[BACKWARD], values[FORWARD]

        rewrite_checkpoint(gru_run, 2, swap)
        assert run_evaluate(gru_run, format="checkpoint") == 3
        assert "checkpoints/epoch-0002, epoch 2: test/loss must be" in capsys.readouterr().out

    def test_rewriting_alone_changes_nothing(self, gru_run: Path) -> None:
        """The swap above is what was found, not the rewriting."""
        rewrite_checkpoint(gru_run, 2, lambda values: None)
        assert run_evaluate(gru_run) == 0

    def test_another_epochs_weights_in_an_export(self, gru_run: Path) -> None:
        export = RunDirectory(gru_run).newest_export("saved_model")
        assert export is not None
        graph = checkpoints.open_graph(export)
        checkpoints.restore(RunDirectory(gru_run).checkpoint(0), {"weights": graph.weights})
        shutil.rmtree(export / "variables")
        (export / "variables").mkdir()
        checkpoints.write_checkpoint(export / "variables" / "variables", {"weights": graph.weights})
        rewrite_export(export)
        assert run_evaluate(gru_run, epochs="last") == 3
        inside = json.loads((export / "assets.extra" / "verification.json").read_text())
        assert inside["verdict"] == "mismatch"
        assert inside["epochs"][0]["metrics"]["test/loss"]["match"] is False

    def test_a_metric_that_is_no_number_never_matches(self, gru_run: Path) -> None:
        def poison(values: dict[str, Any]) -> None:
            values[FORWARD][:] = np.nan

        rewrite_checkpoint(gru_run, 2, poison)
        assert run_evaluate(gru_run, verify={"abs_tolerance": 1e9}) == 3
        assert receipt(gru_run)["epochs"][2]["metrics"]["test/loss"]["restored"] == "nan"


class TestRefused:
    """Bad input, exit code 2: the message names what is wrong."""

    def test_flipped_bits_in_a_checkpoint(self, gru_run: Path) -> None:
        data = gru_run / "checkpoints" / "epoch-0001.data-00000-of-00001"
        content = bytearray(data.read_bytes())
        reader = tf.train.load_checkpoint(str(gru_run / "checkpoints" / "epoch-0001"))
        kernel = reader.get_tensor(checkpoints.variable_key("weights", FORWARD)).tobytes()
        content[bytes(content).index(kernel)] ^= 1
        data.write_bytes(content)
        with pytest.raises(RoundtripError, match=r"Epoch 1: .*epoch-0001.data.* must have the SHA-256"):
            run_evaluate(gru_run)

    @pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
    def test_a_truncated_or_missing_file(self, gru_run: Path, suffix: str) -> None:
        file = gru_run / "checkpoints" / f"epoch-0001{suffix}"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(RoundtripError, match=f"Epoch 1: .*epoch-0001{suffix} must have the SHA-256"):
            run_evaluate(gru_run)
        file.unlink()
        with pytest.raises(RoundtripError, match=f"epoch-0001{suffix} must be there. It is missing"):
            run_evaluate(gru_run)

    def test_a_missing_variable(self, gru_run: Path) -> None:
        rewrite_checkpoint(gru_run, 1, lambda values: values.pop(FORWARD))
        with pytest.raises(RoundtripError, match=f"epoch-0001 must hold the variable '{FORWARD}'"):
            run_evaluate(gru_run)

    def test_a_variable_of_another_shape(self, gru_run: Path) -> None:
        rewrite_checkpoint(gru_run, 1, lambda values: values.update({FORWARD: np.zeros((2, 3))}))
        with pytest.raises(RoundtripError, match=rf"hold '{FORWARD}' as \[30, 30\]. Received: \[2, 3\]"):
            run_evaluate(gru_run)

    def test_a_damaged_graph(self, gru_run: Path) -> None:
        (gru_run / "checkpoints" / "graph" / "saved_model.pb").write_bytes(b"not a graph")
        with pytest.raises(DamagedError, match="saved_model.pb must have the SHA-256"):
            run_evaluate(gru_run)

    def test_a_relabelled_log_line(self, gru_run: Path) -> None:
        log = gru_run / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True)
        log.write_text(lines[0] + lines[2])
        with pytest.raises(DamagedError, match=r"Line 2 of .* must be the row of epoch 1"):
            run_evaluate(gru_run)
        edit_row(gru_run, 1, lambda row: row.update(epoch=1))
        with pytest.raises(DamagedError, match=r"Line 2 of .* must be the row of epoch 1 with .*-0001"):
            run_evaluate(gru_run)

    def test_changed_data(self, gru_run: Path) -> None:
        with pytest.raises(RoundtripError, match="The data must be what the run was trained on, SHA-256 "):
            run_evaluate(gru_run, data={"seed": 1})

    def test_other_metrics_in_the_log(self, gru_run: Path) -> None:
        edit_row(gru_run, 1, lambda row: row["test"].pop("accuracy"))
        with pytest.raises(RoundtripError, match=r"Epoch 1 of the log must have the metrics \['acc"):
            run_evaluate(gru_run)

    def test_an_export_whose_epoch_the_log_lacks(self, gru_run: Path) -> None:
        log = gru_run / "metrics.jsonl"
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
        with pytest.raises(RoundtripError, match="holds epoch 2, which the log does not have"):
            run_evaluate(gru_run)

    @pytest.mark.parametrize("manifest", [None, "{}", "[", "[]", '{"format": "onxx"}'])
    def test_an_export_without_its_manifest(self, gru_run: Path, manifest: str | None) -> None:
        export = RunDirectory(gru_run).newest_export("saved_model")
        assert export is not None
        path = export / "assets.extra" / "manifest.json"
        path.unlink()
        if manifest is not None:
            path.write_text(manifest)
        with pytest.raises(RoundtripError, match=r"manifest.json must say what the export holds"):
            run_evaluate(gru_run)

    def test_a_checkpoint_export_without_its_checkpoint(self, gru_run: Path) -> None:
        export = RunDirectory(gru_run).newest_export("checkpoint")
        assert export is not None
        (export / "epoch-0002.index").unlink()
        with pytest.raises(RoundtripError, match="epoch-0002.index must be there. It is missing"):
            run_evaluate(gru_run)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": "onnx"}, "format must be one of checkpoint, saved_model. Received: onnx"),
            ({"format": ["saved_model", "keras"]}, "format must be one of .* Received: keras"),
            ({"epochs": 7}, "Received: 7"),
            ({"verify": {"abs_tolerance": -1}}, "verify.abs_tolerance must be >= 0"),
            ({"data": {"foo": 1}}, "data.foo is not a key"),
            ({"epoch": 1}, "epoch is not a key. .*Did you mean epochs"),
            ({"verify": None}, "verify must be a section. Received: None"),
            ({"verify": {"abs_tolerance": float("inf")}}, "verify.abs_tolerance must be a finite number"),
            ({"run_dir": "???"}, "run_dir must be given"),
        ],
    )
    def test_a_request_that_does_not_fit(self, gru_run: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            run_evaluate(gru_run, **changes)

    def test_a_damaged_epoch_does_not_keep_the_rest_from_being_evaluated(
        self, gru_run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (gru_run / "checkpoints" / "epoch-0001.index").unlink()
        with pytest.raises(RoundtripError, match="epoch-0001.index must be there"):
            run_evaluate(gru_run)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[-1] for line in lines[1:6]] == ["yes", "DAMAGED", "yes", "yes", "yes"]
        found = receipt(gru_run)
        assert found["verdict"] == "mismatch"
        assert "epoch-0001.index must be there" in found["epochs"][1]["problems"][0]

    def test_what_is_no_longer_there_is_no_longer_in_the_receipt(self, gru_run: Path) -> None:
        export = RunDirectory(gru_run).newest_export("checkpoint")
        assert export is not None
        (export / "epoch-0002.index").unlink()
        with pytest.raises(RoundtripError, match="epoch-0002.index must be there"):
            run_evaluate(gru_run)
        assert receipt(gru_run)["verdict"] == "mismatch"
        shutil.rmtree(export)
        assert run_evaluate(gru_run, epochs="last") == 0
        assert receipt(gru_run)["verdict"] == "match"

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"epochs": [{}]}', '{"epochs": [{"epoch": 1}]}'])
    def test_an_old_receipt_that_is_damaged_is_replaced(self, gru_run: Path, text: str) -> None:
        (gru_run / "verification.json").write_text(text)
        assert run_evaluate(gru_run) == 0
        assert receipt(gru_run)["verdict"] == "match"


class TestSweep:
    """A sweep's directory: every finished trial, in one process and one table."""

    @pytest.fixture
    def sweep(self, gru_run: Path, tmp_path: Path) -> Path:
        directory = tmp_path / "sweep"
        ledger = Ledger(directory)
        directory.mkdir()
        states = (ledgers.DONE, ledgers.FAILED, ledgers.PRUNED)
        for number, state in enumerate(states):
            ledger.write(Trial(number, [f"seed={number}"], str(number), state, "moved since"))
            shutil.copytree(gru_run, directory / str(number))
        return directory

    def test_finished_trials_are_in_one_table(
        self, sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.rmtree(sweep / "2" / "export")
        (sweep / "2" / "verification.json").unlink()
        assert run_evaluate(sweep, epochs=[0, 2]) == 0
        lines = capsys.readouterr().out.splitlines()
        labels = [line.split()[0] for line in lines[: lines.index("")]]
        assert labels == ["trial/epoch", "0/0", "0/2", "0/saved_model@2", "0/checkpoint@2", "2/0", "2/2"]
        assert lines[-1] == "verdict: match    runs: 2"
        assert receipt(sweep / "2")["verdict"] == "match"

    def test_what_is_wrong_with_one_is_said_of_it(
        self, sweep: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (sweep / "0" / "run.json").write_text("{}")
        rewrite(sweep / "2" / "run.json", lambda facts: facts["data"].update(fingerprint="0" * 64))
        with pytest.raises(RoundtripError) as refusal:
            run_evaluate(sweep)
        assert [problem[:9] for problem in refusal.value.problems] == ["Trial 0: ", "Trial 2: "]
        assert "It has changed since" in refusal.value.problems[1]
        assert capsys.readouterr().out == ""

    def test_a_damaged_checkpoint_of_one_of_them(
        self, sweep: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        RunDirectory(sweep / "2").checkpoint(1).with_suffix(".index").write_bytes(b"")
        with pytest.raises(RoundtripError, match="Trial 2: "):
            run_evaluate(sweep)
        output = capsys.readouterr().out
        assert output.splitlines()[-1] == "verdict: mismatch    runs: 2"
        assert "2/1" in output

    def test_one_without_a_finished_trial(self, sweep: Path) -> None:
        Ledger(sweep).path.write_text("")
        with pytest.raises(ConfigError, match=r"ledger.jsonl must have a finished trial. It has none"):
            run_evaluate(sweep)
