"""Export formats, one a module, each with `write` and `open` side by side."""
