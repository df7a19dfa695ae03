"""`python -m pipeline.predict export_dir=DIR`: answer requests that come as lines of JSON.

A line of the standard input is an object of inputs by name: {"number": 7}. For each, a line is written to the
standard output: an object of outputs by name, or {"error": "..."}. The order is kept, and empty lines are
skipped. If the inputs have no batch dimension, they are one example, and the outputs have none, either.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from omegaconf import DictConfig

from pipeline import predictor
from pipeline.cli import command, composition
from pipeline.config.binding import parse
from pipeline.config.formats import DEFAULT_SIGNATURE
from pipeline.errors import ConfigError, unknown
from pipeline.graphs.signatures import Spec
from pipeline.predictor import Predictor, RequestError

log = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """The keys of this command.

    Attributes:
        export_dir: An export, or the folder of its versions, of which the newest is opened.
        signature: The signature to call; `None` finds it for each line by the names of the inputs.
        trust: Further operations that the graph may have, besides those that compute.
        allow_unverified: Whether to open an export without a receipt that says `match`.
        batch_size: Largest number of lines that are answered by one call.
        batch_wait_secs: Longest time that a line waits for others.
    """

    export_dir: Path
    signature: str | None
    trust: list[str]
    allow_unverified: bool
    batch_size: Annotated[int, ">= 1"]
    batch_wait_secs: Annotated[float, ">= 0"]


@dataclass
class PendingLine:
    """A line on its way from request to answer.

    Attributes:
        signature: The name of the signature that the line calls.
        arrays: The inputs, with a batch dimension.
        single: Whether the line came without a batch dimension.
        answer: The object to print; `None` until there is one.
        is_bad: Whether the answer is an error.
    """

    signature: str = ""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    single: bool = False
    answer: Mapping[str, Any] | None = None
    is_bad: bool = False

    def fail(self, reason: str) -> None:
        """Set the answer to an error."""
        self.answer, self.is_bad = {"error": reason}, True


def check(cfg: DictConfig) -> PredictSettings:
    """Check the configuration of this command.

    Raises:
        ConfigError: A key is missing, unknown or does not fit.
    """
    return parse(PredictSettings, composition.plain_values(cfg))


def predict(settings: PredictSettings) -> int:
    """Answer every line of the standard input.

    Returns:
        The exit code: that of bad input if any line was bad.

    Raises:
        ConfigError: There is no export, or it does not have the signature.
        DamagedError: A file of the export is damaged.
        UntrustedError: The export is not verified, or its graph has an operation that is not allowed.
    """
    opened = predictor.open(
        settings.export_dir, allow_unverified=settings.allow_unverified, trust=settings.trust
    )
    if settings.signature is not None and settings.signature not in opened.signatures:
        raise ConfigError(unknown("signature", settings.signature, opened.signatures))
    num_lines = num_bad = 0
    for batch in _batches(sys.stdin.buffer, settings.batch_size, settings.batch_wait_secs):
        lines = [_parse(text, opened, settings.signature) for text in batch]
        _answer_all(opened, lines)
        for line in lines:
            sys.stdout.buffer.write(_encode(line))
        sys.stdout.buffer.flush()
        num_lines += len(lines)
        num_bad += sum(line.is_bad for line in lines)
    if num_bad:
        log.warning("%d of %d lines were bad", num_bad, num_lines)
    return command.BAD_INPUT if num_bad else command.DONE


def _batches(stream: BinaryIO, size: int, wait_secs: float) -> Iterator[list[bytes]]:
    """Yield lists of lines that are not empty.

    Args:
        stream: The lines.
        size: Largest number of lines in a list.
        wait_secs: Longest time that the first line of a list waits for others.
    """
    # Without the thread, for one line at a time: handing lines over would take longer than a small model.
    if size == 1:
        yield from ([line] for line in stream if line.strip())
        return
    waiting: queue.Queue[bytes | None] = queue.Queue(maxsize=4 * size)

    # A thread reads, because a read that waits for input cannot be given up after some time.
    def read() -> None:
        try:
            for line in stream:
                if line.strip():
                    waiting.put(line)
        finally:
            waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (line := waiting.get()) is not None:
        batch: list[bytes] = []
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


def _parse(text: bytes, opened: Predictor, signature: str | None) -> PendingLine:
    """Return a line with its inputs, or, if they cannot be used, with an error as its answer."""
    line = PendingLine()
    try:
        request = json.loads(text)
        if not isinstance(request, dict):
            raise ValueError(f"a line must be an object of inputs by name. Received: {text.strip()[:80]!r}")
        line.signature = signature or _named_by(request, opened)
        served = opened.signatures[line.signature]
        given = {}
        for key, value in request.items():
            given[key], single = (
                _with_batch(value, served.inputs[key]) if key in served.inputs else (value, None)
            )
            line.single |= single is True
        line.arrays = served.check(given)
    except (ValueError, TypeError, RecursionError) as error:
        line.fail(str(error))
    return line


def _named_by(request: Mapping[str, Any], opened: Predictor) -> str:
    """Return the name of the signature that has exactly these inputs, `serving_default` if several have.

    If none has, the first one is returned: its check then reports which inputs it takes.
    """
    names = sorted(opened.signatures, key=lambda name: name != DEFAULT_SIGNATURE)
    fitting = [name for name in names if set(opened.signatures[name].inputs) == set(request)]
    return fitting[0] if fitting else names[0]


def _with_batch(value: Any, spec: Spec) -> tuple[Any, bool | None]:
    """Return a value with a batch dimension if its input has one.

    For an input of fixed size, such as a seed, one number stands for all of its elements.

    Returns:
        The value, and whether its batch dimension was added; `None` if the input has none.
    """
    rank = len(spec.shape or ())
    array = np.array(value, dtype=object)  # A ragged list is an array of lists, whose shape does not fit.
    if spec.batched and array.ndim == 0 and all(size in (None, 1) for size in (spec.shape or ())):
        return np.reshape(array, [1] * rank).tolist(), True
    if spec.batched and array.ndim == rank - 1:
        return [value], True
    if not spec.batched and array.ndim == 0 and rank and None not in (spec.shape or ()):
        return np.full([size or 1 for size in spec.shape or ()], value, dtype=object).tolist(), None
    return value, False if spec.batched else None


def _answer_all(opened: Predictor, lines: Sequence[PendingLine]) -> None:
    """Answer each line that has no answer yet, with one call for all lines that can be a batch."""
    groups: dict[Any, list[PendingLine]] = {}
    for number, line in enumerate(lines):
        if line.answer is None:
            groups.setdefault(_group(opened, line) or number, []).append(line)
    for group in groups.values():
        if len(group) == 1 or not _answer_together(opened, group):
            for line in group:
                _answer(opened, line)


def _group(opened: Predictor, line: PendingLine) -> Any:
    """Return a key that is equal for lines which can be a batch; `None` if a line must be answered alone."""
    served = opened.signatures[line.signature]
    if not line.arrays or not all(s.batched for s in (*served.inputs.values(), *served.outputs.values())):
        return None
    return (line.signature, *((key, array.shape[1:]) for key, array in line.arrays.items()))


def _answer_together(opened: Predictor, group: Sequence[PendingLine]) -> bool:
    """Answer lines with one call; return whether it succeeded.

    If not, some line is bad. Each must then be answered alone, so that the others get their answers.
    """
    served = opened.signatures[group[0].signature]
    keys = list(group[0].arrays)
    try:
        outputs = served(**{key: np.concatenate([line.arrays[key] for line in group]) for key in keys})
    except RequestError:
        return False
    start = 0
    for line in group:
        end = start + len(line.arrays[keys[0]])
        _set_answer(line, {key: array[start:end] for key, array in outputs.items()}, served.outputs)
        start = end
    return True


def _answer(opened: Predictor, line: PendingLine) -> None:
    served = opened.signatures[line.signature]
    try:
        _set_answer(line, served(**line.arrays), served.outputs)
    except RequestError as error:
        line.fail(str(error))


def _set_answer(line: PendingLine, outputs: Mapping[str, np.ndarray], specs: Mapping[str, Spec]) -> None:
    line.answer = {
        key: _plain(array[0] if line.single and specs[key].batched else array)
        for key, array in outputs.items()
    }


def _plain(array: Any) -> Any:
    """Return an array as JSON values; floats have the fewest digits from which their bits can be restored."""
    array = np.asarray(array)
    # Through text: a float32 of 0.1 is 0.1 in JSON, and not 0.10000000149011612.
    if array.dtype.kind == "f":
        return array.astype(str).astype(float).tolist()
    if array.dtype.kind in "OS":
        texts = [item.decode(errors="backslashreplace") for item in array.ravel().tolist()]
        return np.array(texts, dtype=object).reshape(array.shape).tolist()
    return array.tolist()


def _encode(line: PendingLine) -> bytes:
    """Return the answer as a line of UTF-8; half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    try:
        text = json.dumps(line.answer, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line.fail("the answer is not finite, which JSON cannot say")
        text = json.dumps(line.answer)
    return text.encode(errors="backslashreplace") + b"\n"


if __name__ == "__main__":
    command.run(predict, config_name="predict", check=check)
