"""The imports of the fork server (`pipeline.cli.processes`): TensorFlow and every stage, but no model.

Every process that the server forks starts with these modules imported.
"""

import sys

from pipeline import Siblings, runtime

sys.meta_path.insert(0, Siblings())

from pipeline.cli import command, composition  # noqa: E402, F401
from pipeline.config import checks  # noqa: E402, F401

runtime.import_tensorflow()

from pipeline import round_trip  # noqa: E402, F401
from pipeline.formats import exporting  # noqa: E402, F401
from pipeline.training import setup  # noqa: E402, F401
from pipeline.verification import page, verifier  # noqa: E402, F401
