"""`python -m pipeline.predict export_dir=DIR`: JSON lines in, JSON lines out, one warm predictor.

A line is an object of inputs by name: {"number": 7}. Its answer is an object of outputs by name, or
{"error": "..."}, on the line of the same number. An input without the batch dimension is one example, and
so is the answer then.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import numpy as np
from omegaconf import DictConfig

from pipeline import binding, command, composition, predictor
from pipeline.binding import ConfigError, unknown
from pipeline.evaluation import Spec
from pipeline.predictor import DEFAULT, Predictor, RequestError

log = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of this command.

    Attributes:
        export_dir: An export, or a folder of its versions, of which the newest is taken.
        signature: The signature to call; `None` is `serving_default`, or the one whose inputs a line names.
        allow_unverified: Whether to open an export without a receipt that says match.
        batch_size: How many lines are answered by one call, if so many are waiting.
        batch_wait_secs: How long a line waits for others.
    """

    export_dir: Path
    signature: str | None
    allow_unverified: bool
    batch_size: Annotated[int, ">= 1"]
    batch_wait_secs: Annotated[float, ">= 0"]


@dataclass
class Line:
    """A line on its way from request to answer.

    Attributes:
        signature: The signature that it calls.
        arrays: Its inputs, with a batch dimension.
        single: Whether it came without one.
        answer: What is printed.
    """

    signature: str = ""
    arrays: Mapping[str, np.ndarray] | None = None
    single: bool = False
    answer: Mapping[str, Any] | None = None


def check(cfg: DictConfig) -> Settings:
    """Check the configuration of this command.

    Raises:
        ConfigError: With what does not fit.
    """
    problems: list[str] = []
    values = binding.bind(Settings, composition.plain_values(cfg), "", problems)
    if problems:
        raise ConfigError(problems)
    return Settings(**values)


def predict(settings: Settings) -> int:
    """Answer every line of the standard input; return the exit code: bad input if a line was bad."""
    opened = predictor.open(settings.export_dir, allow_unverified=settings.allow_unverified)
    if settings.signature is not None and settings.signature not in opened.signatures:
        raise ConfigError([unknown("signature", settings.signature, opened.signatures)])
    num_lines = num_bad = 0
    for batch in _batches(sys.stdin, settings.batch_size, settings.batch_wait_secs):
        lines = [_parse(text, opened, settings.signature) for text in batch]
        _answer_all(opened, lines)
        for line in lines:
            print(_encode(line.answer))
        sys.stdout.flush()
        num_lines += len(lines)
        num_bad += sum("error" in (line.answer or {}) and line.signature == "" for line in lines)
    if num_bad:
        log.warning("%d of %d lines were bad", num_bad, num_lines)
    return command.BAD_INPUT if num_bad else command.DONE


def _batches(stream: TextIO, size: int, wait_secs: float) -> Iterator[list[str]]:
    """Yield lines that are not empty, together as many as are there, up to `size`."""
    if size == 1:
        yield from ([line] for line in stream if line.strip())
        return
    waiting: queue.Queue[str | None] = queue.Queue(maxsize=4 * size)

    def read() -> None:
        for line in stream:
            if line.strip():
                waiting.put(line)
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (line := waiting.get()) is not None:
        batch: list[str] = []
        until = time.monotonic() + wait_secs
        while line is not None:
            batch.append(line)
            if len(batch) == size:
                break
            try:
                line = waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
        yield batch
        if line is None:
            return


def _parse(text: str, opened: Predictor, signature: str | None) -> Line:
    """Return a line with its inputs, or with an error as its answer."""
    try:
        request = json.loads(text)
        if not isinstance(request, dict):
            raise ValueError(f"a line must be an object of inputs by name. Received: {text.strip()[:80]}")
        name = signature or _named_by(request, opened)
        specs = opened.signatures[name].inputs
        arrays, singles = {}, set()
        for key, value in request.items():
            arrays[key], single = _with_batch(value, specs[key]) if key in specs else (value, None)
            singles.add(single)
        return Line(name, arrays, single=True in singles)
    except (ValueError, TypeError, RecursionError) as error:
        return Line(answer={"error": f"{error}"})


def _named_by(request: Mapping[str, Any], opened: Predictor) -> str:
    """Return the signature that takes just these inputs, `serving_default` before others."""
    names = sorted(opened.signatures, key=lambda name: name != DEFAULT)
    fitting = [name for name in names if set(opened.signatures[name].inputs) == set(request)]
    return fitting[0] if fitting else names[0]


def _with_batch(value: Any, spec: Spec) -> tuple[Any, bool | None]:
    """Return a value in the shape of an input, and whether it came without the batch dimension.

    One number stands for a whole input of fixed size, such as a seed.
    """
    rank = len(spec.shape or ())
    array = np.array(value, dtype=object)
    if spec.batched and array.ndim == 0 and all(size in (None, 1) for size in (spec.shape or ())):
        return np.reshape(array, [1] * rank).tolist(), True
    if spec.batched and array.ndim == rank - 1:
        return [value], True
    if not spec.batched and array.ndim == 0 and rank and None not in (spec.shape or ()):
        return np.full([size or 1 for size in spec.shape or ()], value, dtype=object).tolist(), None
    return value, False if spec.batched else None


def _answer_all(opened: Predictor, lines: Sequence[Line]) -> None:
    """Answer each line that has none; those that fit together by one call."""
    groups: dict[Any, list[Line]] = {}
    for number, line in enumerate(lines):
        if line.answer is None:
            groups.setdefault(_group(opened, line) or number, []).append(line)
    for group in groups.values():
        if len(group) > 1:
            _answer_together(opened, group)
        for line in group:
            if line.answer is None:
                _answer(opened, line)


def _group(opened: Predictor, line: Line) -> Any:
    """Return what lines must have in common to be answered by one call; `None` if nothing will do."""
    assert line.arrays is not None
    served = opened.signatures[line.signature]
    batched = all(spec.batched for spec in (*served.inputs.values(), *served.outputs.values()))
    if not batched or not served.inputs or set(line.arrays) != set(served.inputs):
        return None
    return (line.signature, *(np.shape(line.arrays[key])[1:] for key in served.inputs))


def _answer_together(opened: Predictor, group: Sequence[Line]) -> None:
    """Answer lines by one call; if it fails, none of them."""
    served = opened.signatures[group[0].signature]
    try:
        joined = {key: [row for line in group for row in (line.arrays or {})[key]] for key in served.inputs}
        outputs = served(**joined)
    except RequestError:
        return  # One of them is bad; each is then answered by itself.
    start = 0
    for line in group:
        end = start + len((line.arrays or {})[next(iter(served.inputs))])
        _set_answer(line, {key: array[start:end] for key, array in outputs.items()}, served.outputs)
        start = end


def _answer(opened: Predictor, line: Line) -> None:
    served = opened.signatures[line.signature]
    try:
        _set_answer(line, served(**(line.arrays or {})), served.outputs)
    except RequestError as error:
        line.signature, line.answer = "", {"error": str(error)}


def _set_answer(line: Line, outputs: Mapping[str, np.ndarray], specs: Mapping[str, Spec]) -> None:
    line.answer = {
        key: _plain(array[0] if line.single and specs[key].batched else array)
        for key, array in outputs.items()
    }


def _plain(array: Any) -> Any:
    """Return an array as JSON values: each number in the fewest digits that give its bits."""
    array = np.asarray(array)
    if array.dtype.kind == "f":
        return array.astype(str).astype(float).tolist()
    if array.dtype.kind in "OS":
        texts = [item.decode(errors="backslashreplace") for item in array.ravel().tolist()]
        return np.array(texts, dtype=object).reshape(array.shape).tolist()
    return array.tolist()


def _encode(answer: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(answer, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps({"error": "the answer is not finite, which JSON cannot say"})


if __name__ == "__main__":
    command.run(predict, config_name="predict", check=check)
