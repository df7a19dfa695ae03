"""The run directory: its files, how they are written, locked and checked, and what they say of a run."""
