"""The training loop: compiled chunks of many steps, and an evaluation and a checkpoint after every epoch.

The order of the rows and the random numbers are functions of (seed, epoch, step) alone. So the same command
gives the same bits, also for a run that was stopped and goes on.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from pipeline.errors import DataSetError, UnsupportedError, first_line
from pipeline.graphs import checkpoints, examples
from pipeline.graphs.checkpoints import Groups
from pipeline.graphs.evaluation import evaluate, initial_state
from pipeline.graphs.signatures import Signature
from pipeline.runs.directory import INDEX, RunDirectory
from pipeline.runs.log import Row
from pipeline.runs.policy import Policy
from pipeline.runs.progress import Progress, Unfinished, write_unfinished
from pipeline.training.average import Average
from pipeline.training.epoch_writer import EpochWriter
from pipeline.training.time_limits import TimeLimits

if TYPE_CHECKING:
    import keras

    from data.base import Arrays, Dataset
    from models.base import BuiltModel


CHUNK_SECS = 0.25
"""Aimed time of a chunk of steps, which runs without coming back to Python.

Long enough to cost nothing, short enough for a live bar and a prompt stop. Its length decides when Python
looks, never what is computed.
"""

FURTHER = "further"
"""Group of a checkpoint for variables of a step that are neither the model's nor the optimizer's."""

TRAINED = "trained"
"""Group of a checkpoint whose `weights` are averages: the values with which the training goes on."""

LOSSES, STATE = "losses", "state"
"""Groups that only the checkpoint of an unfinished epoch has: its losses so far, and the carried state."""

STATEFUL_RANDOM = frozenset(
    {
        "Multinomial",
        "ParameterizedTruncatedNormal",
        "RandomGamma",
        "RandomPoissonV2",
        "RandomShuffle",
        "RandomStandardNormal",
        "RandomUniform",
        "RandomUniformInt",
        "TruncatedNormal",
    }
)
"""Operations that draw random numbers from a hidden state, which no checkpoint can hold.

See https://www.tensorflow.org/guide/random_numbers.
"""

log = logging.getLogger("pipeline")

Tensors = dict[str, Any]

T = TypeVar("T")

OnEpoch = Callable[[int, Mapping[str, float]], bool]
"""Called with an epoch and its metrics; returns whether to stop."""


class NonFiniteLoss(ArithmeticError):
    """The loss or a metric is infinite or not a number; the epochs before keep their checkpoints."""


def order(num_rows: int, batch_size: int, *, seed: int, epoch: int, ordered: bool) -> np.ndarray:
    """Return the rows of each batch of an epoch: int32 `[steps, batch_size]`, whole batches only.

    Args:
        num_rows: Rows of the training split.
        batch_size: Rows of a batch.
        seed: The run's seed.
        epoch: The epoch; each epoch has a permutation of its own.
        ordered: Whether the rows keep their order, as carried state needs it.
    """
    rows = np.arange(num_rows, dtype=np.int32)
    if not ordered:
        rows = np.random.default_rng([seed, epoch]).permutation(rows)
    num_steps = num_rows // batch_size
    return rows[: num_steps * batch_size].reshape(num_steps, batch_size)


@dataclass(frozen=True)
class Compiled:
    """The compiled functions of a training.

    Attributes:
        step: (batch, seed int32 `[2]`) -> (loss `[]`, carried state): one optimizer step.
        steps: (feed, first int32 `[]`, last int32 `[]`, before int32 `[]`, state) -> (losses float32
            `[last - first]`, state): the steps `first` to `last - 1` of an epoch, without Python in between.
            The feed is the rows of each batch, int32 `[steps, batch_size]`, or an iterator of batches; there
            were `before` steps in the epochs before.
    """

    step: Callable[..., tuple[tf.Tensor, Tensors]]
    steps: Callable[..., tuple[tf.Tensor, Tensors]]


def compile_steps(
    built: BuiltModel,
    optimizer: keras.optimizers.Optimizer,
    arrays: Mapping[str, tf.Tensor] | None,
    *,
    seed: int,
    use_xla: bool,
) -> Compiled:
    """Compile the training loop.

    Args:
        built: The model.
        optimizer: A Keras optimizer, built for the model's trainable variables.
        arrays: The whole training split, or `None` if batches come from an iterator.
        seed: The run's seed; the loss receives it together with the number of the step.
        use_xla: Whether XLA compiles a step. Otherwise TensorFlow's executor runs its operations one by one.
    """
    variables = list(built.trainable.values())
    watched = [built.variables[path] for path in built.trainable]

    @tf.function(autograph=False, jit_compile=use_xla)
    def step(batch: Tensors, step_seed: tf.Tensor) -> tuple[tf.Tensor, Tensors]:
        with tf.GradientTape() as tape:
            # A tape overlooks a variable that was made frozen, and whose layer is trained since.
            tape.watch(watched)
            loss, state = _regularized(variables, lambda: built.loss(batch, step_seed))
            _check_scalar(loss)
            scaled = optimizer.scale_loss(loss)
        # Keras variables, since TensorFlow's do not know the constraints of their layers.
        optimizer.apply(tape.gradient(scaled, watched), variables)
        return loss, state

    # XLA compiles the step, not this loop around it: it cannot compile an iterator of batches.
    @tf.function(autograph=False)
    def steps(
        feed: Any, first: tf.Tensor, last: tf.Tensor, before: tf.Tensor, state: Tensors
    ) -> tuple[tf.Tensor, Tensors]:
        def batch_of(number: tf.Tensor) -> Tensors:
            if arrays is None:
                return feed.get_next()
            return {name: tf.gather(array, feed[number]) for name, array in arrays.items()}

        def take(number: tf.Tensor, losses: tf.TensorArray, state: Tensors) -> tuple[Any, ...]:
            batch = batch_of(number)
            # Not the optimizer's counter, which leaves out steps where it adds gradients up or skips some.
            loss, state = step({**batch, **state}, tf.stack([seed, before + number]))
            return number + 1, losses.write(number - first, loss), state

        _, losses, state = tf.while_loop(
            lambda number, *_: number < last,
            take,
            (first, tf.TensorArray(tf.float32, last - first), state),
            parallel_iterations=1,  # Batches of an iterator are taken in their order.
        )
        return losses.stack(), state

    return Compiled(step, steps)


@dataclass(frozen=True)
class Training:
    """A model in training. `pipeline.training.setup.prepare` makes it.

        training = prepare(run, model, dataset, optimizer, policy=policy, seed=0, ...)
        finished = training.fit()

    Attributes:
        run: The directory, which this process has claimed.
        dataset: The data set.
        built: The model's variables and functions.
        optimizer: A Keras optimizer, built for the model's trainable variables.
        signatures: The model's signatures by name.
        policy: How many epochs are trained, and which checkpoints are kept.
        seed: The run's seed.
        use_xla: Whether XLA compiles a step.
        stopped: Returns whether to stop; called between chunks of steps.
        limits: The time that it may take, and that may pass between two checkpoints.
    """

    run: RunDirectory
    dataset: Dataset
    built: BuiltModel
    optimizer: keras.optimizers.Optimizer
    signatures: Mapping[str, Signature]
    policy: Policy
    seed: int
    use_xla: bool
    stopped: Callable[[], bool]
    limits: TimeLimits

    def fit(self, progress: Progress | None = None, on_epoch: OnEpoch | None = None) -> bool:
        """Train until the policy says that the run is complete.

        Before the first epoch and after each, the model is evaluated, logged and written as a checkpoint.

        Args:
            progress: How far the run is; `None` for a new run.
            on_epoch: Called after each epoch with its number and its metrics; returns whether to stop.

        Returns:
            `True` if the run is complete; `False` if `stopped`, `limits` or `on_epoch` ended it before.

        Raises:
            DamagedError: The checkpoint from which the run goes on is damaged.
            DataSetError: The shards of the training data cannot be read.
            NonFiniteLoss: The loss or a metric became infinite or not a number.
            OSError: The disk does not take a file.
            UnsupportedError: XLA cannot compile the model.
        """
        rows = list(progress.rows) if progress else []
        unfinished = progress.unfinished if progress else None
        if rows and self.policy.is_complete(rows):
            return True
        self.limits.start()
        steps = self.compile().steps
        groups = {**self.variables, **self._further(steps)}
        test = _tensors(self.dataset.test)
        with (
            EpochWriter(self.run, groups, self.policy, rows) as writer,
            _bar(self.policy.train.epochs, "epoch", done=len(rows) - 1) as bar,
        ):
            if rows:
                checkpoints.restore_row(self.run, rows[-1], groups)
                self._average.leave()
            else:
                rows.append(self.finish_epoch(0, None, test, writer))
            while not self.policy.is_complete(rows):
                epoch = rows[-1].epoch + 1
                losses = self.train_epoch(epoch, steps, writer, unfinished)
                if losses is None:
                    return False
                unfinished = None
                self._average.enter()
                rows.append(self.finish_epoch(epoch, _mean(losses), test, writer))
                self._average.leave()
                bar.update()
                bar.set_postfix({name: f"{value:.4g}" for name, value in rows[-1].judged.items()})
                # A sweep may stop a run after its last epoch. Such a run is complete nevertheless.
                stop = on_epoch is not None and on_epoch(epoch, rows[-1].judged)
                if stop and not self.policy.is_complete(rows):
                    return False
        return True

    def record_answers(self, row: Row) -> None:
        """Write the model's answers to the run's requests, with the variables of an epoch.

        Args:
            row: The epoch's row of the log.

        Raises:
            DamagedError: The epoch's checkpoint or the requests are damaged.
        """
        checkpoints.restore_row(self.run, row, {"weights": self.built.variables})
        requests = examples.read(self.run.requests)
        examples.write(
            self.run.answers(row.epoch), examples.answer(_functions(self.built, self.signatures), requests)
        )

    def compile(self) -> Compiled:
        """Compile the training loop over the training split."""
        return compile_steps(
            self.built,
            self.optimizer,
            _tensors(self.dataset.train) if self.dataset.stream is None else None,
            seed=self.seed,
            use_xla=self.use_xla,
        )

    def train_epoch(
        self,
        epoch: int,
        steps: Callable[..., Any],
        writer: EpochWriter,
        unfinished: Unfinished | None = None,
    ) -> np.ndarray | None:
        """Train an epoch, or the rest of an epoch that was stopped.

        Args:
            epoch: The epoch.
            steps: `Compiled.steps`.
            writer: Has the variables, and takes the curve of the loss.
            unfinished: The record of this epoch, if it was stopped before.

        Returns:
            The loss of each step of the epoch, float32 `[steps]`; `None` if `stopped` or `limits` ended the
            epoch. The steps taken are then written as an unfinished epoch.
        """
        dataset = self.dataset
        num_steps = self.steps_per_epoch
        before = (epoch - 1) * num_steps
        first, chunk = 0, 1
        state = initial_state(self.signatures, dataset.batch_size)
        losses: list[np.ndarray] = []
        if unfinished is not None:
            first = unfinished.num_steps
            losses, state = self._restore_unfinished(unfinished, state, writer.groups)
        feed = self._feed(epoch, first)
        with _bar(num_steps, "step", done=first, leave=False) as bar:
            while first < num_steps:
                is_over = self.stopped() or self.limits.are_over()
                if is_over or (self.limits.is_checkpoint_due() and losses):
                    # The writer removes any unfinished epoch when it has written its own. So it comes first.
                    writer.wait()
                    self._average.keep()
                    self._keep_unfinished(epoch, first, losses, state, writer.groups)
                if is_over:
                    return None
                last = min(first + chunk, num_steps)
                started = time.perf_counter()
                chunk_losses, state = _run(steps, feed, first, last, before, state)
                # `numpy()` waits for the device, so it belongs into the time that is measured.
                losses.append(chunk_losses.numpy())
                _check_finite(losses[-1], before + first)
                elapsed = time.perf_counter() - started
                writer.events.scalars(before + last, {"train/batch_loss": _mean(losses[-1])})
                bar.update(last - first)
                bar.set_postfix_str(f"loss {losses[-1][-1]:.4g}")
                chunk = _next_chunk(last - first, elapsed)
                first = last
        return np.concatenate(losses)

    def _feed(self, epoch: int, first: int) -> Any:
        """Return the feed of `Compiled.steps` for an epoch that starts with the step `first`.

        An iterator must skip the batches of earlier steps; from the rows, `steps` takes a batch by number.
        """
        dataset = self.dataset
        if dataset.stream is not None:
            return iter(dataset.stream.batches(self.seed, epoch).skip(first))
        return tf.constant(
            order(
                dataset.num_train,
                dataset.batch_size,
                seed=self.seed,
                epoch=epoch,
                ordered=dataset.ordered,
            )
        )

    def _keep_unfinished(
        self, epoch: int, num_steps: int, losses: list[np.ndarray], state: Tensors, groups: Groups
    ) -> None:
        """Write an unfinished epoch, so that it can go on with the same bits.

        Besides the variables of every checkpoint, that takes the losses so far, whose mean is logged at the
        end of the epoch, and the carried state.
        """
        name = f"step-{(epoch - 1) * self.steps_per_epoch + num_steps:08d}"
        taken = np.concatenate([np.zeros(0, np.float32), *losses])
        carried = {key: tf.Variable(value, trainable=False) for key, value in state.items()}
        groups = {**groups, LOSSES: {LOSSES: tf.Variable(taken, trainable=False)}, STATE: carried}
        files = checkpoints.write_checkpoint(self.run.graph.with_name(name), groups)
        write_unfinished(self.run, Unfinished(epoch, num_steps, name, files))
        # Nothing refers to an earlier one any more.
        for index in self.run.graph.parent.glob(f"step-*{INDEX}"):
            if index.stem != name:
                checkpoints.remove_checkpoint(index.with_suffix(""))

    def _restore_unfinished(
        self, unfinished: Unfinished, state: Tensors, groups: Groups
    ) -> tuple[list[np.ndarray], Tensors]:
        """Assign the variables of an unfinished epoch.

        Returns:
            The losses of its steps so far, float32 `[num_steps]`, and the carried state.
        """
        prefix = self.run.graph.with_name(unfinished.checkpoint)
        checkpoints.restore(prefix, groups)
        self._average.leave()
        losses = checkpoints.read_group(prefix, LOSSES, [LOSSES])[LOSSES]
        carried = checkpoints.read_group(prefix, STATE, state)
        return [losses], {key: tf.constant(value) for key, value in carried.items()}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return self.dataset.num_train // self.dataset.batch_size

    @functools.cached_property
    def _average(self) -> Average:
        return Average(self.optimizer, [self.built.variables[path] for path in self.built.trainable])

    @property
    def variables(self) -> Groups:
        """The variables of the model and of the optimizer, by path in each group of a checkpoint."""
        # The key has the position, too: an optimizer names a slot after its variable, and two variables may
        # have the same name.
        slots = {
            f"{position}/{variable.path}": variable.value
            for position, variable in enumerate(self.optimizer.variables)
        }
        groups = {"weights": self.built.variables, "optimizer": slots}
        return {**groups, TRAINED: self._average.trained} if self._average.trained else groups

    def _further(self, steps: Any) -> Groups:
        """Return the variables of a step that are neither the model's nor the optimizer's, as a group.

        A Keras layer such as `Dropout`, for instance, draws random numbers from a seed that is a variable. A
        checkpoint must have it; otherwise a run that goes on would draw other numbers.

        Raises:
            DataSetError: The shards of the training data cannot be read.
        """
        # Only the traced graph tells which variables there are.
        dataset = self.dataset
        if dataset.stream is not None:
            try:
                batches = dataset.stream.batches(self.seed, 1)
            except (ValueError, OSError) as error:
                raise DataSetError(str(error)) from error
            feed: Any = tf.data.IteratorSpec(batches.element_spec)
        else:
            feed = tf.TensorSpec([self.steps_per_epoch, dataset.batch_size], tf.int32)
        count = tf.TensorSpec([], tf.int32)
        state = initial_state(self.signatures, dataset.batch_size)
        graph = steps.get_concrete_function(feed, count, count, count, state).graph
        known = {id(variable.handle) for group in self.variables.values() for variable in group.values()}
        by_handle = {id(variable.handle): variable for variable in graph.variables}
        # In the order in which the trace meets them. The order of `graph.variables` is that of a set of
        # addresses, and another in each process.
        met = [by_handle.get(id(captured)) for captured, _ in graph.captures]
        further = [variable for variable in met if variable is not None and id(variable.handle) not in known]
        if undetermined := _stateful_random(graph):
            log.warning(
                "the model draws numbers with %s, whose state no checkpoint has: a run that goes on will "
                "draw others. Draw them with tf.random.stateless_* and the seed that the loss is given.",
                ", ".join(undetermined),
            )
        if len(further) == 1:
            return {FURTHER: {"0": further[0]}}
        # The name tells what a variable is, and its position which of several: Keras numbers their full names
        # over the whole process, so the same model may get other ones in the process that goes on.
        names = (variable.name.rpartition("/")[2].partition(":")[0] for variable in further)
        named = {
            f"{i}/{name}": variable for i, (name, variable) in enumerate(zip(names, further, strict=True))
        }
        return {FURTHER: named} if named else {}

    def finish_epoch(self, epoch: int, train_loss: float | None, test: Arrays, writer: EpochWriter) -> Row:
        """Evaluate the model through its signature, and have the epoch written.

        The signature is the exported one, so the logged metrics are those that an export must reproduce.

        Args:
            epoch: The epoch.
            train_loss: The mean of the losses of the epoch's steps; `None` for epoch 0.
            test: The held-out split.
            writer: Writes the checkpoint and the row.

        Returns:
            The epoch's row of the log, without the checksums of its checkpoint, which is not written yet.

        Raises:
            NonFiniteLoss: A metric is infinite or not a number.
            OSError: The epoch before could not be written.
        """
        by_split = {
            split: evaluate(self.signatures, arrays, batch_size=self.dataset.batch_size)
            for split, arrays in (("test", test), ("validation", self.dataset.validation))
            if arrays is not None
        }
        for split, metrics in by_split.items():
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise NonFiniteLoss(
                        f"{split}/{name} must be finite. Received: {value} after epoch {epoch}."
                    )
        train = None if train_loss is None else {"loss": train_loss}
        relative = str(self.run.checkpoint(epoch).relative_to(self.run.path))
        row = Row(
            epoch,
            epoch * self.steps_per_epoch,
            train,
            by_split["test"],
            relative,
            validation=by_split.get("validation"),
        )
        writer.write(row)
        return row


def _check_finite(losses: np.ndarray, before: int) -> None:
    """Check the losses of some steps, which `before` steps precede.

    Raises:
        NonFiniteLoss: A loss is infinite or not a number.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise NonFiniteLoss(
            f"The training loss must be finite. Received: {losses[bad[0]]} at step "
            f"{before + int(bad[0]) + 1}. "
            "The checkpoints of the epochs before are kept. "
            "Try a smaller optimizer.learning_rate, or optimizer.warmup_steps."
        )


def _functions(built: BuiltModel, signatures: Mapping[str, Signature]) -> Mapping[str, Signature]:
    graph = built.session_graph
    return checkpoints.askable(
        signatures, None if graph is None else checkpoints.signature_of(graph.get_concrete_function())
    )


def _run(
    steps: Callable[..., tuple[tf.Tensor, Tensors]],
    feed: Any,
    first: int,
    last: int,
    before: int,
    state: Tensors,
) -> tuple[tf.Tensor, Tensors]:
    """Run the steps `first` to `last - 1`; return their losses, and the carried state.

    There were `before` steps in the epochs before.

    Raises:
        DataSetError: A shard of the training data is missing or damaged.
        UnsupportedError: XLA cannot compile the model, or has no deterministic kernel for it.
    """
    try:
        return steps(feed, tf.constant(first), tf.constant(last), tf.constant(before), state)
    except tf.errors.UnimplementedError as error:
        reason = next((line for line in error.message.splitlines() if " not " in line), error.message)
        raise UnsupportedError(
            f"train.compile=xla must be able to compile the model. {reason.strip()} "
            "Use train.compile=graph, or train.deterministic=false."
        ) from error
    except tf.errors.InvalidArgumentError as error:
        # Of the many meanings of this error, one is the compiler's.
        found = re.search(r"Detected unsupported operations .*?: (\w+)", error.message)
        if found is None:
            raise
        # An argument of the compiled function is no operation of the model's: its dtype is what XLA lacks.
        lacks = "arrays of text" if found[1] == "_Arg" else f"operation {found[1]}"
        raise UnsupportedError(
            f"train.compile=xla must be able to compile the model. It has no {lacks}. "
            "Use train.compile=graph."
        ) from error
    except (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.OutOfRangeError) as error:
        raise DataSetError(
            f"The shards of the training data must be whole. Reading them failed: {first_line(error)}"
        ) from error


def _check_scalar(loss: tf.Tensor) -> None:
    """Check that a loss is one number.

    Raises:
        UnsupportedError: It has a value for each example.
    """
    if loss.shape.rank != 0:
        raise UnsupportedError(
            f"The loss of a batch must be a scalar. Received: {loss.shape}. Return the mean over the "
            "examples, tf.reduce_mean(loss)."
        )


def _regularized(variables: Sequence[keras.Variable], compute: Callable[[], T]) -> T:
    """Return what computes a loss, if it has the losses of all regularizers of the variables.

    Keras adds them in its own `fit`. A loss that is written by hand has to add them, `sum(network.losses)`.

    Raises:
        UnsupportedError: A regularizer was not called.
    """
    called: set[str] = set()

    def recording(path: str, regularizer: Any) -> Callable[[Any], Any]:
        def call(value: Any) -> Any:
            called.add(path)
            return regularizer(value)

        return call

    # A model may give variables of TensorFlow, which have none.
    owners = [variable for variable in variables if getattr(variable, "regularizer", None) is not None]
    regularizers = {variable.path: variable.regularizer for variable in owners}
    try:
        for variable in owners:
            variable.regularizer = recording(variable.path, regularizers[variable.path])
        computed = compute()
    finally:
        for variable in owners:
            variable.regularizer = regularizers[variable.path]
    if missing := sorted(regularizers.keys() - called):
        raise UnsupportedError(
            f"The loss must have the losses of all regularizers. Missing: those of {', '.join(missing)}. "
            "Add sum(network.losses) to the loss, or take the regularizers out."
        )
    return computed


def _stateful_random(graph: Any) -> list[str]:
    """Return the operations in a graph and its functions that draw random numbers from a hidden state."""
    names = {operation.type for operation in graph.get_operations()}
    for function in graph.as_graph_def().library.function:
        names |= {node.op for node in function.node_def}
    return sorted(names & STATEFUL_RANDOM)


def _tensors(arrays: Arrays) -> dict[str, tf.Tensor]:
    return {name: tf.constant(array) for name, array in arrays.items()}


def _mean(losses: np.ndarray) -> float:
    # A sum over many thousand steps would lose digits in float32.
    return float(np.mean(losses, dtype=np.float64))


def _next_chunk(num_steps: int, elapsed_secs: float) -> int:
    """Return how many steps the next chunk should have, to take `CHUNK_SECS`; at most four times as many.

    The limit is for the first chunk, whose time includes tracing and compiling, or is too short to measure.

    Args:
        num_steps: Steps of the last chunk.
        elapsed_secs: Time that the last chunk took.
    """
    fitting = int(num_steps * CHUNK_SECS / max(elapsed_secs, 1e-9))
    return max(1, min(4 * num_steps, fitting))


def _bar(total: int, unit: str, *, done: int, leave: bool = True) -> Any:
    """Return a progress bar that shows only on a terminal: `disable=None` is tqdm's word for that."""
    return tqdm(total=total, initial=max(0, done), desc=f"{unit}s", unit=unit, leave=leave, disable=None)
