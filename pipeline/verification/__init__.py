"""Verification: what was written is restored, evaluated and held against the log."""
