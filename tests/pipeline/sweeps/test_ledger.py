"""The ledger: a journal that survives its writer, and tells what was changed in it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BusyError, DamagedError
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps.ledger import Ledger
from tests.pipeline.sweeps.jobs import trial


def test_a_trial_has_one_line_whatever_becomes_of_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.read() == []
    for state in (ledgers.RUNNING, ledgers.DONE):
        for number in (1, 0):
            ledger.write(trial(number, state=state))
    assert ledger.read() == [trial(0), trial(1)]
    assert len(ledger.path.read_text().splitlines()) == 2


def test_what_need_not_run_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number, state in enumerate((ledgers.DONE, ledgers.FAILED, ledgers.PRUNED, ledgers.RUNNING)):
        ledger.write(trial(number, state=state))
    assert [ledger.finished(f"hash{number}") is not None for number in range(5)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    with ledger.locked():
        assert ledger.read()[3].state == ledgers.INTERRUPTED


def test_no_directory_is_used_twice(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.next_number() == 0
    ledger.write(trial(4))
    (tmp_path / "5").mkdir()
    assert ledger.next_number() == 6


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with (
        ledger.locked(),
        pytest.raises(BusyError, match=f"one sweep at a time.*is in use by process {os.getpid()} on "),
        ledger.locked(),
    ):
        pass
    with ledger.locked():
        pass


@pytest.mark.parametrize("text", ["{\n", "[]\n", '{"number": 1}\n', "{}\n{"])
def test_a_damaged_ledger_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger.jsonl").write_text(text)
    with pytest.raises(DamagedError, match="ledger.jsonl must be a ledger"):
        Ledger(tmp_path).read()


def as_earlier(*found: ledgers.Trial) -> str:
    """Return a ledger as it was written before its lines had checksums."""
    return "".join(json.dumps(asdict(one)) + "\n" for one in found)


def test_while_it_is_locked_a_change_is_a_line_at_the_end(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.locked():
        sizes = []
        for state in (ledgers.RUNNING, ledgers.DONE):
            for number in (1, 0):
                before = ledger.path.read_bytes() if ledger.path.exists() else b""
                ledger.write(trial(number, state=state))
                assert ledger.path.read_bytes().startswith(before)
                sizes.append(len(ledger.path.read_text().splitlines()))
                assert Ledger(tmp_path).read() == ledger.read(), "whoever reads the file sees the same"
        assert sizes == [1, 2, 3, 4]
        assert ledger.next_number() == 2
        assert ledger.finished("hash0") == trial(0)
    assert len(ledger.path.read_text().splitlines()) == 2
    assert ledger.read() == [trial(0), trial(1)]


def test_of_a_configuration_the_last_trial_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.locked():
        ledger.write(trial(0, config_hash="a"))
        ledger.write(trial(1, config_hash="b"))
        ledger.write(trial(2, config_hash="a", state=ledgers.FAILED))
        assert [one.number for one in ledger.latest()] == [1, 2]
        assert ledger.finished("a") == trial(0, config_hash="a")
        ledger.write(trial(1, config_hash="c"))
        assert ledger.finished("b") is None
        assert [one.number for one in ledger.latest()] == [1, 2]


def test_half_of_a_last_line_is_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(2):
        ledger.write(trial(number))
    text = ledger.path.read_text()
    begin = text.index("\n") + 1
    for length in range(begin, len(text)):
        ledger.path.write_text(text[:length])
        is_whole = length == len(text) - 1  # Only the end of the line is missing.
        assert ledger.read() == ([trial(0), trial(1)] if is_whole else [trial(0)])
    ledger.path.write_text(text[: begin + 9])
    with ledger.locked():
        ledger.write(trial(5))
    assert ledger.read() == [trial(0), trial(5)]


def test_every_line_is_sealed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(2):
        ledger.write(trial(number))
    text = ledger.path.read_text()
    for changed in (
        text.replace('"objective": 1.0', '"objective": 0.1'),
        as_earlier(trial(0)) + text.splitlines(keepends=True)[1],
        text + as_earlier(trial(2)),
    ):
        ledger.path.write_text(changed)
        with pytest.raises(DamagedError, match="its checksum does not fit"), ledger.locked():
            pass
        assert ledger.path.read_text() == changed, "it is left as it was"


def test_the_ledger_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.path.write_text(as_earlier(trial(0), trial(1, state=ledgers.RUNNING)))
    assert ledger.read() == [trial(0), trial(1, state=ledgers.RUNNING)]
    with ledger.locked():
        ledger.write(trial(2))
    assert ledger.read() == [trial(0), trial(1, state=ledgers.INTERRUPTED), trial(2)]
    assert ledger.path.read_text().count('"sha256"') == 3


def test_a_ledger_to_which_nothing_happens_is_not_rewritten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.locked():
        pass
    assert not ledger.path.exists()
    ledger.write(trial(0))
    before = ledger.path.stat()
    with ledger.locked():
        pass
    assert ledger.path.stat() == before


def test_after_a_line_that_failed_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    with ledger.locked():
        ledger.write(trial(0))
        with monkeypatch.context() as patched:
            patched.setattr(ledgers, "_line", lambda one: '{"numb')
            patched.setattr("os.fsync", full)
            with pytest.raises(OSError, match="No space left.*ledger.jsonl"):
                ledger.write(trial(1))
        ledger.write(trial(2))
        assert Ledger(tmp_path).read() == [trial(0), trial(1), trial(2)]


def test_that_it_cannot_be_compacted_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path)
    with ledger.locked():
        ledger.write(trial(0, state=ledgers.RUNNING))
        ledger.write(trial(0))
        monkeypatch.setattr(ledgers, "write_text", full)
    assert "ledger.jsonl cannot be rewritten" in caplog.text
    assert ledger.read() == [trial(0)]


def full(*arguments: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_last_trial_does_not_vanish_with_the_end_of_its_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.locked():
        for number in range(2):
            ledger.write(trial(number))
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-1])
    assert [one.number for one in ledger.read()] == [0, 1]
    for tail in (b"J", b"}"):
        ledger.path.write_bytes(whole[:-1] + tail)
        with pytest.raises(DamagedError, match="line 2 failed"):
            ledger.read()
    ledger.path.write_bytes(b"[" * 100_000)
    with pytest.raises(DamagedError, match="line 1 failed"):
        ledger.read()


def test_a_file_without_a_whole_line_is_damaged(tmp_path: Path) -> None:
    """The first line of a ledger is renamed into place, and earlier versions replaced the whole file."""
    ledger = Ledger(tmp_path)
    plain = json.dumps(vars(trial(0)))
    for text in (plain[:20], f"{plain}\n{plain[:20]}"):
        ledger.path.write_text(text)
        with pytest.raises(DamagedError, match="must be a ledger"):
            ledger.read()
