"""What the fork server imports, so that its children need not: TensorFlow, and all but the models."""

from pipeline import runtime
from pipeline.cli import command, composition  # noqa: F401
from pipeline.config import checks  # noqa: F401

runtime.import_tensorflow()

from pipeline import report, round_trip  # noqa: E402, F401
from pipeline.formats import exporting  # noqa: E402, F401
from pipeline.training import setup  # noqa: E402, F401
from pipeline.verification import verifier  # noqa: E402, F401
