"""Beginning from trained weights: those of another run, of a checkpoint of one, or of a `.keras` file.

    train.init_from=RUN                          the last epoch of a run
    train.init_from=RUN/checkpoints/epoch-0003   an epoch of it
    train.init_from=FILE.keras                   a model that Keras has saved

A variable takes the value of that with its path, if the shapes are equal. So a network with a new head
begins with the trained body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DamagedError, first_line
from pipeline.graphs import checkpoints
from pipeline.runs.directory import INDEX, RunDirectory

if TYPE_CHECKING:
    import numpy as np

    from models.base import BuiltModel

log = logging.getLogger("pipeline")

Values = tuple[Mapping[str, list[int]], Callable[[str], "np.ndarray"]]
"""The shape of each variable by path, and a function that reads the value of one."""


def begin_from(source: Path, built: BuiltModel) -> None:
    """Assign to the variables of a model the values that a run or a file has for their paths.

    Layers that were fitted to the data, such as `Normalization`, keep what this data gave them.

    Args:
        source: A run's directory, the path of a checkpoint without its suffix, or a `.keras` file.
        built: The model.

    Raises:
        ConfigError: There is nothing of the kind, or no variable fits.
        DamagedError: The run or the file is damaged.
    """
    shapes, read = _of_keras_file(source) if source.suffix == ".keras" else _of_checkpoint(source)
    layers = built.network._flatten_layers() if built.network is not None else []
    fitted = {id(v.value) for layer in layers if hasattr(layer, "adapt") for v in layer.variables}
    wanted = {path: v for path, v in built.variables.items() if id(v) not in fitted}
    taken = [path for path, v in wanted.items() if shapes.get(path) == v.shape.as_list()]
    left = [
        f"{path} {v.shape.as_list()} ({'there ' + str(shapes[path]) if path in shapes else 'not there'})"
        for path, v in wanted.items()
        if path not in taken
    ]
    if not taken:
        raise ConfigError(
            f"train.init_from={source} must have variables of the model. It has {sorted(shapes)[:5]}, "
            f"the model {sorted(wanted)[:5]}: no path fits with its shape."
        )
    for path in taken:
        wanted[path].assign(read(path))
    log.info("%d of %d variables begin as in %s", len(taken), len(wanted), source)
    if left:
        log.info("these begin anew: %s", ", ".join(left))


def _of_keras_file(path: Path) -> Values:
    import keras

    try:
        network: Any = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises errors of many types, for a missing file, too.
        raise ConfigError(f"train.init_from={path} must be a .keras file. {first_line(error)}") from error
    variables = {variable.path: variable for variable in network.variables}
    return {name: list(v.shape) for name, v in variables.items()}, lambda name: variables[name].value.numpy()


def _of_checkpoint(path: Path) -> Values:
    """Return what is in a checkpoint of a run; the checksums that the run has logged must be right."""
    is_prefix = path.with_name(path.name + INDEX).exists()
    run = RunDirectory(path.parent.parent if is_prefix else path)
    if not run.log.exists():
        raise ConfigError(
            f"train.init_from={path} must be a run's directory, one of its checkpoints "
            "(RUN/checkpoints/epoch-0003), or a .keras file. It is none."
        )
    rows = [row for row in run.read_rows() if not is_prefix or run.checkpoint(row.epoch) == path]
    if not rows:
        raise DamagedError(f"{run.log} must have a row for the checkpoint {path.name}. It has none.")
    run.check_row(rows[-1])
    prefix = run.checkpoint(rows[-1].epoch)
    shapes = checkpoints.shapes_of(prefix, "weights")
    return shapes, lambda name: checkpoints.read_group(prefix, "weights", [name])[name]
