"""The export formats: a row of plain data for each, readable without TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


FORMATS = ("saved_model", "checkpoint", "meta_graph", "simple_save", "keras", "tflite", "onnx")


"""Every export format, in the order in which they are written."""


EXTRAS = {
    "tflite": ("ai_edge_litert",),
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "sweep": ("optuna", "cmaes"),
}


"""The packages of an extra; a format's has the name of the format."""


MANY_EPOCHS = ("checkpoint", "meta_graph")


"""Formats whose exports hold any number of epochs."""
