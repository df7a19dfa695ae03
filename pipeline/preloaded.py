"""What the fork server imports, so that its children need not: TensorFlow, and all but the models."""

from pipeline import command, composition, config, runtime  # noqa: F401

runtime.import_tensorflow()

from pipeline import exporting, receipts, report, round_trip, training, verification  # noqa: E402, F401
