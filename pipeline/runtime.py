"""The process-wide state of TensorFlow: starting it, seeding it, and describing it.

TensorFlow's import writes notes to the standard error that no setting turns off. They are held back here,
and shown only if the import fails.
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


def start_tensorflow(*, seed: int, deterministic: bool, rewrites: bool = False) -> None:
    """Import TensorFlow quietly, open its devices, and seed it.

    Args:
        seed: Seeds Python, NumPy and TensorFlow, so that the initial weights depend on nothing else.
        deterministic: Whether the same operations on the same values must give the same bits. See
            https://www.tensorflow.org/api_docs/python/tf/config/experimental/enable_op_determinism.
        rewrites: Whether Grappler does what `REWRITES` names, as in runs that do not record it.
    """
    import_tensorflow()
    with held_back_stderr():
        import tensorflow as tf

        if deterministic:
            tf.config.experimental.enable_op_determinism()
        tf.config.optimizer.set_experimental_options(dict.fromkeys(REWRITES, rewrites))
        tf.keras.utils.set_random_seed(seed)
        tf.zeros([])  # The first operation opens the devices, which writes further notes.


REWRITES = ("arithmetic_optimization", "constant_folding")
"""Rewritings of graphs by Grappler that change the last bits of results, and that are off in every process.

They turn a division by a constant into a product with its inverse, for instance. Whether they see a constant
depends on how a graph is loaded: `tf.saved_model.load` passes captured constants as arguments, a session has
them as nodes. So the same export would give other bits in the one than in the other.
See https://www.tensorflow.org/guide/graph_optimization.
"""


ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
"""Environment variable that makes TensorFlow compute with oneDNN.

Its sums differ in their last bits from those of TensorFlow's own kernels, so every process of a run must have
the same setting. TensorFlow turns it on by itself if the processor has AVX-512. Where there is only AVX2,
the CNN trains 2.7 times faster with it.
"""


def import_tensorflow() -> None:
    """Import TensorFlow and Keras without opening a device."""
    # These must be set before the import, which reads them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault(ONEDNN, "1")
    with held_back_stderr(), _no_garbage_collection():
        import keras  # noqa: F401
        import tensorflow as tf  # noqa: F401
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def held_back_stderr(*, show_on_error: bool = True) -> Iterator[None]:
    """Hold back the standard error of this process, that of C++ libraries included, in the `with` block.

    Args:
        show_on_error: Whether the text is shown after an exception. If not, it is always dropped.
    """
    # C++ writes to the file descriptor, which `contextlib.redirect_stderr` does not change.
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
    """Turn the garbage collector off in the `with` block, and exempt from it all objects made until the end.

    TensorFlow's import makes a million objects that are never freed. To search them for garbage takes a
    quarter of the time of the import, and as long again at the end of the process.
    See https://docs.python.org/3/library/gc.html#gc.freeze.
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
    """Return the versions of the packages and the device of this process, as JSON values."""
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
        "rewrites": any(tf.config.optimizer.get_experimental_options().get(name, True) for name in REWRITES),
    }


def _own_version() -> str | None:
    try:
        return metadata.version("roundtrip")
    except metadata.PackageNotFoundError:  # pragma: no cover - run from a checkout, not installed
        return None


def _own_commit() -> str | None:
    """Return the commit of the checkout that this file is in; `None` if it is not in one."""
    checkout = Path(__file__).parent.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
