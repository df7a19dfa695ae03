"""The table of export formats: one row of plain data for each, readable without TensorFlow.

A format is a row here and a module of the same name in `pipeline.formats`, which writes and opens it. The
configuration, the predictor, the verification and the pages read what they need of a format from its row.

    FORMATS["onnx"].packages              # ("tf2onnx", "onnx", "onnxruntime")
    [row.name for row in FORMATS.values() if row.exact]
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

DEFAULT_SIGNATURE = "serving_default"
"""The signature that answers requests which do not name one; the name is TensorFlow Serving's."""


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A row of the table.

    Attributes:
        name: The name of the format, as in `export=onnx`.
        exact: Whether a restored model must give the same bits, because no converter rewrites the graph.
        copied: Whether an export is the run's own graph, copied, so that nothing needs to be rehearsed.
        many_epochs: Whether an export may hold several epochs.
        quantizable: Whether the format takes `export.quantization`.
        needs_tensorflow: Whether TensorFlow opens an export.
        packages: Modules that must be importable to write and to open an export; the extra that installs
            them has the name of the format.
        facts: The folder inside an export for its manifest and its receipt. In a SavedModel it is the folder
            that TensorFlow reserves for other people's files.
        path: The path of the file, or of the checkpoint, of an epoch or a signature, relative to the export,
            with the placeholders `{epoch}` and `{stem}`; empty if the directory itself is opened.
        default_stem: The text for `{stem}` if the signature is `serving_default`; for others, it is the name.
        snippet: Code that opens an export with its own runtime alone, with the placeholders `{directory}`,
            `{path}` and `{signature}`.
    """

    name: str
    exact: bool
    copied: bool = False
    many_epochs: bool = False
    quantizable: bool = False
    needs_tensorflow: bool = True
    packages: Sequence[str] = ()
    facts: Literal[".", "assets.extra"] = "."
    path: str = ""
    default_stem: str = ""
    snippet: str

    def path_of(self, *, epoch: int = 0, signature: str = DEFAULT_SIGNATURE) -> str:
        """Return the path of an epoch's or a signature's file, relative to the export."""
        is_default = signature == DEFAULT_SIGNATURE and self.default_stem
        return self.path.format(epoch=epoch, stem=self.default_stem if is_default else signature)


_ROWS = (
    ExportFormat(
        name="saved_model",
        exact=True,
        copied=True,
        facts="assets.extra",
        snippet="""\
import tensorflow as tf
serve = tf.saved_model.load({directory!r}).signatures[{signature!r}]
print(serve.structured_input_signature[1], serve.structured_outputs)""",
    ),
    ExportFormat(
        name="checkpoint",
        exact=True,
        copied=True,
        many_epochs=True,
        path="epoch-{epoch:04d}",
        snippet="""\
import tensorflow as tf
graph = tf.saved_model.load({directory!r} + "/graph")
tf.train.Checkpoint(weights=graph.weights).restore({path!r}).expect_partial()
serve = graph.signatures[{signature!r}]""",
    ),
    ExportFormat(
        name="meta_graph",
        exact=True,
        many_epochs=True,
        path="epoch-{epoch}",
        snippet="""\
import tensorflow as tf
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    saver = tf.compat.v1.train.import_meta_graph({path!r} + ".meta")
    saver.restore(session, {path!r})""",
    ),
    ExportFormat(
        name="simple_save",
        exact=True,
        facts="assets.extra",
        snippet="""\
import tensorflow as tf
session = tf.compat.v1.Session(graph=tf.Graph())
tf.compat.v1.saved_model.load(session, ["serve"], {directory!r})
arrays = {{}}  # an array for each placeholder of the input pipeline, such as "<array>_data_ph:0"
session.run("dataset_init", {{"batch_size_ph:0": 32, **arrays}})""",
    ),
    ExportFormat(
        name="keras",
        exact=False,
        path="model.keras",
        snippet="""\
import keras
network = keras.saving.load_model({path!r}, compile=False)
network.summary()""",
    ),
    ExportFormat(
        name="tflite",
        exact=False,
        quantizable=True,
        needs_tensorflow=False,
        packages=("ai_edge_litert",),
        path="model.tflite",
        snippet="""\
from ai_edge_litert.interpreter import Interpreter
serve = Interpreter(model_path={path!r}).get_signature_runner({signature!r})
print(serve.get_input_details(), serve.get_output_details())""",
    ),
    ExportFormat(
        name="onnx",
        exact=False,
        needs_tensorflow=False,
        packages=("tf2onnx", "onnx", "onnxruntime"),
        path="{stem}.onnx",
        default_stem="model",
        snippet="""\
import onnxruntime
session = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])
print([node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()])""",
    ),
)

FORMATS: Mapping[str, ExportFormat] = {row.name: row for row in _ROWS}
"""Every export format by name, in the order in which the formats are written."""


def lacks(choice: str, extra: str, packages: Sequence[str]) -> str | None:
    """Return a sentence about packages that a choice needs and that are not installed; `None` if all are.

    Args:
        choice: The choice, as it is typed: `export=onnx`.
        extra: The extra of this project that installs the packages.
        packages: Names of the modules.
    """
    missing = [module for module in packages if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return (
        f"{choice} needs {', '.join(missing)}. Not installed. "
        f"Install the extra: pip install 'roundtrip[{extra}]'."
    )
