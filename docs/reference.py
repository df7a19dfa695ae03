"""The page docs/configuration.md, made from the configuration itself; `make docs` writes it.

A key's default and its comment stand in conf/*.yaml. Its type and its range stand in the dataclass or in the
constructor that takes the key, and the docstring of that class describes it. This module puts the three
together, so that the page cannot differ from the program. It does not import TensorFlow.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "configuration.md"

COMPONENTS = ("model", "data", "optimizer", "writer")
"""Sections whose keys are the parameters of the class that `_target_` names."""

MAIN = "pipeline.config.checks"
"""The module whose dataclass takes the top level of conf/config.yaml."""

DESCRIPTIONS = "pipeline.config.schema"
"""The module whose class `Settings` describes the keys of the top level."""

COMMANDS = {
    "evaluate": "pipeline.evaluate",
    "export": "pipeline.export",
    "predict": "pipeline.predict",
    "records": "pipeline.records",
}
"""The other commands: the file in conf, and the module whose dataclass takes its keys."""

MIN_NEW_WORDS = 4
"""Words of a comment that the description lacks, below which the comment says nothing more."""

NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}
SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}

INTRODUCTION = """\
# Configuration: every key

[docs/reference.py](reference.py) writes this page from the configuration files, the types of the schema and
the docstrings of the classes: `make docs`. A test compares the page with the program.

- `key=value` on the command line sets a key: `train.epochs=9`. `group=choice` chooses a file of
  [conf](../conf): `optimizer=sgd`. `+key=value` adds a key that the configuration does not have yet.
- *default* is the value in the file. `???` must be given, `null` is no value, and `${...}` is the value of
  another key.
- `python -m pipeline --help` shows the same keys with the values that a command line gives them, and
  `--cfg job` prints the whole configuration. `--help` and `--cfg job` work with every command.
- A command checks its whole configuration before it imports TensorFlow, and reports every problem in one
  message, with exit code 2. An unknown key or choice is answered with the known ones.
- A value with a space or a bracket needs quotes, for the shell and for Hydra: `'data.path="my file.npz"'`.
"""


@dataclass(frozen=True)
class Key:
    """A key of a configuration file.

    Attributes:
        name: The key with its sections, such as `train.epochs`.
        default: The value as it is written in the file.
        comment: The comment behind the value, or behind the section that is empty.
    """

    name: str
    default: str
    comment: str


@dataclass(frozen=True)
class Facts:
    """The type of a key, in words, and its description."""

    type: str = ""
    description: str = ""


@dataclass(frozen=True)
class File:
    """A configuration file: the comment at its head, and its keys without those of Hydra."""

    head: Sequence[str]
    keys: Sequence[Key] = field(default_factory=tuple)


def read(path: Path) -> File:
    """Return the keys of a configuration file with their defaults and comments."""
    text = path.read_text()
    lines = text.splitlines()
    node = yaml.compose(text)
    head = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    head = [line for line in head if not line.startswith("@package")]
    return File(head, tuple(_keys(node, lines, "")))


def _keys(node: Any, lines: Sequence[str], prefix: str) -> Iterator[Key]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in ("defaults", "hydra"):
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _keys(value, lines, f"{name}.")
            continue
        start, end = value.start_mark, value.end_mark
        yield Key(name, lines[start.line][start.column : end.column], _comment(lines[end.line][end.column :]))


def _comment(rest: str) -> str:
    return rest.partition("#")[2].strip()


def facts_of(constructor: type, prefix: str = "") -> dict[str, Facts]:
    """Return the type and the description of each key that a class takes, nested dataclasses included."""
    source = constructor if is_dataclass(constructor) else constructor.__init__  # type: ignore[misc]
    hints = typing.get_type_hints(source, include_extras=True)
    described = descriptions(constructor)
    found: dict[str, Facts] = {}
    for name in inspect.signature(constructor).parameters:
        hint = hints.get(name, Any)
        if is_dataclass(hint) and isinstance(hint, type):
            found |= facts_of(hint, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = Facts(in_words(hint), described.get(name, ""))
    return found


def descriptions(described: type) -> dict[str, str]:
    """Return the description of each attribute or argument in the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(described.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        for section in re.findall(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)*)", text, re.MULTILINE):
            for name, words in re.findall(
                r"^    (\w+): ((?:.*\n?)(?:        .*\n?)*)", section, re.MULTILINE
            ):
                found[name] = " ".join(words.split()).replace("`None`", "`null`").replace("`True`", "`true`")
    return found


def in_words(hint: Any) -> str:
    """Return a type annotation in words, such as `integer ≥ 1 or null`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, *constraints = arguments
        return " and ".join(
            [f"{in_words(kind)} {_in_signs(constraints[0])}", *map(_in_signs, constraints[1:])]
        )
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if option is type(None) else in_words(option) for option in arguments)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"list of {in_words(arguments[0])}s"
    if origin is dict:
        return "section" if arguments[1] is Any else f"section of {in_words(arguments[1])}"
    return NAMES.get(hint, "see the meaning")


def _in_signs(constraint: str) -> str:
    comparison, _, bound = constraint.partition(" ")
    return f"{SIGNS[comparison]} {bound}"


def settings_of(module: str, keys: Iterable[Key]) -> type:
    """Return the dataclass of a module whose fields are the sections and keys of a configuration file.

    Raises:
        LookupError: The module has none, or several.
    """
    names = {key.name.partition(".")[0] for key in keys} - {*COMPONENTS}
    members = vars(importlib.import_module(module)).values()
    classes = [member for member in members if isinstance(member, type) and is_dataclass(member)]
    # The file does not have the section `export`: choosing a format brings it.
    without = {"export", *COMPONENTS}
    fitting = [found for found in classes if {one.name for one in fields(found)} - without == names]
    if len(fitting) != 1:
        raise LookupError(
            f"{module} must have one dataclass with the fields {sorted(names)}. Found: {fitting}."
        )
    return fitting[0]


def target_of(file: File, section: str) -> type:
    """Return the class that `_target_` of a section, or of the whole file, names."""
    name = "_target_" if section == "" else f"{section}._target_"
    (target,) = (key.default for key in file.keys if key.name == name)
    module, _, attribute = target.rpartition(".")
    found: type = getattr(importlib.import_module(module), attribute)
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def keys_table(keys: Iterable[Key], facts: Mapping[str, Facts], prefix: str = "") -> str:
    """Return the table of some keys: type, default, meaning."""
    rows = []
    for key in keys:
        known = facts.get(key.name, Facts())
        default = f"`{key.default}`" if key.default else ""
        meaning = meaning_of(known.description, key.comment)
        rows.append([f"`{prefix}{key.name}`", known.type, default, meaning])
    return table(["key", "type", "default", "meaning"], rows)


def meaning_of(description: str, comment: str) -> str:
    """Return a description, followed by the comment in the file where that says more."""
    if not description or not comment:
        return description or _sentence(comment)
    known = set(_words(description))
    new = [word for word in _words(comment) if word not in known]
    says_more = len(new) >= MIN_NEW_WORDS and 2 * len(new) >= len(_words(comment))
    return f"{description} {_sentence(comment)}" if says_more else description


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9_]{3,}", text.lower())


def _sentence(text: str) -> str:
    text = text.replace("|restored - logged|", "\\|restored - logged\\|")
    return "" if not text else text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def choices(group: str) -> list[str]:
    """Return the files of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _heading(level: int, text: str) -> str:
    return f"{'#' * level} {text}\n"


def _summary(described: type) -> str:
    return inspect.cleandoc(described.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def main_keys() -> Iterator[str]:
    """Yield the sections on the main command: groups, keys of the top level, directories."""
    text = (CONF / "config.yaml").read_text()
    defaults = {
        str(group): str(choice)
        for item in yaml.safe_load(text)["defaults"]
        if isinstance(item, dict)
        for group, choice in item.items()
    }
    yield _heading(2, "Choices of `python -m pipeline`")
    rows = [
        [f"`{group}=`", ", ".join(f"`{choice}`" for choice in choices(group)), f"`{defaults[group]}`"]
        for group in ("model", "optimizer", "export", "experiment")
    ]
    rows.insert(1, ["`data=`", ", ".join(f"`{choice}`" for choice in choices("data")), "that of the model"])
    yield table(
        ["group", "choices", "default"], [[*row[:2], row[2].replace("`None`", "`null`")] for row in rows]
    )
    yield "`export=` takes several formats as well: `export=[saved_model,onnx]`.\n"
    file = read(CONF / "config.yaml")
    described = descriptions(importlib.import_module(DESCRIPTIONS).Settings)
    facts = facts_of(settings_of(MAIN, file.keys))
    facts = {
        name: Facts(known.type, known.description or described.get(name, "")) for name, known in facts.items()
    }
    yield _heading(2, "Keys of `python -m pipeline`")
    yield keys_table(file.keys, facts)
    yield _heading(2, "Directories")
    hydra = yaml.safe_load(text)["hydra"]
    yield table(
        ["key", "default", "meaning"],
        [
            [
                "`hydra.run.dir`",
                f"`{hydra['run']['dir']}`",
                "The run's directory. The default is outputs/DATE/TIME-MODEL-FORMATS, or `train.resume`.",
            ],
            ["`hydra.sweep.dir`", f"`{hydra['sweep']['dir']}`", "The directory of a sweep or a search."],
            ["`hydra.sweep.subdir`", f"`{hydra['sweep']['subdir']}`", "A trial's directory in it."],
        ],
    )


def component(group: str, title: str) -> Iterator[str]:
    """Yield the sections on a group whose choices name a class."""
    yield _heading(2, title)
    for choice in choices(group):
        file = read(CONF / group / f"{choice}.yaml")
        section = group if any(key.name.startswith(f"{group}.") for key in file.keys) else ""
        named = target_of(file, section)
        prefix = f"{section}." if section else ""
        own = [key for key in file.keys if key.name.startswith(prefix) and not key.name.endswith("_target_")]
        others = [key for key in file.keys if not key.name.startswith(prefix)]
        yield _heading(3, f"`{group}={choice}`")
        if file.head:
            yield f"{' '.join(file.head)}\n"
        yield f"`{named.__module__}.{named.__name__}`: {_summary(named)}\n"
        if own:
            yield keys_table(own, facts_of(named, prefix), "" if section else f"{group}.")
        if others or section:
            yield _also_sets(CONF / group / f"{choice}.yaml", others)


def _also_sets(path: Path, keys: Sequence[Key]) -> str:
    defaults = yaml.safe_load(path.read_text()).get("defaults", [])
    brought = [
        f"`data={item['/data@data']}`" for item in defaults if isinstance(item, dict) and "/data@data" in item
    ]
    brought += [
        f"`data={value}`"
        for item in defaults
        if isinstance(item, dict)
        for name, value in item.items()
        if name.startswith("/data@") and name != "/data@data"
    ]
    return f"Also sets {', '.join([*brought, *(f'`{key.name}={key.default}`' for key in keys)])}.\n"


def exports() -> Iterator[str]:
    """Yield the section on export formats."""
    yield _heading(2, "Formats: `export=`")
    export = importlib.import_module(DESCRIPTIONS).Export
    facts = facts_of(export)
    rows = []
    for choice in choices("export"):
        file = read(CONF / "export" / f"{choice}.yaml")
        further = [key for key in file.keys if not key.name.startswith("formats.")]
        rows.append(
            [f"`export={choice}`", " ".join(file.head), ", ".join(f"`export.{key.name}`" for key in further)]
        )
    yield table(["choice", "writes", "further keys"], rows)
    keys = {
        key.name: key
        for choice in choices("export")
        for key in read(CONF / "export" / f"{choice}.yaml").keys
        if not key.name.startswith("formats.")
    }
    listed = [
        Key("formats.<format>", "true", "false leaves out a format of those that are chosen"),
        *keys.values(),
    ]
    facts["formats.<format>"] = Facts("true or false", "")
    yield keys_table(listed, facts, "export.")


def experiments() -> Iterator[str]:
    """Yield the section on experiments: the head of each file."""
    yield _heading(2, "Whole set-ups: `experiment=`")
    rows = []
    for choice in choices("experiment"):
        command, *words = read(CONF / "experiment" / f"{choice}.yaml").head
        rows.append([f"`{command}`", " ".join(word for word in words if word)])
    yield table(["command", "what it does, what to expect, how long it takes"], rows)


def sweeps() -> Iterator[str]:
    """Yield the sections on the launcher and the sweeper, which Hydra finds as plugins."""
    launcher = importlib.import_module("hydra_plugins.roundtrip.forked_launcher")
    sweeper = importlib.import_module("hydra_plugins.roundtrip.optuna_sweeper")
    yield _heading(2, "Sweeps: `hydra.launcher`")
    yield "Keys of `hydra/launcher=forked`, the default of `-m`.\n"
    yield _plugin_table(launcher.ForkedLauncherConf, "hydra.launcher.")
    yield _heading(2, "Searches: `hydra.sweeper`")
    yield "Keys of `hydra/sweeper=optuna`.\n"
    yield _plugin_table(sweeper.OptunaSweeperConf, "hydra.sweeper.", leave_out=("sampler", "pruner"))
    rows = [
        [f"`hydra/sweeper/{group}={name}`", _optuna_class(options), _options(options)]
        for group, all_options in (("sampler", sweeper.SAMPLERS), ("pruner", sweeper.PRUNERS))
        for name, options in all_options.items()
    ]
    yield table(["choice", "class", "options that it sets"], rows)
    yield (
        "Every option of these classes is a key: `hydra.sweeper.sampler.n_startup_trials=5`. An option that "
        "is not listed here needs a `+` in front. The defaults are `tpe` and `none`.\n"
    )


def _plugin_table(section: type, prefix: str, leave_out: Sequence[str] = ()) -> str:
    hints, described = typing.get_type_hints(section), descriptions(section)
    rows = []
    for one in fields(section):
        if not one.name.startswith("_") and one.name not in (*leave_out, "defaults"):
            default: Any = one.default if one.default_factory is MISSING else one.default_factory()
            shown = "null" if default is None else str(default)
            rows.append(
                [f"`{prefix}{one.name}`", in_words(hints[one.name]), f"`{shown}`", described[one.name]]
            )
    return table(["key", "type", "default", "meaning"], rows)


def _optuna_class(options: Mapping[str, Any]) -> str:
    target = str(options.get("_target_", ""))
    return f"`{target}`" if target.startswith("optuna.") else ""


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={_plain(value)}`" for name, value in options.items() if name != "_target_")


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def other_commands() -> Iterator[str]:
    """Yield a section for each of the other commands."""
    shared = facts_of(settings_of(MAIN, read(CONF / "config.yaml").keys))
    for name, module in COMMANDS.items():
        file = read(CONF / f"{name}.yaml")
        command, *words = file.head
        yield _heading(2, f"Keys of `python -m pipeline.{name}`")
        yield f"`{command}`: {' '.join(words)}\n"
        facts = facts_of(settings_of(module, file.keys))
        for key in file.keys:
            if key.name in shared and "." in key.name:
                # Such a key may be left out here: the run has recorded it.
                known = shared[key.name]
                facts[key.name] = Facts(f"{known.type.removesuffix(' or null')} or null", known.description)
        if any(key.name == "writer._target_" for key in file.keys):
            facts |= facts_of(target_of(file, "writer"), "writer.")
        yield keys_table((key for key in file.keys if not key.name.endswith("_target_")), facts)
        if name == "export":
            yield "`export=` chooses the formats: see [Formats](#formats-export).\n"
        if name == "records":
            yield "`data=` chooses the source: see [Data](#data-data). The default is `mnist`.\n"


def page() -> str:
    """Return the whole page."""
    parts = [
        INTRODUCTION,
        *main_keys(),
        *component("model", "Models: `model=`"),
        *component("data", "Data: `data=`"),
        *component("optimizer", "Optimizers: `optimizer=`"),
        *exports(),
        *experiments(),
        *sweeps(),
        *other_commands(),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page())
