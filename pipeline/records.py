"""`python -m pipeline.records data=SOURCE dir=DIR`: write a data set as shards for `data=tfrecord`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from pipeline import runtime
from pipeline.cli import command, composition
from pipeline.config import binding
from pipeline.config.dataset_checks import load
from pipeline.errors import ConfigError, DataSetError
from pipeline.runs.files import staged

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class RecordsTask:
    """A data set that is to be written as shards, checked.

    Attributes:
        source: The data source.
        writer: Has `write(dataset, folder)`, which yields the number of rows of each shard it has written.
        dir: The folder to make.
    """

    source: Any
    writer: Any
    dir: Path


@dataclass(frozen=True, kw_only=True)
class RecordsSettings:
    """The keys of this command besides `data` and `writer`; `conf/records.yaml` explains them."""

    dir: Path


def check(cfg: DictConfig) -> RecordsTask:
    """Check the configuration of this command.

    Raises:
        ConfigError: A key does not fit, or the folder exists.
    """
    values = composition.plain_values(cfg)
    problems: list[str] = []
    source, _ = binding.construct(values.pop("data"), "data", problems)
    writer, _ = binding.construct(values.pop("writer"), "writer", problems)
    bound = binding.bind(RecordsSettings, values, "", problems)
    if bound.get("dir") and bound["dir"].exists():
        problems.append(f"dir must not be there yet. Received: {bound['dir']}.")
    if problems:
        raise ConfigError(*problems)
    return RecordsTask(source, writer, bound["dir"])


def write(request: RecordsTask) -> int:
    """Write the shards; return the exit code.

    Raises:
        DataSetError: The data cannot be loaded or written.
    """
    dataset = load(request.source)
    runtime.import_tensorflow()
    request.dir.parent.mkdir(parents=True, exist_ok=True)
    with (
        staged(request.dir) as staging,
        tqdm(total=dataset.num_train, desc="records", unit="row", disable=None) as bar,
    ):
        staging.mkdir()
        try:
            for num_rows in request.writer.write(dataset, staging):
                bar.update(num_rows)
        except (ValueError, OSError) as error:
            raise DataSetError(str(error)) from error
    log.info("wrote %s rows: %s", f"{dataset.num_train:,}", request.dir)
    log.info("train on them:  python -m pipeline data=tfrecord data.dir=%s", request.dir)
    return command.DONE


if __name__ == "__main__":
    command.run(write, config_name="records", check=check)
