"""Roundtrip: training pipelines whose exports are proven."""
