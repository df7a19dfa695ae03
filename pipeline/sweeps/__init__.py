"""Sweeps: trials in processes of their own, the ledger of what became of them, searches by Optuna."""
