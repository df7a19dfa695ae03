"""Plugins that Hydra finds by itself: the launcher of sweeps, the sweeper of searches."""
