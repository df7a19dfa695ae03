"""Training: compiled loops over many steps on arrays that live in tensors, evaluated every epoch.

Order and randomness are functions of (seed, epoch, step) alone, so the same command gives the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from pipeline import checkpoints, parity, runtime
from pipeline.binding import ConfigError, first_line, unknown
from pipeline.epoch_writer import EpochWriter, Groups
from pipeline.evaluation import Signature, evaluate, initial_state
from pipeline.run import Row, RunDirectory

if TYPE_CHECKING:
    import keras

    from data.base import Arrays, Dataset
    from models.base import BuiltModel, Model
    from pipeline.events import EventWriter

# A chunk of steps runs without coming back to Python: long enough to cost nothing, short enough for a
# live bar and a prompt stop. Its length decides when Python looks, never what is computed.
CHUNK_SECS = 0.25

Tensors = dict[str, Any]
OnEpoch = Callable[[int, Mapping[str, float]], bool]


class NonFiniteLoss(ArithmeticError):
    """The loss is no longer a number; what was trained before is kept."""


def order(num_rows: int, batch_size: int, *, seed: int, epoch: int, ordered: bool) -> np.ndarray:
    """Return the rows of each batch of an epoch: int32 `[steps, batch_size]`, whole batches only."""
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
        steps: (feed, first `[]`, last `[]`, state) -> (losses float32 `[last - first]`, state): the steps
            `first` to `last - 1` of an epoch, without Python. The feed is the rows of each batch, int32
            `[steps, batch_size]`, or an iterator of batches.
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
        seed: The run's seed; the loss receives it with the number of the step.
        use_xla: Whether XLA compiles a step, rather than the graph executor run its operations.
    """
    variables = [variable for variable in built.weights.values() if variable.trainable]

    @tf.function(autograph=False, jit_compile=use_xla)
    def step(batch: Tensors, step_seed: tf.Tensor) -> tuple[tf.Tensor, Tensors]:
        with tf.GradientTape() as tape:
            loss, state = built.loss(batch, step_seed)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss, state

    @tf.function(autograph=False)
    def steps(feed: Any, first: tf.Tensor, last: tf.Tensor, state: Tensors) -> tuple[tf.Tensor, Tensors]:
        def batch_of(number: tf.Tensor) -> Tensors:
            if arrays is None:
                return feed.get_next()
            return {name: tf.gather(array, feed[number]) for name, array in arrays.items()}

        def take(number: tf.Tensor, losses: tf.TensorArray, state: Tensors) -> tuple[Any, ...]:
            batch = batch_of(number)
            taken = tf.cast(optimizer.iterations.value, tf.int32)
            loss, state = step({**batch, **state}, tf.stack([seed, taken]))
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
    """A model in training: what a step needs, and what an epoch leaves behind."""

    run: RunDirectory
    dataset: Dataset
    built: BuiltModel
    optimizer: keras.optimizers.Optimizer
    signatures: Mapping[str, Signature]
    epochs: int
    seed: int
    use_xla: bool
    stopped: Callable[[], bool]

    def fit(self, on_epoch: OnEpoch | None = None) -> bool:
        """Train, evaluating, logging and checkpointing before the first epoch and after each.

        Args:
            on_epoch: Called with an epoch and its metrics after each; returns whether to stop.

        Returns:
            Whether all epochs were trained; `False` if `stopped` or `on_epoch` said so before.

        Raises:
            NonFiniteLoss: The loss or a metric became infinite or not a number.
        """
        steps = self.compile().steps
        test = _tensors(self.dataset.test)
        with EpochWriter(self.run, self.variables) as writer, _bar(self.epochs, "epoch") as bar:
            self.finish_epoch(0, None, test, writer)
            for epoch in range(1, self.epochs + 1):
                losses = self.train_epoch(epoch, steps, writer.events)
                if losses is None:
                    self._keep_interrupted()
                    return False
                metrics = self.finish_epoch(epoch, _mean(losses), test, writer)
                bar.update()
                bar.set_postfix({name: f"{value:.4g}" for name, value in metrics.items()})
                stop = on_epoch is not None and on_epoch(epoch, metrics)
                if stop and epoch < self.epochs:
                    return False
        return True

    def record_answers(self, epoch: int) -> None:
        """Write what the model answers to the run's requests with the variables of an epoch."""
        checkpoints.restore(self.run.checkpoint(epoch), self.built.weights)
        requests = parity.read(self.run.requests)
        parity.write(
            self.run.answers(epoch), parity.answer(_functions(self.built, self.signatures), requests)
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

    def train_epoch(self, epoch: int, steps: Callable[..., Any], events: EventWriter) -> np.ndarray | None:
        """Return the losses of the epoch's steps, or `None` if stopped before its end."""
        dataset = self.dataset
        feed = self._feed(epoch)
        num_steps = dataset.num_train // dataset.batch_size
        state = initial_state(self.signatures, dataset.batch_size)
        losses: list[np.ndarray] = []
        first, chunk = 0, 1
        with _bar(num_steps, "step", leave=False) as bar:
            while first < num_steps:
                if self.stopped():
                    return None
                last = min(first + chunk, num_steps)
                started = time.perf_counter()
                chunk_losses, state = _run(steps, feed, first, last, state)
                losses.append(chunk_losses.numpy())
                self._check_finite(losses[-1])
                elapsed = time.perf_counter() - started
                events.scalars(self._step(), {"train/batch_loss": _mean(losses[-1])})
                bar.update(last - first)
                bar.set_postfix_str(f"loss {losses[-1][-1]:.4g}")
                chunk = _next_chunk(last - first, elapsed)
                first = last
        return np.concatenate(losses)

    def _feed(self, epoch: int) -> Any:
        """Return what `Compiled.steps` takes the batches of an epoch from."""
        dataset = self.dataset
        if dataset.stream is not None:
            return iter(dataset.stream.batches(self.seed, epoch))
        return tf.constant(
            order(
                dataset.num_train,
                dataset.batch_size,
                seed=self.seed,
                epoch=epoch,
                ordered=dataset.ordered,
            )
        )

    @property
    def variables(self) -> Groups:
        """The model's and the optimizer's variables by path, as a checkpoint has them."""
        # By position, too: an optimizer names its slots after variables, whose names need not differ.
        slots = {
            f"{position}/{variable.path}": variable.value
            for position, variable in enumerate(self.optimizer.variables)
        }
        return {"weights": self.built.weights, "optimizer": slots}

    def finish_epoch(
        self, epoch: int, train_loss: float | None, test: Arrays, writer: EpochWriter
    ) -> dict[str, float]:
        """Evaluate through the exported signature, then have it written down; return the metrics."""
        metrics = evaluate(self.signatures, test, batch_size=self.dataset.batch_size)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NonFiniteLoss(f"test/{name} must be finite. Received: {value} after epoch {epoch}.")
        train = None if train_loss is None else {"loss": train_loss}
        relative = str(self.run.checkpoint(epoch).relative_to(self.run.path))
        writer.write(Row(epoch, self._step(), train, metrics, relative))
        return metrics

    def _keep_interrupted(self) -> None:
        """Keep the variables of an unfinished epoch, beside the checkpoints of whole ones."""
        prefix = self.run.path / "checkpoints" / f"step-{self._step():08d}"
        checkpoints.write_checkpoint(prefix, self.variables)

    def _check_finite(self, losses: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            step = self._step() - len(losses) + int(bad[0]) + 1
            raise NonFiniteLoss(
                f"The training loss must be finite. Received: {losses[bad[0]]} at step {step}. "
                "The checkpoints of the epochs before are kept. "
                "Try a smaller optimizer.learning_rate, or optimizer.warmup_steps."
            )

    def _step(self) -> int:
        return int(self.optimizer.iterations.numpy())


def batch_specs(dataset: Dataset) -> dict[str, tf.TensorSpec]:
    """Return the spec of each array of a batch, its first dimension free."""
    return {
        name: tf.TensorSpec([None, *array.shape[1:]], array.dtype, name)
        for name, array in dataset.train.items()
    }


def prepare(
    run: RunDirectory,
    model: Model,
    dataset: Dataset,
    optimizer: Any,
    *,
    epochs: int,
    seed: int,
    use_xla: bool,
    metrics: Sequence[str],
    config: Mapping[str, Any],
    stopped: Callable[[], bool],
) -> Training:
    """Build a model and write its graph and `run.json`; then it is ready to `fit`.

    Args:
        run: A directory this process has claimed.
        model: See `models.base.Model`.
        dataset: Arrays that the model consumes.
        optimizer: Has `build(num_steps)`, which returns a Keras optimizer.
        epochs: Passes over the training split, which a schedule may have to know.
        seed: Seeds the order of the rows.
        use_xla: Whether XLA compiles a training step.
        metrics: Metrics that others will look for: `evaluate` must return them.
        config: The whole configuration as JSON values, for `run.json`.
        stopped: Asked between chunks of steps.
    """
    built = model.build(batch_specs(dataset), dataset.metadata)
    signatures = {
        name: checkpoints.signature_of(function.get_concrete_function())
        for name, function in built.signatures.items()
    }
    _check_signatures(signatures, set(dataset.train), metrics)
    num_steps = dataset.num_train // dataset.batch_size * epochs
    keras_optimizer = optimizer.build(num_steps)
    keras_optimizer.build([variable for variable in built.weights.values() if variable.trainable])
    checkpoints.write_graph(run.graph, built)
    requests = parity.example_requests(_functions(built, signatures), dataset.test)
    for name, example in built.examples.items():
        requests[name] |= {key: np.asarray(value) for key, value in example.items()}
    parity.write(run.requests, requests)
    run.write_facts(
        {
            "seed": seed,
            **runtime.describe(),
            "data": {
                "fingerprint": dataset.fingerprint(),
                "num_train": dataset.num_train,
                "num_test": dataset.num_test,
                "metadata": dict(dataset.metadata),
            },
            "model": {
                "parameters": sum(variable.shape.num_elements() for variable in built.weights.values())
            },
            "sizes": {"graph_bytes": sum(f.stat().st_size for f in run.graph.rglob("*") if f.is_file())},
            "config": config,
        }
    )
    return Training(run, dataset, built, keras_optimizer, signatures, epochs, seed, use_xla, stopped)


def _functions(built: BuiltModel, signatures: Mapping[str, Signature]) -> Mapping[str, Signature]:
    graph = built.session_graph
    return checkpoints.askable(
        signatures, None if graph is None else checkpoints.signature_of(graph.get_concrete_function())
    )


def _check_signatures(signatures: Mapping[str, Signature], arrays: set[str], metrics: Sequence[str]) -> None:
    """Check that a model can be evaluated.

    Raises:
        ConfigError: It has no `evaluate` that takes a batch and returns `loss_sum`, `count` and the metrics
            asked for, or carries state without an `initial_state`.
    """
    problems = []
    if "evaluate" not in signatures:
        problems.append(f"The model must have the signature evaluate. Received: {sorted(signatures)}.")
    else:
        evaluate = signatures["evaluate"]
        if not {"loss_sum", "count"} <= set(evaluate.outputs):
            problems.append(
                f"The model's evaluate must return loss_sum and count. Received: {sorted(evaluate.outputs)}."
            )
        known = [name.removesuffix("_sum") for name in evaluate.outputs if name.endswith("_sum")]
        problems += [unknown("A metric", name, known) for name in sorted(set(metrics) - set(known))]
        if set(evaluate.inputs) - set(evaluate.carried) != arrays:
            problems.append(
                f"The model's evaluate must take a batch, {sorted(arrays)}, and the state it carries. "
                f"Received: {sorted(evaluate.inputs)}."
            )
        if evaluate.carried and "initial_state" not in signatures:
            problems.append(
                f"The model carries {', '.join(evaluate.carried)}: it must have the signature "
                f"initial_state. Received: {sorted(signatures)}."
            )
    if problems:
        raise ConfigError(problems)


def _run(
    steps: Callable[..., tuple[tf.Tensor, Tensors]],
    feed: Any,
    first: int,
    last: int,
    state: Tensors,
) -> tuple[tf.Tensor, Tensors]:
    """Run a chunk of steps.

    Raises:
        ConfigError: The compiler chosen cannot compile this model, or the data cannot be read on.
    """
    try:
        return steps(feed, tf.constant(first), tf.constant(last), state)
    except tf.errors.UnimplementedError as error:
        reason = next((line for line in error.message.splitlines() if " not " in line), error.message)
        raise ConfigError(
            [
                f"train.compile=xla must be able to compile the model. {reason.strip()} "
                "Use train.compile=graph, or train.deterministic=false."
            ]
        ) from error
    except (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.OutOfRangeError) as error:
        raise ConfigError(
            [f"The shards of the training data must be whole. Reading them failed: {first_line(error)}"]
        ) from error


def _tensors(arrays: Arrays) -> dict[str, tf.Tensor]:
    return {name: tf.constant(array) for name, array in arrays.items()}


def _mean(losses: np.ndarray) -> float:
    return float(np.mean(losses, dtype=np.float64))


def _next_chunk(num_steps: int, elapsed_secs: float) -> int:
    """Return how many steps fill a chunk's time, growing at most fourfold at once."""
    fitting = int(num_steps * CHUNK_SECS / max(elapsed_secs, 1e-9))
    return max(1, min(4 * num_steps, fitting))


def _bar(total: int, unit: str, *, leave: bool = True) -> Any:
    """Return a progress bar that shows only on a terminal."""
    return tqdm(total=total, desc=f"{unit}s", unit=unit, leave=leave, disable=None)
