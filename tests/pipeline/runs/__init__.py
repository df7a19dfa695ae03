"""Tests of `pipeline.runs`."""
