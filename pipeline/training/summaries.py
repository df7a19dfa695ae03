"""TensorBoard event files: records of `Event` protocol buffers in TensorFlow's record format."""

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
    """Writes scalars to one event file in a folder, from any thread, until it is closed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._lock = threading.Lock()
        self._writer = tf.io.TFRecordWriter(str(folder / name))
        self._write(tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of some tags at a step."""
        value = tf.compat.v1.Summary.Value
        summary = tf.compat.v1.Summary(
            value=[value(tag=tag, simple_value=number) for tag, number in values.items()]
        )
        self._write(tf.compat.v1.Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: tf.compat.v1.Event) -> None:
        try:
            with self._lock:
                self._writer.write(event.SerializeToString())
                self._writer.flush()
        except tf.errors.OpError as error:
            raise OSError(f"The curves cannot be written: {first_line(error)}") from error

    def close(self) -> None:
        """End the file."""
        self._writer.close()
