"""The study of a search: its options, its storage, what its trials are marked with, and what it searches."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import distribution_to_json
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

from pipeline.cli.composition import plain_values
from pipeline.errors import ConfigError, first_line
from pipeline.sweeps.ledger import Objectives, config_hash
from pipeline.sweeps.space import Space

RETRIES, WITHDRAWN, BEAT, IDENTITY = "retries", "withdrawn", "beat", "search"
"""Attributes of a study's trials: the number of the trial that it repeats; why it is none; a count that its
process increases. And of the study: what it searches."""

REPLACED, SUPERFLUOUS, LEFT = "replaced", "superfluous", "left"
"""Why a trial is none: it was about to start when its process died, and the next one takes its place; it was
one too many; as the first, but others have been asked for since, which keep their places."""

STUDY = "sweep"
"""Name of the study in a file of its own."""

ATTEMPTS = 3
"""How often to try to reach a storage: of two processes that make its tables at a time, one fails."""

PAUSE_SECS = 1.0
"""How long to wait before the next attempt."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The section `hydra.sweeper`.

    Attributes:
        n_trials: Trials of the study, those of earlier and of other processes included; a grid has its own.
        sampler: Makes an Optuna sampler from a seed, or a `Grid`.
        pruner: An Optuna pruner, or nothing.
        seed: Of the sampler.
        params: What to search, by key, as on the command line.
        storage: A database that Optuna knows, as a URL; `None` is a file in the sweep directory.
        study_name: Name of the study in it.
        grace_secs: A process that is not heard of for so long is taken for dead.
    """

    n_trials: Annotated[int, ">= 1"]
    sampler: Any
    pruner: Any
    seed: Annotated[int, ">= 0"]
    params: dict[str, Any]
    storage: str | None
    study_name: str | None
    grace_secs: Annotated[float, ">= 1"]


def place_of(number: int, trials: Sequence[FrozenTrial]) -> int:
    """Return how many trials come before one, without repetitions and those whose place another takes."""
    return sum(
        trial.number < number
        and RETRIES not in trial.user_attrs
        and trial.user_attrs.get(WITHDRAWN) != REPLACED
        for trial in trials
    )


def counts(trial: FrozenTrial) -> bool:
    """Return whether a trial is one of the number asked for: no repetition, and not withdrawn."""
    return not {RETRIES, WITHDRAWN}.intersection(trial.user_attrs)


def open_study(
    options: Options, sampler: BaseSampler, objectives: Objectives, directory: Path
) -> tuple[optuna.Study, BaseStorage]:
    """Return the study, made if it does not exist, and what holds it.

    Args:
        options: See `Options`.
        sampler: See `make_sampler`.
        objectives: See `Objectives`.
        directory: The sweep's.

    Raises:
        ConfigError: The storage cannot be reached, or the options do not fit together.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if options.pruner and len(objectives) > 1:
        raise ConfigError("hydra/sweeper/pruner must be none where sweep.metric has several metrics.")
    if options.storage and not options.study_name:
        raise ConfigError(
            "hydra.sweeper.study_name must be given with hydra.sweeper.storage. Received: none."
        )
    url = options.storage or f"sqlite:///{directory}/study.db"
    attempt = 0
    while True:
        attempt += 1
        try:
            storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            study = optuna.create_study(
                storage=storage,
                study_name=options.study_name or STUDY,
                sampler=sampler,
                pruner=options.pruner or optuna.pruners.NopPruner(),
                directions=[optuna.study.StudyDirection[direction.upper()] for _, direction in objectives],
                load_if_exists=True,
            )
        except Exception as error:  # Whatever the database's driver raises, or that there is none.
            if attempt == ATTEMPTS:
                raise ConfigError(
                    f"hydra.sweeper.storage must be a database that can be reached. {first_line(error)}"
                ) from error
            time.sleep(PAUSE_SECS)
        else:
            return study, storage


def check_study(study: optuna.Study, space: Space, objectives: Objectives, configuration: str) -> None:
    """Check that a study is of this search, if it is of any yet.

    Args:
        study: The study.
        space: See `Space`.
        objectives: See `Objectives`.
        configuration: See `identity_of`.

    Raises:
        ConfigError: It is of another one, whose trials would not compare.
    """
    searched = {
        "space": {key: distribution_to_json(value) for key, value in space.distributions.items()},
        "fixed": sorted(space.fixed),
        "objectives": [list(pair) for pair in objectives],
        "configuration": configuration,
    }
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, searched)
    elif any(known[key] != searched[key] for key in ("space", "objectives", "configuration")):
        raise ConfigError(
            "The study is of another search, or its configuration or data have changed: "
            f"{_said(known)}. Received: {_said(searched)}. Choose another hydra.sweep.dir; "
            "with hydra.sweeper.storage, another hydra.sweeper.study_name, too."
        )


def _said(searched: Mapping[str, Any]) -> str:
    return " ".join([*searched["fixed"], *searched["space"], json.dumps(searched["objectives"])])


def identity_of(corners: Sequence[DictConfig], *, is_shared: bool) -> str:
    """Return what tells a search from another one: the hash of the configurations at the ends of its space.

    Args:
        corners: These configurations; between them they hold every value that is not searched.
        is_shared: Whether several machines work on it: where each keeps its data then makes no difference.
    """
    hashes = []
    for corner in corners:
        values = plain_values(OmegaConf.masked_copy(corner, [str(key) for key in corner if key != "hydra"]))
        data = values.get("data")
        if is_shared and isinstance(data, Mapping):
            kept = {k: v for k, v in data.items() if k == "_target_" or not isinstance(v, str)}
            values = {**values, "data": kept}
        hashes.append(config_hash(values))
    return config_hash({"corners": hashes})
