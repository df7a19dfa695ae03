"""Binding the values of a configuration to the parameters of the class that takes them.

The signature of the class is the schema. Its annotations are the types, and strings in `Annotated`, such as
`Annotated[int, ">= 1"]`, are the constraints. Problems are appended to a list and not raised, so that a user
sees all of them at once.
"""

from __future__ import annotations

import importlib
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pipeline import whose
from pipeline.errors import ConfigError, unknown

COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}

T = TypeVar("T")


def construct(values: Any, name: str, problems: list[str]) -> tuple[Any, Mapping[str, Any]]:
    """Construct the component that `values` names by `_target_`, with the other values as its arguments.

    `hydra.utils.instantiate` is not used: it raises at the first problem, and does not check types.

    Args:
        values: The section of the component.
        name: The key of the section, for messages.
        problems: Receives a sentence for each problem.

    Returns:
        The component, and its values with absolute paths; `None` and no values if there are problems.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("_target_"), str):
        problems.append(f"{name}._target_ must name a class. Received: {values!r}.")
        return None, {}
    target = values["_target_"]
    module_name, _, class_name = target.rpartition(".")
    try:
        constructor = getattr(importlib.import_module(module_name), class_name)
        if not isinstance(constructor, type):
            raise TypeError(f"{class_name} is no class")
    except Exception as error:  # The module may be a user's, and an import may raise any type of exception.
        hint = whose(target) if isinstance(error, ModuleNotFoundError) else ""
        problems.append(
            f"{name}._target_ must name a class that can be imported. Received: {target}: {error}.{hint}"
        )
        return None, {}
    arguments = {key: value for key, value in values.items() if key != "_target_"}
    known_problems = len(problems)
    bound = bind(constructor, arguments, f"{name}.", problems)
    if len(problems) > known_problems:
        return None, {}
    resolved = {key: str(value) if isinstance(value, Path) else value for key, value in bound.items()}
    try:
        return constructor(**bound), {"_target_": target, **resolved}
    except (ValueError, TypeError, ImportError) as error:
        problems.append(str(error))
        return None, {}


def parse(schema: Callable[..., T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return a section of the configuration as an instance of its schema.

    Args:
        schema: A dataclass.
        values: Values by key.
        prefix: The key of the section and a dot, for messages; empty for the top level.

    Returns:
        The instance.

    Raises:
        ConfigError: Keys are missing or unknown, or values do not fit; there is a sentence for each.
    """
    problems: list[str] = []
    bound = bind(schema, values, prefix, problems)
    if problems:
        raise ConfigError(*problems)
    return schema(**bound)


def bind(
    constructor: Callable[..., Any], values: Mapping[str, Any], prefix: str, problems: list[str]
) -> dict[str, Any]:
    """Bind values to the keyword parameters of a constructor, and check each against its annotation.

    Args:
        constructor: A class whose `__init__` is annotated.
        values: Values by parameter name.
        prefix: The key of the section and a dot, for messages; empty for the top level.
        problems: Receives a sentence for each value that is missing, unknown or does not fit.

    Returns:
        The arguments by name, converted to the annotated types. Use them only if no problem was appended.
    """
    parameters = dict(inspect.signature(constructor).parameters)
    # From the class of a dataclass, not from its generated `__init__`: only so is the annotation of an
    # inherited field looked up in the module of the base class.
    hints = typing.get_type_hints(
        constructor if is_dataclass(constructor) else constructor.__init__, include_extras=True
    )
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    parameters = {
        name: p for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    problems += [
        unknown(f"{prefix}{key}", key, parameters, what="key")
        for key in values
        if key not in parameters and not takes_any
    ]
    bound = {key: value for key, value in values.items() if key not in parameters and takes_any}
    for name, parameter in parameters.items():
        value = values.get(name, parameter.default)
        # `???` is OmegaConf's mark of a value that must be given.
        if value is inspect.Parameter.empty or (isinstance(value, str) and value == "???"):
            problems.append(f"{prefix}{name} must be given. Add {prefix}{name}=... to the command.")
        else:
            bound[name] = _convert(value, hints.get(name, Any), f"{prefix}{name}", problems)
    return bound


def _convert(value: Any, hint: Any, key: str, problems: list[str]) -> Any:
    """Return a value as the type in an annotation; if it does not fit, append a sentence to `problems`."""
    if typing.get_origin(hint) is Annotated:
        kind, *constraints = typing.get_args(hint)
        known_problems = len(problems)
        value = _convert(value, kind, key, problems)
        if len(problems) == known_problems and value is not None:
            problems += [
                f"{key} must be {constraint}. Received: {value}."
                for constraint in constraints
                if not _holds(value, constraint)
            ]
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            problems.append(f"{key} must be a section. Received: {value!r}.")
            return None
        known_problems = len(problems)
        bound = bind(hint, value, f"{key}.", problems)
        return hint(**bound) if len(problems) == known_problems else None
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        hints = [option for option in options if option is not type(None)]
        hint = next((h for h in hints if isinstance(h, type) and isinstance(value, h)), hints[0])
        return _convert(value, hint, key, problems)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            problems.append(unknown(key, value, choices))
        return value
    return _convert_plain(value, hint, key, problems)


def _convert_plain(value: Any, hint: Any, key: str, problems: list[str]) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    # `1e3` is a float in YAML, but an integer for a user who writes `train.epochs=1e3`.
    if hint is int and is_number and value == int(value):
        return int(value)
    if hint is float and is_number:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(os.path.expanduser(value)).absolute()  # noqa: PTH111 - an unknown user is no error
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        kind = typing.get_args(hint)[1]
        return {name: _convert(item, kind, f"{key}.{name}", problems) for name, item in value.items()}
    if typing.get_origin(hint) is list and isinstance(value, list):
        return [_convert(item, typing.get_args(hint)[0], key, problems) for item in value]
    if typing.get_origin(hint) is list:
        problems.append(f"{key} must be a list, such as [a,b]. Received: {value!r}.")
    if typing.get_origin(hint) is dict:
        problems.append(f"{key} must be a section. Received: {value!r}.")
    if hint in (int, float, bool, str, Path):
        name = (
            "a finite number"
            if hint is float and isinstance(value, float)
            else TYPE_NAMES.get(hint, "a path")
        )
        problems.append(f"{key} must be {name}. Received: {value!r}.")
    # A value with any other annotation is checked by the constructor.
    return value


def _holds(value: Any, constraint: str) -> bool:
    comparison, _, bound = constraint.partition(" ")
    return bool(COMPARISONS[comparison](value, float(bound)))
