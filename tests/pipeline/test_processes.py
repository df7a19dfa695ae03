"""Fresh processes: what they have imported, and that none outlives whoever waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import processes
from pipeline.cli.stop import Stop


def look_around() -> None:
    """End with 0 if this process has TensorFlow, not started, and no model."""
    from tensorflow.python.eager import context

    seen = [name for name in sys.modules if name.partition(".")[0] == "models"]
    assert "tensorflow" in sys.modules
    assert not seen, seen
    assert context.context()._context_handle is None


def test_a_process_has_tensorflow_imported_and_has_seen_no_model() -> None:
    process = processes.start(look_around)
    process.join(120)
    assert process.exitcode == 0


def test_it_is_there_at_once() -> None:
    """The server has imported; a child that imported by itself would be of another age."""
    process = processes.start(look_around)
    process.join(120)
    began = time.monotonic()
    processes.start(os.getpid).join(120)
    assert time.monotonic() - began < 2


def leave_a_file(noted: str) -> None:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        Path(noted).write_text(file.name)


def test_temporary_files_go_with_it(tmp_path: Path) -> None:
    process = processes.start(leave_a_file, str(tmp_path / "noted"))
    process.join(120)
    assert process.exitcode == 0
    assert not Path((tmp_path / "noted").read_text()).parent.exists()


def test_a_module_runs_as_on_a_command_line(tmp_path: Path) -> None:
    assert processes.run_module("pipeline.evaluate", ["run_dir=nowhere"], Stop()) == 2
    assert processes.run_module("pipeline.evaluate", ["--help"], Stop()) == 0


def wait_forever() -> None:
    while True:
        time.sleep(1)


def wait_for_a_child(file: str) -> None:
    child = processes.start(wait_forever)
    Path(file).write_text(str(child.pid))
    child.join()


def test_a_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    parent = processes.start(wait_for_a_child, str(file))
    while not (file.exists() and file.read_text()):
        assert parent.is_alive()
        time.sleep(0.01)
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    child = int(file.read_text())
    deadline = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_signal_is_passed_on() -> None:
    sleep = ["-n", "1", "-r", "1", "import time; time.sleep(60)"]
    stop = Stop()
    threading.Timer(0.5, stop.signals.append, [signal.SIGTERM]).start()
    assert processes.run_module("timeit", sleep, stop) == -signal.SIGTERM


PROGRAM = """
import os
from pipeline.cli import processes
process = processes.start(os.getpid)
process.join()
print(process.exitcode)
"""


def test_any_program_can_start_one() -> None:
    command = [sys.executable, "-c", PROGRAM]
    completed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert completed.stdout == "0\n"


def run_a_module_with_a_spare(file: str) -> None:
    """Run a module twice, once by the spare; write down the exit codes, and what the spare printed."""
    output = os.open(f"{file}.out", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    started = time.monotonic()
    codes = [processes.run_module("pipeline.evaluate", ["run_dir=nowhere"], Stop())]
    codes.append(processes.run_module("timeit", ["-n", "1", "-r", "1", "pass"], Stop()))
    codes.append(int(time.monotonic() - started))
    Path(file).write_text(" ".join(map(str, codes)))


def test_a_spare_runs_a_module_and_writes_where_its_process_does(tmp_path: Path) -> None:
    process = processes.start(run_a_module_with_a_spare, str(tmp_path / "codes"), spares=2)
    process.join(120)
    first, second, seconds = map(int, (tmp_path / "codes").read_text().split())
    assert (first, second) == (2, 0)
    assert seconds < 3, "neither had to import TensorFlow"
    assert "loop" in (tmp_path / "codes.out").read_text()


def let_a_spare_go() -> None:
    ((spare, connection),) = processes._spares
    connection.close()
    spare.join(30)
    assert spare.exitcode == 0


@pytest.mark.parametrize("function", [os.getpid, let_a_spare_go])
def test_a_spare_that_is_not_used_ends(function: Callable[[], object]) -> None:
    process = processes.start(function, spares=1)
    process.join(60)
    assert process.exitcode == 0
