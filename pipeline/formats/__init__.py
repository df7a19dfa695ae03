"""Export formats: one module for each, with its `write` and its `open`."""
