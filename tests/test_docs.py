"""The documentation: links lead somewhere, commands and keys exist, programs run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.cases import CASES
from tests.conftest import Finished
from tests.markdown import DOCS, PAGES, README, ROOT, Block, anchors, blocks, inline_code, links

(DENSE,) = (case for case in CASES if case.name == "dense")
OWN_FILES = (DOCS / "own-model.md", DOCS / "keras.md")
"""Pages that show files of the user's own."""

MODULES = {
    "config": "pipeline.__main__",
    "evaluate": "pipeline.evaluate",
    "export": "pipeline.export",
    "predict": "pipeline.predict",
    "records": "pipeline.records",
}
"""The module of each command by its configuration file; its `check` checks a composed configuration."""

CONTEXTS = (
    ("config", "export=all"),
    ("config", "model=mnist_cnn"),
    ("config", "model=char_lstm"),
    ("config", "model=dense"),
    ("config", "model=keras data=csv"),
    ("config", "data=npz"),
    ("config", "data=tfrecord"),
    ("config", "data=csv"),
    ("config", "data=image_folder data.size=[8,8]"),
    ("config", "data=python data.function=mine.data.load"),
    ("config", "optimizer=sgd"),
    ("config", "optimizer=rmsprop"),
    ("config", "hydra/sweeper=optuna hydra/sweeper/pruner=median"),
    ("config", "experiment=sweep_mnist_cnn"),
    ("config", "+data.download=true"),
    ("evaluate", "+data.dir=/elsewhere"),
    ("export", "export=all"),
    ("predict", ""),
    ("records", ""),
)
"""Configurations that together have every key that the documentation may name."""

FLAGS = ("-m", "--help", "--hydra-help")
NO_OVERRIDES = {"key=value", "+key=value", "group=choice", "ordered=True"}
"""Inline code that looks like an override and is none."""

SECTIONS = "train|verify|best|sweep|export|optimizer|data|model|writer|hydra"
NO_KEYS = re.compile(r"\.(onnx|keras|tflite|html)$|^data\.metadata\.|[A-Z]")


@pytest.fixture(scope="module", autouse=True)
def configurations() -> Iterator[None]:
    with initialize_config_module("conf", version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def contexts(configurations: None) -> list[DictConfig]:
    return [compose(name, words.split(), return_hydra_config=True) for name, words in CONTEXTS]


def ids(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


pages = pytest.mark.parametrize("page", PAGES, ids=ids)


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(README) if "://" not in link}
    assert set(DOCS.glob("*.md")) <= linked


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


class TestReference:
    def test_the_page_is_what_the_configuration_gives(self) -> None:
        spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
        assert spec is not None
        assert spec.loader is not None
        reference = importlib.util.module_from_spec(spec)
        sys.modules["reference"] = reference  # Its dataclasses look their module up.
        try:
            spec.loader.exec_module(reference)
            assert (DOCS / "configuration.md").read_text() == reference.page(), "run `make docs`"
            assert reference.meaning_of("", "a comment") == "A comment."
            with pytest.raises(LookupError, match="must have one dataclass with the fields"):
                reference.settings_of("pipeline.evaluate", [reference.Key("nowhere", "", "")])
        finally:
            del sys.modules["reference"]

    def test_the_generator_does_not_import_tensorflow(self) -> None:
        code = (
            "import runpy, sys; runpy.run_path(sys.argv[1])['page'](); assert 'tensorflow' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code, str(DOCS / "reference.py")], check=True, cwd=ROOT)


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a block for a shell, each as its words, without redirections."""
    text = re.sub(r"(\\|(?<=\|))\n\s*", " ", block.text).replace("$(hostname)", "host")
    for line in text.splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|<>")
        lexer.whitespace_split = True
        words = list(lexer)
        for is_pipe, part in itertools.groupby(words, key="|".__eq__):
            if not is_pipe:
                yield list(itertools.takewhile(lambda word: word not in ("<", ">"), part))


def documented_commands(page: Path) -> Iterator[list[str]]:
    """Yield every command of a page: of its blocks, and of inline code that is a command."""
    for block in blocks(page):
        if block.language == "sh":
            yield from commands_of(block)
        elif block.language == "text" and block.text.startswith("$ "):
            yield from commands_of(Block(block.page, block.line, "sh", block.text.splitlines()[0]))
    for code in inline_code(page):
        if code.startswith(("python -m pipeline", "make ", "pip install")):
            yield from commands_of(Block(page, 0, "sh", code))


class TestCommands:
    @pytest.fixture
    def replaced(
        self, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[dict[str, str]]:
        """Give what the capitals of the documentation stand for; files of the example are at hand."""
        monkeypatch.setenv("STORAGE", "sqlite:///study.db")
        monkeypatch.syspath_prepend(tmp_path)
        text = "\n".join(page.read_text() for page in OWN_FILES)
        for name, content in re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL | re.MULTILINE):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        (tmp_path / "run").symlink_to(finished.of(DENSE)[0])  # a path that needs no quotes
        run = str(tmp_path / "run")
        (tmp_path / "new.keras").touch()
        yield {
            **dict.fromkeys(("DIR", "RUN", "SWEEP"), run),
            **dict.fromkeys(("FILE", "FOLDER", "SHARDS"), str(tmp_path / "new")),
            "outputs/...": run,
            "myconf": str(tmp_path / "myconf"),
        }
        for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            del sys.modules[name]

    @pages
    def test_exist_with_all_their_keys(self, page: Path, replaced: dict[str, str]) -> None:
        for words in documented_commands(page):
            check_documented(words, replaced)

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("python -m pipeline train.epoch=3", "train.epoch"),
            ("python -m pipeline model=gruu", "gruu"),
            ("python -m pipeline train.epochs=-1", "train.epochs must be >= 0"),
            ("python -m pipeline -m model=gru train.epochs=1,-1", "train.epochs must be >= 0"),
            ("python -m pipeline.evaluate run_dir=DIR epochs=[1,30]", "30"),
            ("python -m pipeline.evaluate run_dir=DIR fromat=onnx", "fromat"),
            ("python -m pipeline.predict export_dir=DIR batch_size=0", "batch_size must be >= 1"),
            ("make tests", "tests"),
            ("make bench ROW=gru", "ROW"),
            ("pip install 'roundtrip[onxx]'", "onxx"),
        ],
    )
    def test_that_do_not_exist_are_found(self, command: str, message: str, replaced: dict[str, str]) -> None:
        """The check above can fail."""
        (words,) = commands_of(Block(README, 1, "sh", command))
        expected = (HydraException, OmegaConfBaseException, ValueError, AssertionError)
        with pytest.raises(expected, match=message):
            check_documented(words, replaced)


def check_documented(words: list[str], replaced: dict[str, str]) -> None:
    """Check a command of this project; others are none of its business."""
    if words[:2] == ["python", "-m"] and words[2].partition(".")[0] == "pipeline":
        check_command(words[2], words[3:], replaced)
    elif words[:1] == ["make"]:
        check_make(words[1:], replaced)
    elif words[:2] == ["pip", "install"]:
        check_extras(words[2])


def check_command(module: str, arguments: list[str], replaced: dict[str, str]) -> None:
    """Compose the configuration of a command, of a sweep with the first and the last values, and check it."""
    config_name = module.partition(".")[2] or "config"
    overrides = []
    for argument in arguments:
        if argument.startswith("--config-dir="):
            folder = replaced[argument.partition("=")[2]]
            overrides.append(f"hydra.searchpath=[file://{folder}]")
        elif argument not in FLAGS and not (argument.startswith("--cfg") or argument == "job"):
            assert not argument.startswith("-"), argument
            overrides.append(argument)
    overrides = [
        re.sub(r"=(outputs/\.\.\.|\w+)(?=$|/|\.keras$)", _replace(replaced), one) for one in overrides
    ]
    for which in (0, -1) if "-m" in arguments else (0,):
        parsed = OverridesParser.create().parse_overrides(overrides)
        assert "-m" in arguments or not any(one.is_sweep_override() for one in parsed), overrides
        composed = compose(config_name, [_value(one, which) for one in parsed], return_hydra_config=True)
        # A run of MNIST would take `+data.dir`; the run at hand is of numbers.
        if arguments and "--help" not in arguments and not any("+data." in one for one in overrides):
            check = importlib.import_module(MODULES[config_name]).check
            check(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))


def _replace(replaced: dict[str, str]) -> Any:
    def replace(match: re.Match[str]) -> str:
        return "=" + replaced.get(match[1], match[1])

    return replace


def _value(override: Override, which: int) -> str:
    """Return an override with the first or the last of the values that it names."""
    if not override.is_sweep_override():
        return str(override.input_line)
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return f"{override.key_or_group}={(sweep.start, sweep.end)[which]}"
    return f"{override.key_or_group}={list(override.sweep_string_iterator())[which]}"


def check_make(arguments: list[str], replaced: dict[str, str]) -> None:
    """Check that a target and the variables exist, and what `make run` passes on."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)
    variables = re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE)
    for argument in arguments:
        name, is_variable, value = argument.partition("=")
        assert name in (variables if is_variable else targets), argument
        if name == "ARGS" and arguments[0] == "run":
            check_command("pipeline", shlex.split(value), replaced)
        for path in re.findall(r"tests/\S+\.py", value):
            assert (ROOT / path).exists(), path


def check_extras(requirement: str) -> None:
    """Check that the extras of this package exist."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    name, _, extras = requirement.removesuffix("]").partition("[")
    if name in (".", "roundtrip") and extras:
        assert set(extras.split(",")) <= set(known), requirement


class TestKeys:
    """Keys and choices in sentences and tables; docs/configuration.md is made from the configuration."""

    @pytest.mark.parametrize("page", [page for page in PAGES if page.name != "configuration.md"], ids=ids)
    def test_exist(self, page: Path, contexts: list[DictConfig]) -> None:
        for code in inline_code(page):
            override = re.fullmatch(r"[+~]?([a-z_][\w./]*)=(\S*)", code)
            if override and code not in NO_OVERRIDES and "<" not in code:
                for value in override[2].split("|"):
                    assert "…" in value or is_known(override[1], value, contexts), code
            elif re.fullmatch(rf"({SECTIONS})\.[\w.]+", code) and not NO_KEYS.search(code):
                is_module = (ROOT / "/".join(code.split(".")[:2])).with_suffix(".py").exists()
                assert is_module or has_key(code, contexts), code

    def test_that_do_not_exist_are_found(self, contexts: list[DictConfig]) -> None:
        assert not is_known("train.epoch", "3", contexts)
        assert not is_known("model", "gruu", contexts)
        assert not is_known("hydra/sweeper/sampler", "tpee", contexts)
        assert not has_key("hydra.launcher.jobs", contexts)


def is_known(key: str, value: str, contexts: list[DictConfig]) -> bool:
    """Return whether a key, or a choice of a group, exists; without a value, whether the group does."""
    if (ROOT / "conf" / key).is_dir():
        values = value.strip("[]").split(",")
        return all((ROOT / "conf" / key / f"{one}.yaml").exists() for one in values if one)
    if "/" in key and not value:
        return has_key(key.replace("/", "."), contexts)
    if "/" in key:
        sweeper = ["hydra/sweeper=optuna"] if key.startswith("hydra/sweeper/") else []
        try:
            compose("config", [*sweeper, f"{key}={value}"], return_hydra_config=True)
        except HydraException:
            return False
        return True
    return has_key(key, contexts)


def has_key(key: str, contexts: list[DictConfig]) -> bool:
    """Return whether a configuration has a key."""

    def holds(node: Any) -> bool:
        for part in key.split("."):
            # `part in node` is false of a key that the user must give.
            if not isinstance(node, DictConfig) or (
                part not in node and not OmegaConf.is_missing(node, part)
            ):
                return False
            node = node._get_node(part)
        return True

    return any(map(holds, contexts))


class TestPrograms:
    @pages
    def test_compile(self, page: Path) -> None:
        for block in blocks(page, "python"):
            compile(block.text, str(block), "exec")

    @pytest.mark.parametrize(
        "block",
        [
            block
            for page in (README, DOCS / "guide.md", DOCS / "formats.md")
            for block in blocks(page, "python")
            # The others: a fragment, and two programs about the char-LSTM that tests/test_commands.py runs.
            if "import" in block.text and "generate" not in block.text
        ],
        ids=str,
    )
    def test_that_open_an_export_run(self, block: Block, finished: Finished) -> None:
        """Each prints, or returns, the double of 7 as far as the model has learned it."""
        run, _ = finished.of(DENSE)
        printed = run_program(block.text, run)
        if "dataset_init" in block.text:
            assert len(re.findall(r"\[\[", printed)) == 3, "three batches of two rows"
        elif "predictor" not in block.text:
            (number,) = re.findall(r"\[\[(\S+?)\]\]", printed)
            assert float(number) == pytest.approx(double_of_7(run), rel=1e-5)

    def test_there_is_one_for_each_format(self) -> None:
        shown = {
            name
            for block in blocks(DOCS / "formats.md", "python")
            for name in re.findall(r"DIR/export/(\w+)/", block.text)
        }
        assert shown == {path.stem for path in (ROOT / "conf" / "export").glob("*.yaml")} - {"all"}


def run_program(text: str, run: Path) -> str:
    """Run a program of the documentation on a run; return what it prints."""

    def newest(match: re.Match[str]) -> str:
        return str(max((run / "export" / match[1]).iterdir()))

    text = re.sub(r"DIR/export/(\w+)/VERSION", newest, text).replace("DIR", str(run))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(text, "documentation", "exec"), {"__name__": "documentation"})
    return output.getvalue()


def double_of_7(run: Path) -> float:
    from pipeline import predictor

    return float(predictor.open(run / "export" / "saved_model")(number=[[7.0]])["output"][0, 0])


def shell(line: str, cwd: Path) -> str:
    """Run a line as a user does, in an activated environment; return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    completed = subprocess.run(
        ["bash", "-c", line],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout + completed.stderr


def main_jobs(*, with_a_run: bool) -> list[str]:
    """Return the lines of the README's main jobs: those about the run DIR, or the others."""
    section = README.read_text().split("## The main jobs")[1].split("\n## ")[0]
    lines = [
        line for text in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in text.splitlines()
    ]
    own = ("--config-dir", "mine.")
    lines = [line for line in lines if not line.startswith("#") and not any(word in line for word in own)]
    return [line for line in lines if ("DIR" in line) == with_a_run]


def test_the_main_jobs_of_the_readme_run(finished: Finished, tmp_path: Path) -> None:
    """Its own model runs in tests/test_extension.py."""
    shutil.copytree(finished.of(DENSE)[0], tmp_path / "DIR")
    jobs = main_jobs(with_a_run=True)
    assert [re.findall(r"pipeline\.?(\w*)", job)[0] for job in jobs] == ["evaluate", "export", "predict", ""]
    evaluated, exported, predicted, resumed = (shell(job, tmp_path) for job in jobs)
    assert "verdict: match" in evaluated
    assert "verdict: match" in exported
    assert set(json.loads(predicted)) == {"output"}
    assert "verdict: match" in resumed


@pytest.mark.slow
def test_the_main_jobs_of_the_readme_that_train_run(tmp_path: Path) -> None:
    jobs = main_jobs(with_a_run=False)
    assert len(jobs) == 3
    trained, swept, searched = (shell(job, tmp_path) for job in jobs)
    assert "verdict: match" in trained
    assert "ledger: " in swept
    assert "ledger: " in searched
