"""The process-wide state of TensorFlow: how it is started, seeded and described.

TensorFlow's import writes notes to the process's standard error that no setting turns off; they are
kept back here, and shown only if the import fails.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any


def start_tensorflow(*, seed: int, deterministic: bool) -> None:
    """Import TensorFlow quietly, open its devices, seed it, and make its operations deterministic.

    Args:
        seed: Seeds Python, NumPy and TensorFlow, so that initial weights follow from it alone.
        deterministic: Whether the same operations on the same values must give the same bits.
    """
    import_tensorflow()
    with held_back_stderr():
        import tensorflow as tf

        if deterministic:
            tf.config.experimental.enable_op_determinism()
        tf.keras.utils.set_random_seed(seed)
        tf.zeros([])  # opens the devices, which has its own notes to write


ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
"""Whether TensorFlow computes with oneDNN, whose sums differ in their last bits from its own kernels'.

TensorFlow turns it on by itself where the processor has AVX-512; where there is only AVX2, the CNN trains 2.7
times faster with it. Every process of a run must have the same setting.
"""


def import_tensorflow() -> None:
    """Import TensorFlow and Keras without starting anything."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault(ONEDNN, "1")
    with held_back_stderr(), _no_garbage_collection():
        import keras  # noqa: F401
        import tensorflow as tf  # noqa: F401
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def held_back_stderr(*, show_on_error: bool = True) -> Iterator[None]:
    """Send the standard error of this process and its libraries to a file; show it on an error.

    Without `show_on_error` it is dropped then, too: the error says enough.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            if show_on_error:
                held.seek(0)
                os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Import without looking for garbage, and never look again at what was imported.

    TensorFlow's import makes a million objects that stay: to search them takes a quarter of its time, and
    as long again when the process ends.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def describe() -> dict[str, Any]:
    """Return the versions and the device that this process computes with, as JSON values."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
            "roundtrip": _own_version(),
            "roundtrip_commit": _own_commit(),
        },
        "device": {
            "type": "GPU" if gpus else "CPU",
            "names": [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
            or [platform.processor() or platform.machine()],
            "cores": os.cpu_count(),
            "onednn": os.environ[ONEDNN] != "0",
        },
    }


def _own_version() -> str | None:
    try:
        return metadata.version("roundtrip")
    except metadata.PackageNotFoundError:  # pragma: no cover - run from a checkout, not installed
        return None


def _own_commit() -> str | None:
    """Return the commit of the checkout that this file is part of, if it is one."""
    checkout = Path(__file__).parent.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
