"""Training: a compiled loop over many steps, evaluated and checkpointed after every epoch."""

from pipeline.training.setup import batch_specs

__all__ = ["batch_specs"]
