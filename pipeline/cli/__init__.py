"""The command line: Hydra, processes, signals, exit codes, tables."""
