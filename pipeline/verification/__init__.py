"""Verification: checkpoints and exports are restored, evaluated and compared with the log of the training."""
