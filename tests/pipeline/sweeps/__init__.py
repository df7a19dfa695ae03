"""Tests of `pipeline.sweeps`."""
