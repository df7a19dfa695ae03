"""TensorBoard event files: `Event` protocol buffers, as records of a TFRecord file."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from pipeline.errors import first_line


class EventWriter:
    """Writes scalars to a new event file in a folder; any thread may call it, until it is closed.

    Several processes may write into one folder, because each event file has its own name.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._lock = threading.Lock()
        self._writer = tf.io.TFRecordWriter(str(folder / name))
        self._write(tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the value of each tag at an optimizer step.

        Raises:
            OSError: The disk does not take it.
        """
        value = tf.compat.v1.Summary.Value
        summary = tf.compat.v1.Summary(
            value=[value(tag=tag, simple_value=number) for tag, number in values.items()]
        )
        self._write(tf.compat.v1.Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: tf.compat.v1.Event) -> None:
        try:
            with self._lock:
                self._writer.write(event.SerializeToString())
                self._writer.flush()  # TensorBoard shows a run while it trains.
        except tf.errors.OpError as error:
            raise OSError(f"The curves cannot be written: {first_line(error)}") from error

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
