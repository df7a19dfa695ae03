"""The run directory: its files, their locks and checksums, and the state of a run that they tell."""
