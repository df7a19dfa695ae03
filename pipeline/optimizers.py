"""Optimizers and schedules of the learning rate: configurations of the optimizers of Keras.

The configuration makes an object of these classes before TensorFlow is imported, so that a mistyped value is
reported at once. `build` imports Keras and makes the optimizer.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipeline.errors import ConfigError, unknown

if TYPE_CHECKING:
    import keras

TOTAL_STEPS = "total_steps"
"""The word that stands for the number of updates in a whole training, as an argument of a schedule."""

OPTIMIZERS, SCHEDULES = "keras.optimizers", "keras.optimizers.schedules"

CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
ACCUMULATION = "gradient_accumulation_steps"

_LISTS = ("boundaries", "values")
"""Arguments of schedules that are lists of numbers."""

_NUMBERS = (
    "weight_decay",
    *CLIPPING,
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "warmup_target",
    ACCUMULATION,
)
"""Arguments that are numbers, and whose default, `None`, does not tell it."""

REQUIRED, COMPUTED = object(), object()
"""Stand for the default of an argument that has none, and for one that is no literal."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate by step: a linear warm-up from 0, then constant or along half a cosine.

        >>> rate = Schedule(learning_rate=0.1, schedule="cosine").build_schedule(num_steps=100)
        >>> [round(float(rate(step)), 3) for step in (0, 50, 100)]
        [0.1, 0.05, 0.0]

    Attributes:
        learning_rate: The rate after the warm-up.
        schedule: `constant`, or `cosine` (Loshchilov & Hutter, 2017, arXiv:1608.03983), which ends at the
            last step.
        warmup_steps: Steps of the warm-up, which is linear; 0 is no warm-up.
        final_fraction: The end of the cosine, as a fraction of `learning_rate`.
    """

    learning_rate: Annotated[float, "> 0"]
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, ">= 0"] = 0
    final_fraction: Annotated[float, ">= 0", "<= 1"] = 0.0

    def build_schedule(self, num_steps: int) -> Any:
        """Return the `learning_rate` of a Keras optimizer: a number, or a schedule of `num_steps` steps."""
        import keras

        # Keras computes the cosine in the dtype of the rate. With an integer, pi would be 3.
        rate = float(self.learning_rate)
        if self.schedule == "constant" and not self.warmup_steps:
            return rate
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if self.warmup_steps else rate,
            # A cosine that ends where it began is constant, however long it takes.
            decay_steps=1 if self.schedule == "constant" else max(1, num_steps - self.warmup_steps),
            alpha=1.0 if self.schedule == "constant" else self.final_fraction,
            warmup_target=rate if self.warmup_steps else None,
            warmup_steps=self.warmup_steps,
        )


@dataclass(frozen=True, kw_only=True)
class Adam(Schedule):
    """Adam (Kingma & Ba, 2015, arXiv:1412.6980).

        >>> adam = Adam(learning_rate=0.01, schedule="cosine", warmup_steps=10)
        >>> adam.build(num_steps=100).get_config()["beta_1"]
        0.9

    Attributes:
        beta_1: Decay of the mean of the gradients.
        beta_2: Decay of the mean of the squared gradients.
        epsilon: Added to the denominator, so that it is not 0.
    """

    beta_1: Annotated[float, ">= 0", "< 1"] = 0.9
    beta_2: Annotated[float, ">= 0", "< 1"] = 0.999
    epsilon: Annotated[float, "> 0"] = 1e-7

    def build(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Return the Keras optimizer for a training of `num_steps` steps."""
        import keras

        return keras.optimizers.Adam(
            self.build_schedule(num_steps), self.beta_1, self.beta_2, self.epsilon, name="adam"
        )


@dataclass(frozen=True, kw_only=True)
class SGD(Schedule):
    """Stochastic gradient descent with momentum (Sutskever et al., 2013).

        >>> SGD(learning_rate=0.01).build(num_steps=100).get_config()["momentum"]
        0.9

    Attributes:
        momentum: Decay of the velocity; 0 is plain gradient descent.
        nesterov: Whether the momentum is Nesterov's.
    """

    momentum: Annotated[float, ">= 0", "<= 1"] = 0.9
    nesterov: bool = False

    def build(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Return the Keras optimizer for a training of `num_steps` steps."""
        import keras

        return keras.optimizers.SGD(self.build_schedule(num_steps), self.momentum, self.nesterov, name="sgd")


@dataclass(frozen=True, kw_only=True)
class RMSprop(Schedule):
    """RMSprop (Tieleman & Hinton, 2012, Coursera lecture 6.5).

        >>> RMSprop(learning_rate=0.01).build(num_steps=100).get_config()["rho"]
        0.9

    Attributes:
        rho: Decay of the mean of the squared gradients.
        momentum: Decay of the velocity; 0 is no momentum.
        epsilon: Added to the denominator, so that it is not 0.
    """

    rho: Annotated[float, ">= 0", "< 1"] = 0.9
    momentum: Annotated[float, ">= 0", "<= 1"] = 0.0
    epsilon: Annotated[float, "> 0"] = 1e-7

    def build(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Return the Keras optimizer for a training of `num_steps` steps."""
        import keras

        return keras.optimizers.RMSprop(
            self.build_schedule(num_steps), self.rho, self.momentum, self.epsilon, name="rmsprop"
        )


@dataclass(frozen=True, kw_only=True)
class KerasOptimizer:
    """Any optimizer of Keras by its name, with any of its own arguments.

        >>> decayed = {"name": "ExponentialDecay", "initial_learning_rate": 0.1, "decay_steps": "total_steps",
        ...            "decay_rate": 0.5}
        >>> made = KerasOptimizer(name="AdamW", learning_rate=decayed, options={"weight_decay": 0.01})
        >>> made.build(num_steps=100).get_config()["learning_rate"]["config"]["decay_steps"]
        100

    The arguments are checked against the source of the installed Keras, which is read and not imported.

    Attributes:
        name: A class of `keras.optimizers`, such as `AdamW`, `Lion` or `Muon`; `adam_w` is as good.
        learning_rate: A number, or a section with the `name` of a class of `keras.optimizers.schedules` and
            its arguments. There `total_steps` is the number of updates in the whole training.
        options: Further arguments of the optimizer, such as `weight_decay`, `clipnorm`, `use_ema` or
            `gradient_accumulation_steps`.
        exclude_from_weight_decay: Parts of paths of variables, such as `bias`, that do not decay.
    """

    name: str
    learning_rate: Any
    options: dict[str, Any] | None = None
    exclude_from_weight_decay: list[str] | None = None

    def __post_init__(self) -> None:
        """Check everything that the source of Keras tells.

        Raises:
            ConfigError: The optimizer, its schedule or an argument of them does not exist or does not fit.
        """
        problems = [*_rate_problems(self.learning_rate)]
        known = classes_of(OPTIMIZERS)
        found = _find(self.name, known)
        if found is None:
            problems.append(unknown("optimizer.name", self.name, known))
        else:
            problems += self._option_problems(known[found])
        if problems:
            raise ConfigError(*problems)

    def _option_problems(self, parameters: Mapping[str, Any]) -> Iterator[str]:
        options = self.options or {}
        known = {key: value for key, value in parameters.items() if key not in ("learning_rate", "name")}
        yield from _argument_problems("optimizer.options", options, known)
        if len(clipping := [key for key in CLIPPING if options.get(key) is not None]) > 1:
            received = ", ".join(clipping)
            yield f"optimizer.options must have one of {', '.join(CLIPPING)}. Received: {received}."
        every = options.get(ACCUMULATION)
        if every is not None and (type(every) is not int or every < 2):
            yield f"optimizer.options.{ACCUMULATION} must be an integer >= 2, or null. Received: {every!r}."
        decay = options.get("weight_decay", parameters.get("weight_decay"))
        if self.exclude_from_weight_decay and decay is None:
            yield (
                "optimizer.exclude_from_weight_decay needs optimizer.options.weight_decay. "
                f"Received: {self.exclude_from_weight_decay} and no decay."
            )

    def build(self, num_steps: int) -> keras.optimizers.Optimizer:
        """Return the Keras optimizer for a training of `num_steps` steps.

        Raises:
            ConfigError: Keras refuses a value.
        """
        import keras

        name = _find(self.name, classes_of(OPTIMIZERS))
        assert name is not None
        options = self.options or {}
        try:
            optimizer = getattr(keras.optimizers, name)(
                # Keras' schedules count the updates, of which there are fewer than steps here.
                learning_rate=self._build_rate(num_steps // (options.get(ACCUMULATION) or 1)),
                # Keras would number the names over the whole process.
                name=name.lower(),
                **options,
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"optimizer must be as keras.optimizers.{name} takes it. {error}") from error
        if self.exclude_from_weight_decay:
            _exclude(optimizer, self.exclude_from_weight_decay)
        return optimizer

    def _build_rate(self, num_updates: int) -> Any:
        if not isinstance(self.learning_rate, Mapping):
            return float(self.learning_rate)
        import keras

        name = _find(str(self.learning_rate["name"]), classes_of(SCHEDULES))
        assert name is not None
        # A training of no epochs has a schedule, too.
        given = {
            key: max(1, num_updates) if value == TOTAL_STEPS else _as_rate(key, value)
            for key, value in self.learning_rate.items()
            if key != "name"
        }
        return getattr(keras.optimizers.schedules, name)(**given)


def _as_rate(key: str, value: Any) -> Any:
    # Keras computes a schedule in the dtype of the rate. With an integer, pi would be 3.
    if isinstance(value, list) and key == "values":
        return [float(item) for item in value]
    is_rate = key.endswith(("learning_rate", "target")) and isinstance(value, int)
    return float(value) if is_rate else value


def _exclude(optimizer: Any, parts: Iterable[str]) -> None:
    """Let an optimizer leave out variables when their values decay, as soon as it knows the variables."""
    build = optimizer.build

    def build_and_exclude(variables: list[Any]) -> None:
        paths = [variable.path for variable in variables]
        if unused := [part for part in parts if not any(part in path for path in paths)]:
            raise ConfigError(
                f"optimizer.exclude_from_weight_decay must be parts of paths of variables. {unused} are in "
                f"none of {paths}."
            )
        # Keras itself would look in the names only, and `bias` is the name of many.
        optimizer.exclude_from_weight_decay(
            var_list=[one for one in variables if any(part in one.path for part in parts)]
        )
        build(variables)

    optimizer.build = build_and_exclude


@functools.cache
def classes_of(module: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the optimizers or the schedules of the installed Keras with the defaults of their arguments.

    Keras is not imported, which would import TensorFlow: its source is read.

    Args:
        module: `keras.optimizers`, or `keras.optimizers.schedules`.

    Returns:
        For each public class the default of each argument by name; `REQUIRED` where there is none, and
        `COMPUTED` where the default is no literal.
    """
    spec = importlib.util.find_spec("keras")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0], "src", *module.split(".")[1:])
    paths = [path for path in sorted(folder.glob("*.py")) if not path.stem.endswith("_test")]
    nodes = [node for path in paths for node in ast.parse(path.read_text()).body]
    return {
        node.name: parameters
        for node in nodes
        if isinstance(node, ast.ClassDef) and _is_public(node, f"{module}.{node.name}")
        # The base classes, and the optimizers that wrap others, have no rate of their own.
        if (parameters := _parameters(node)) and (module == SCHEDULES or "learning_rate" in parameters)
    }


def _is_public(node: ast.ClassDef, name: str) -> bool:
    return any(name in ast.unparse(decorator) for decorator in node.decorator_list)


def _parameters(node: ast.ClassDef) -> dict[str, Any]:
    """Return the default of each argument of a class by name; none if it has no `__init__` of its own."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            names = [argument.arg for argument in method.args.args[1:]]
            defaults = [_literal(default) for default in method.args.defaults]
            return dict(zip(names, [REQUIRED] * (len(names) - len(defaults)) + defaults, strict=True))
    return {}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return COMPUTED


def _find(name: str, known: Iterable[str]) -> str | None:
    """Return the class with a name, written as a class or in lower case with or without underscores."""
    return next((one for one in known if one.lower() == name.replace("_", "").lower()), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rate_problems(rate: Any) -> Iterator[str]:
    """Yield a sentence for each problem with `optimizer.learning_rate`."""
    if not isinstance(rate, Mapping):
        if not _is_number(rate) or rate <= 0:
            yield (
                "optimizer.learning_rate must be a number > 0, or a section with the name of a schedule and "
                f"its arguments. Received: {rate!r}."
            )
        return
    known = classes_of(SCHEDULES)
    name = _find(str(rate.get("name")), known)
    if name is None:
        yield unknown("optimizer.learning_rate.name", rate.get("name"), known)
        return
    parameters = {key: value for key, value in known[name].items() if key != "name"}
    given = {key: value for key, value in rate.items() if key != "name"}
    yield from _argument_problems("optimizer.learning_rate", given, parameters)
    if missing := [key for key, value in parameters.items() if value is REQUIRED and key not in given]:
        yield f"optimizer.learning_rate must have {', '.join(missing)}, which {name} needs."


def _argument_problems(section: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each argument that does not exist, or whose default is of another type."""
    for key, value in given.items():
        if key not in known:
            yield unknown(f"{section}.{key}", key, known, what="key")
            continue
        default = known[key]
        if isinstance(default, bool):
            if not isinstance(value, bool):
                yield f"{section}.{key} must be true or false. Received: {value!r}."
        elif (
            key in _NUMBERS or isinstance(default, int | float) or (default is REQUIRED and key not in _LISTS)
        ):
            optional = default is None
            total = section == "optimizer.learning_rate" and value == TOTAL_STEPS
            if not (_is_number(value) or total or (optional and value is None)):
                kind = "a number or null" if optional else "a number"
                yield f"{section}.{key} must be {kind}. Received: {value!r}."
        elif key in _LISTS and not (isinstance(value, list) and all(map(_is_number, value))):
            yield f"{section}.{key} must be a list of numbers. Received: {value!r}."
