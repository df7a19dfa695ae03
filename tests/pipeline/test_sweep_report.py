from __future__ import annotations

import ast
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element

import pytest

from pipeline import charts, page, sweep_report
from pipeline.charts import Curve, Point, Series, bars, chart, parallel, parallel_legend, shortened
from pipeline.errors import ConfigError
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps.ledger import Ledger, Trial
from tests.pipeline.test_report import Page

LOSS = [("loss", "minimize")]
BOTH = [*LOSS, ("accuracy", "maximize")]


class SweepPage(Page):
    """A page whose cells hold all text in them, whatever it is in."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def section(self, name: str) -> SweepPage:
        """Return what is below a heading, up to the next one."""
        source = self.source[self.source.index(f"<h2>{name}</h2>") + 4 :]
        return SweepPage(source.partition("</main>")[0].partition("<h2>")[0].partition("</h2>")[2])

    def paths(self, class_: str) -> list[str]:
        """Return what the paths of a class draw."""
        return [str(a["d"]) for tag, a in self.tags if tag == "path" and a.get("class") == class_]


def trial(number: int, values: dict[str, Any] | None = None, **changes: Any) -> Trial:
    """Return a trial that is done and matches, unless it is said otherwise."""
    values = {"optimizer.learning_rate": 10.0**-number} if values is None else values
    facts: dict[str, Any] = {
        "overrides": ["model=gru", *(f"{key}={value}" for key, value in values.items())],
        "config_hash": f"hash{number}",
        "state": ledgers.DONE,
        "run_dir": str(number),
        "objective": 1.0 + number,
        "verdict": "match",
        "epochs": 3,
        "seconds": 1.25,
    }
    return Trial(number, **(facts | changes))


def unfinished(number: int, state: str, reason: str | None = None, **changes: Any) -> Trial:
    facts = {"state": state, "objective": None, "verdict": None, "reason": reason, "epochs": 0}
    return trial(number, **(facts | changes))


def mismatch(number: int, **changes: Any) -> Trial:
    return trial(number, **{"state": ledgers.MISMATCH, "verdict": "mismatch", **changes})


def pruned(number: int, **changes: Any) -> Trial:
    return trial(number, **{"state": ledgers.PRUNED, "verdict": None, "epochs": 1, **changes})


Write = Callable[..., SweepPage]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return what writes a sweep's ledger and its page, and reads the page."""
    directory = tmp_path / "sweep"

    def written(
        trials: Sequence[Trial], objectives: Sequence[tuple[str, str]] = LOSS, directory: Path = directory
    ) -> SweepPage:
        directory.mkdir(exist_ok=True)
        ledger = Ledger(directory)
        ledger.path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in trials))
        path = sweep_report.write(ledger, objectives)
        assert path == directory / "sweep.html"
        return SweepPage(path.read_text())

    return written


def test_the_page_needs_nothing_but_itself(write: Write) -> None:
    page = write([trial(0), pruned(1), mismatch(2), unfinished(3, ledgers.FAILED, "no luck")], BOTH)
    page.assert_needs_nothing_but_itself()


LIGHT = {
    "pipeline",
    "pipeline.charts",
    "pipeline.cli.quoting",
    "pipeline.runs.directory",
    "pipeline.sweeps",
    "pipeline.sweeps.ledger",
}


def test_it_imports_nothing_heavy() -> None:
    for module in (sweep_report, page):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        imported |= {a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names}
        ours = {name for name in imported if str(name).startswith("pipeline")}
        assert ours <= {
            "pipeline",
            "pipeline.charts",
            "pipeline.sweeps",
            "pipeline.sweeps.ledger",
            "pipeline.cli.quoting",
            "pipeline.runs.directory",
        }
        assert not {"tensorflow", "optuna", "numpy"} & imported


class TestHead:
    def test_it_counts_the_trials_by_state(self, write: Write) -> None:
        page = write(
            [
                trial(0),
                trial(1),
                pruned(2),
                mismatch(3),
                unfinished(4, ledgers.RUNNING),
                unfinished(5, ledgers.TIMED_OUT),
            ]
        )
        assert page.of("h1") == ["sweep"]
        assert page.of("title")[0] == "sweep: 6 trials, best loss 1"
        assert page.of("span") == ["6 trials", "2 done", "1 pruned", "1 mismatch", "1 running", "1 timed out"]
        assert page.classes("span")[1:] == [
            "badge match",
            "badge muted",
            "badge mismatch",
            "badge muted",
            "badge mismatch",
        ]
        assert "A sweep to minimize loss." in page.of("p")

    def test_a_trial_that_was_repeated_counts_once(self, write: Write) -> None:
        page = write([unfinished(0, ledgers.FAILED, "no luck"), trial(1, config_hash="hash0")])
        assert page.of("span") == ["1 trial", "1 done"]
        assert "no luck" not in page.source

    @pytest.mark.parametrize(("direction", "best"), [("minimize", "2"), ("maximize", "0")])
    def test_the_best_trial_is_one_that_matches(self, write: Write, direction: str, best: str) -> None:
        trials = [
            trial(0, objective=0.9),
            mismatch(1, objective=0.1 if direction == "minimize" else 3.0),
            trial(2, objective=0.5),
            pruned(3, objective=0.2 if direction == "minimize" else 2.0),
        ]
        page = write(trials, [("loss", direction)])
        facts = dict(zip(page.of("dt"), page.of("dd"), strict=True))
        assert facts["trial"] == best
        assert facts["loss"] == {"0": "0.9", "2": "0.5"}[best]
        assert facts["optimizer.learning_rate"] == str(10.0 ** -int(best))
        assert page.rows[1][:2] == ["1", best]

    def test_its_run_can_be_used(self, write: Write, tmp_path: Path) -> None:
        directory = tmp_path / 'it\'s a "sweep" & <more>'
        page = write([trial(0, run_dir=str(directory / "0"))], directory=directory)
        escaped = str(directory / "0").replace('"', '\\"')
        commands = [shlex.split(text) for text in page.of("pre")]
        assert commands == [["python", "-m", "pipeline.evaluate", f'run_dir="{escaped}"']]

    @pytest.mark.parametrize("trials", [[], [unfinished(0, ledgers.FAILED, "no luck")], [mismatch(0)]])
    def test_there_may_be_no_best_one(self, write: Write, trials: list[Trial]) -> None:
        page = write(trials)
        assert "None: no trial has an objective and matches what was verified." in page.of("p")
        assert "best" not in page.of("title")[0]
        assert not page.of("pre")


class TestTable:
    def test_it_has_every_trial_from_best_to_worst(self, write: Write) -> None:
        page = write(
            [
                trial(0, {"lr": "0.00123456789", "units": "1234567"}, objective=0.25, further=[0.5]),
                trial(1, {"lr": "1e-3", "units": "64"}, objective=0.125, further=[0.75]),
                unfinished(2, ledgers.KILLED, "SIGKILL", overrides=["lr=0.5"], seconds=None),
                mismatch(3, overrides=["lr=2", "units=8"], objective=0.0625, further=[1.0]),
                pruned(4, overrides=["lr=1", "units=8"], objective=0.0625),
            ],
            BOTH,
        )
        assert page.rows == [
            ["rank", "trial", "lr", "units", "loss", "accuracy", "verdict", "state", "epochs", "seconds"],
            ["1", "1", "0.001", "64", "0.125", "0.75", "match", "done", "3", "1.2"],
            ["2", "0", "0.001235", "1234567", "0.25", "0.5", "match", "done", "3", "1.2"],
            ["-", "4", "1", "8", "0.0625", "-", "-", "pruned", "1", "1.2"],
            ["-", "3", "2", "8", "0.0625", "1", "mismatch", "mismatch", "3", "1.2"],
            ["-", "2", "0.5", "-", "-", "-", "-", "killed", "0", "-"],
        ]
        titles = [a["title"] for tag, a in page.tags if tag == "td" and "title" in a]
        assert titles == ["1e-3", "0.00123456789"]

    def test_a_name_is_broken_at_its_last_dot(self, write: Write) -> None:
        page = write([trial(0), trial(1)])
        assert page.rows[0][2] == "optimizer.learning_rate"
        assert "optimizer.<br>learning_rate</th>" in page.source

    def test_words_are_aligned_left_and_long_ones_wrap(self, write: Write) -> None:
        page = write([trial(0, {"a": 1, "b": "x", "c": "y" * 80}), trial(1, {"a": 2, "b": "2", "c": "z"})])
        classes = page.classes("td")
        assert classes[2:5] == ["right", "left", "left long"]
        assert page.classes("th")[2:5] == ["right", "left", "left"]
        second = len(page.rows[0])
        assert classes[second + 2 : second + 5] == ["right", "left", "left"]

    def test_it_leads_to_the_pages_of_the_runs_that_have_one(self, write: Write, tmp_path: Path) -> None:
        directory = tmp_path / "sweep"
        names = ["a: b#?%20 & <c> é", "1", "elsewhere/2"]
        paths = [directory / names[0], directory / names[1], tmp_path / names[2]]
        for path in (paths[0], paths[2]):
            path.mkdir(parents=True)
            (path / "report.html").touch()
        page = write([trial(number, run_dir=str(path)) for number, path in enumerate(paths)])
        links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
        assert links[0] == links[1]  # that of the best trial, and that in the table
        assert links[2] == "../elsewhere/2/report.html"
        assert page.of("a") == ["0", "0", "2"]
        for link, path in zip(links[1:], (paths[0], paths[2]), strict=True):
            assert re.fullmatch(r"[\w./%-]+", link, re.ASCII)
            assert (directory / unquote(link)).resolve() == path / "report.html"

    def test_a_long_one_is_folded_but_keeps_the_mismatch(self, write: Write) -> None:
        trials = [trial(number, {"seed": number}) for number in range(300)]
        trials[40] = mismatch(40, overrides=["seed=40"])
        trials += [
            unfinished(number, ledgers.FAILED, overrides=[f"seed={number}"]) for number in range(300, 400)
        ]
        page = write(trials)
        assert "375 more rows, none of which mismatches" in page.of("summary")
        shown, _, folded = page.source.partition("<details>")
        rows = SweepPage(shown[shown.index("<table>") : shown.index("</table>") + 8]).rows[1:]
        assert [row[1] for row in rows if len(row) > 1] == [
            *map(str, range(12)),
            "40",
            *map(str, range(388, 400)),
        ]
        assert [index for index, row in enumerate(rows) if row == ["…"]] == [12, 14]
        assert folded.count("<tr>") == 376


class TestReasons:
    def test_each_is_told_once(self, write: Write) -> None:
        page = write(
            [
                unfinished(0, ledgers.FAILED, "ValueError: 1 < 0 & <b>"),
                trial(1),
                unfinished(2, ledgers.TIMED_OUT, "longer than 3 s"),
                unfinished(3, ledgers.FAILED, "ValueError: 1 < 0 & <b>"),
            ]
        )
        assert page.of("h3") == ["Why trials did not finish"]
        assert page.section("Trials").of("li") == [
            "trials 0, 3 failed: ValueError: 1 < 0 & <b>",
            "trial 2 timed out: longer than 3 s",
        ]

    def test_a_long_one_and_many_are_folded(self, write: Write) -> None:
        long = "x" * 1000
        trials = [unfinished(number, ledgers.FAILED, f"reason {number}") for number in range(25)]
        page = write([*trials, unfinished(25, ledgers.FAILED, long)])
        summaries = page.of("summary")
        assert "6 more" in summaries
        (short,) = [text for text in summaries if "x" in text]
        assert (len(short), short[-2:]) == (sweep_report.MAX_REASON + 1, "x…")
        assert any(text.endswith(long) for text in page.of("details"))
        shown = page.source.partition("6 more")[0]
        assert "reason 19<" in shown
        assert "reason 20<" not in shown

    def test_there_may_be_none(self, write: Write) -> None:
        assert not write([trial(0)]).of("h3")


def steps(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path)]


class TestCharts:
    def test_there_is_a_mark_for_each_trial_with_an_objective(self, write: Write) -> None:
        without = [unfinished(4, ledgers.FAILED), pruned(5, objective=None)]
        page = write([mismatch(0), trial(1), pruned(2), trial(3), *without])
        svg = page.section("loss of each trial")
        titles = [text.partition("\n")[0] for text in svg.of("title")]
        assert titles == [
            "loss by trial, and the best so far",
            "trial 2, pruned",
            "trial 1, done",
            "trial 3, done",
            "trial 0, mismatch",
        ]
        assert svg.classes("g") == [
            "mark color-3",
            "mark color-1",  # These two are of the legend.
            "mark color-3",
            "mark color-1",
            "mark color-1",
            "mark flagged",
        ]
        assert svg.of("li") == ["best so far", "pruned", "finished", "mismatch"]
        assert "trial 1, done\nloss 2\noptimizer.learning_rate=0.1" in svg.of("title")

    def test_no_trial_is_left_out_of_some_hundred(self, write: Write) -> None:
        trials = [trial(number, {"seed": number}, objective=float(number % 7)) for number in range(400)]
        svg = write(trials).section("loss of each trial")
        told = "\n".join(svg.of("title"))
        assert all(f"trial {number}, done" in told for number in range(400))

    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_the_best_so_far_is_of_trials_that_match(self, write: Write, direction: str) -> None:
        sign = 1 if direction == "minimize" else -1
        objectives = [5.0, 7.0, 3.0, 4.0, 1.0]
        trials = [trial(number + 2, objective=sign * value) for number, value in enumerate(objectives)]
        trials = [
            mismatch(0, objective=sign * 2.0),
            pruned(1, objective=sign * 2.5),
            *trials,
            pruned(7, objective=sign * 0.5),
        ]
        page = write(trials, [("loss", direction)]).section("loss of each trial")
        (path,) = [
            path for path in page.paths("curve color-2") if path.startswith("M") and path != "M2,7L20,7"
        ]
        marks = {}
        for match in re.finditer(r'<circle cx="(\d+)" cy="(\d+)" r="3"></circle>', page.source):
            marks[int(match[1])] = int(match[2])
        xs = sorted(marks)[2:]  # The first is the legend's, the second that of the mismatch.
        line = steps(path)
        assert [round(x) for x, _ in line[:1]] == [xs[0]]
        heights = {x: round(line[[round(p[0]) for p in line].index(x)][1]) for x in xs}
        levels = [y for _, y in line]
        assert levels == sorted(levels, reverse=direction == "maximize")
        assert len(set(levels)) == 3
        assert marks[xs[2]] in [round(y) for y in levels]
        assert round(levels[-1]) == marks[xs[4]]
        assert heights[xs[1]] == marks[xs[0]]
        assert line[-1][0] > line[-3][0]

    def test_without_objectives_there_is_none(self, write: Write) -> None:
        page = write([unfinished(0, ledgers.RUNNING)])
        assert "No trial has an objective." in page.of("p")
        assert "svg" not in {tag for tag, _ in page.tags}

    def test_one_trial_is_a_mark(self, write: Write) -> None:
        page = write([trial(0)])
        assert page.classes("g").count("mark color-1") == 2
        assert not [a for _, a in page.tags for value in a.values() if "nan" in str(value)]


class TestTwoObjectives:
    def test_one_is_drawn_by_the_other_with_the_front(self, write: Write) -> None:
        found = [(1.0, 0.1), (2.0, 0.5), (2.0, 0.4), (3.0, 0.5), (4.0, 0.9), (5.0, 0.2)]
        trials = [trial(number, objective=x, further=[y]) for number, (x, y) in enumerate(found)]
        trials += [mismatch(6, objective=0.5, further=[1.0]), pruned(7, objective=0.75), trial(8, further=[])]
        page = write(trials, BOTH).section("loss of each trial")
        assert page.of("strong") == ["loss", "accuracy by loss"]
        figure = page.source.partition("accuracy by loss</strong>")[2].partition("</figure>")[0]
        scatter = SweepPage(f"<figcaption>{figure}")
        assert [text.partition("\n")[0] for text in scatter.of("title")[1:]] == [
            *(f"trial {number}, done" for number in range(6)),
            "trial 6, mismatch",
        ]
        assert "trial 4, done\nloss 5\naccuracy 0.9" not in scatter.of("title")
        (path,) = [path for path in scatter.paths("curve color-2") if path != "M2,7L20,7"]
        places = {}
        for match in re.finditer(
            r"<title>trial (\d).*?</title>\s*<circle cx=\"(\d+)\" cy=\"(\d+)\"", page.source, re.S
        ):
            places[int(match[1])] = (int(match[2]), int(match[3]))
        assert [(round(x), round(y)) for x, y in steps(path)[:-1]] == [places[0], places[1], places[4]]

    def test_the_front_of_either_direction(self) -> None:
        places = [(1.0, 1.0), (2.0, 2.0), (3.0, 0.5), (2.0, 3.0), (1.5, 3.0)]
        assert sweep_report._front(places, 1, 1) == [(1.0, 1.0), (3.0, 0.5)]
        assert sweep_report._front(places, 1, -1) == [(1.0, 1.0), (1.5, 3.0)]
        assert sweep_report._front(places, -1, 1) == [(3.0, 0.5)]
        assert sweep_report._front(places, -1, -1) == [(3.0, 0.5), (2.0, 3.0)]
        assert sweep_report._front([], 1, 1) == []

    def test_a_wide_range_is_logarithmic_both_ways(self, write: Write) -> None:
        trials = [trial(number, objective=10.0**number, further=[10.0**-number]) for number in range(6)]
        page = write(trials, BOTH)
        assert "loss (log scale)" in page.of("text")
        assert page.of("text").count("log scale") == 2 + 3  # two charts; a key and two objectives


class TestCurves:
    def test_there_is_one_for_each_trial_with_an_objective(self, write: Write) -> None:
        trials = [trial(number) for number in range(1, 11)]
        page = write([*trials, pruned(0), mismatch(11), unfinished(12, ledgers.FAILED)])
        section = page.section("Values and objective")
        curves = [class_ for class_ in section.classes("g") if class_.startswith("trial")]
        legend, drawn = curves[:7], curves[7:]
        assert legend == [*(f"trial rank-{rank}" for rank in range(6)), "trial dashed"]
        assert len(drawn) == 12
        assert drawn[-1] == "trial rank-0"
        assert drawn[0] == "trial rank-5"
        assert [drawn.count(f"trial rank-{rank}") for rank in range(6)] == [1, 2, 2, 3, 2, 1]
        assert drawn.count("trial rank-5 dashed") == 1
        labels = [title.partition("\n")[0] for title in section.of("title")[1:]]
        assert labels[-2:] == ["trial 2, done", "trial 1, done"]
        assert section.of("li") == [*charts.RANKS, "pruned"]
        assert "are drawn" not in page.source

    def test_of_many_the_best_are_drawn(self, write: Write) -> None:
        trials = [trial(number, {"seed": number}, objective=float(-number)) for number in range(250)]
        page = write(trials)
        section = page.section("Values and objective")
        assert section.of("p") == ["The best 200 of 250 trials are drawn."]
        assert [title.partition(",")[0] for title in section.of("title")[1:]] == [
            f"trial {number}" for number in range(50, 250)
        ]

    def test_numbers_have_an_axis_of_numbers_and_all_else_one_of_words(self, write: Write) -> None:
        trials = [
            trial(0, {"lr": "1e-4", "units": 16, "drop": "null", "opt": "adam"}),
            trial(1, {"lr": "1e-2", "units": 64, "drop": "0.123456", "opt": "sgd"}),
            trial(2, {"lr": "1", "units": 32, "drop": "inf", "opt": "rmsprop"}),
        ]
        section = write(trials).section("Values and objective")
        texts = section.of("text")
        for label in (
            "lr",
            "units",
            "drop",
            "opt",
            "loss",
            "16",
            "64",
            "adam",
            "rmsprop",
            "null",
            "0.1235",
            "inf",
        ):
            assert label in texts
        assert texts.count("log scale") == 1

    def test_a_sweep_of_nothing_has_none(self, write: Write) -> None:
        page = write([trial(0, {}, overrides=[])])
        assert "Values and objective" not in page.of("h2")
        assert page.rows[1][:3] == ["1", "0", "1"]


def upright(svg: Element) -> list[float]:
    """Return where the axes are."""
    return [
        float(str(path.get("d"))[1:].partition(",")[0])
        for path in svg.iter("path")
        if path.get("class") == "axis"
    ]


class TestParallel:
    def test_curves_cross_each_axis_where_their_values_are(self) -> None:
        rows: list[list[float | str | None]] = [[1.0, "a", 1e-4], [2.0, "b", 1e-2], [3.0, "a", 1.0]]
        curves = [Curve(values=values, label=f"<{values[0]}>", rank=i) for i, values in enumerate(rows)]
        svg = parallel("title", ["x", "some.words", "y"], curves)
        left, right, top, bottom = charts.PARALLEL_EDGES
        width = left + 2 * charts.AXIS_DISTANCE + right
        assert (svg[0].tag, svg[0].text, svg.get("role")) == ("title", "title", "img")
        assert svg.get("viewBox") == f"0 0 {width:g} {bottom + 24:g}"
        assert svg.get("style") == f"--width: {width:g}px"
        x = [left + index * charts.AXIS_DISTANCE for index in range(3)]
        assert upright(svg) == x
        high, low, middle = top, bottom, (top + bottom) / 2
        first, second = top + (bottom - top) / 4, bottom - (bottom - top) / 4
        drawn = [(str(g.get("class")), g.findtext("title"), steps(str(g[1].get("d")))) for g in svg.iter("g")]
        assert drawn == [
            ("trial rank-0", "<1.0>", list(zip(x, (low, first, low), strict=True))),
            ("trial rank-1", "<2.0>", list(zip(x, (middle, second, middle), strict=True))),
            ("trial rank-2", "<3.0>", list(zip(x, (high, first, high), strict=True))),
        ]
        labels = {(text.text, float(str(text.get("y")))) for text in svg.iter("text") if text.get("dy")}
        assert labels == {
            ("1", low),
            ("2", middle),
            ("3", high),
            ("a", first),
            ("b", second),
            ("0.0001", low),
            ("0.01", middle),
            ("1", high),
        }
        names = [(text.text, text.get("class")) for text in svg.iter("text") if text.get("class")]
        assert names == [
            ("x", "name"),
            ("some.", "group"),
            ("words", "name"),
            ("y", "name"),
            ("log scale", "scale"),
        ]

    def test_two_axes_fill_the_width(self) -> None:
        svg = parallel("", ["x", "y"], [Curve(values=[1.0, 2.0])])
        assert svg.get("viewBox") == f"0 0 {charts.WIDTH} 300"
        assert upright(svg)[1] == charts.WIDTH - charts.PARALLEL_EDGES[1]

    def test_a_missing_value_is_a_gap(self) -> None:
        values: list[float | str | None] = [1.0, 2.0, None, 3.0, None, "a", None]
        svg = parallel("", list("abcdefg"), [Curve(values=values)])
        (group,) = svg.iter("g")
        path = str(group[1].get("d"))
        assert [len(steps(part)) for part in path.split("M")[1:]] == [2, 1, 1]
        assert path.count("h0") == 3
        assert len(upright(svg)) == 7

    @pytest.mark.parametrize(
        ("values", "labels"),
        [
            ([16.0, 32.0, 64.0], ["16", "32", "64"]),
            ([16.0, 17.0, 160.0], ["50", "100", "150"]),
            ([float(value) for value in range(9)], ["0", "2", "4", "6", "8"]),
            ([1e-5, 1e-4, 1e-3, 1e-2], ["1e-05", "0.0001", "0.001", "0.01"]),
            ([3e-5, 3.1e-5, 3e-2], ["10⁻⁴", "10⁻³", "10⁻²"]),
            ([0.5], ["0.5"]),
        ],
    )
    def test_few_numbers_are_themselves_labels(self, values: list[float], labels: list[str]) -> None:
        svg = parallel("", ["x", "y"], [Curve(values=[value, None]) for value in values])
        assert [text.text for text in svg.iter("text") if text.get("dy")] == labels

    def test_long_words_and_many_are_cut(self) -> None:
        curves = [Curve(values=[f"/a/long/way/to/file-{index:02}", 1.0]) for index in range(30)]
        svg = parallel("", ["a.very.long.name.of.a.group.of.keys.and_of_a_key_with_a_name", "y"], curves)
        words = [str(text.text) for text in svg.iter("text") if str(text.text).startswith("/")]
        assert len(words) == 10 <= charts.MAX_WORDS
        assert words[:2] == ["/a/lon…le-00", "/a/lon…le-03"]
        names = [str(text.text) for text in svg.iter("text") if text.get("class") in ("group", "name")]
        assert names == ["a.very.lo….of.keys.", "and_of_a_…th_a_name", "y"]

    def test_the_legend_names_what_there_is(self) -> None:
        curves = [Curve(values=[], rank=rank) for rank in (3, 0, 3)]
        assert [item[0].tail for item in parallel_legend(curves, "given up").iter("li")] == [
            "the best",
            "third fifth",
        ]
        curves.append(Curve(values=[], rank=1, dashed=True))
        assert [item[0].tail for item in parallel_legend(curves, "given up").iter("li")][-1] == "given up"


class TestBars:
    def test_a_bar_is_as_long_as_its_share(self) -> None:
        svg = bars("title", {"a <b>": 0.75, "c" * 60: 0.25, "d": 0.0})
        widths = [
            float(str(rect.get("width"))) for rect in svg.iter("rect") if "bar" in str(rect.get("class"))
        ]
        assert widths == [charts.WIDTH * 0.75, charts.WIDTH * 0.25, 0.0]
        texts = [str(text.text) for text in svg.iter("text")]
        assert texts == ["a <b>", "75%", shortened("c" * 60, 42), "25%", "d", "0%"]
        assert [str(title.text) for title in svg.iter("title")][:2] == ["title", "a <b>: 75.0%"]
        assert svg.get("viewBox") == f"0 0 {charts.WIDTH} {3 * charts.BAR_HEIGHT}"


class TestChart:
    def test_labels_of_the_x_axis_have_room(self) -> None:
        points = [Point(x=x * 1e-5, y=0.5) for x in range(1, 8)]
        svg = chart("", [Series(name="", points=points)], x_label="loss")
        at = [float(str(t.get("x"))) for t in svg.iter("text") if t.get("y") == str(charts.HEIGHT - 21)]
        texts = [str(t.text) for t in svg.iter("text") if t.get("y") == str(charts.HEIGHT - 21)]
        assert texts == ["1e-05", "3e-05", "5e-05", "7e-05"]
        assert all(b - a > 5 * charts.DIGIT_WIDTH for a, b in pairwise(at))

    @pytest.mark.parametrize("log_x", [False, True])
    def test_the_x_axis_is_logarithmic_if_it_may(self, log_x: bool) -> None:
        points = [Point(x=10.0**x, y=1.0) for x in range(5)]
        svg = chart("", [Series(name="", points=points, shape="circle")], x_label="x", log_x=log_x)
        at = [int(str(circle.get("cx"))) for circle in svg.iter("circle")]
        gaps = [b - a for a, b in pairwise(at)]
        assert (max(gaps) - min(gaps) <= 1) == log_x
        assert ("x (log scale)" in [t.text for t in svg.iter("text")]) == log_x

    def test_a_series_says_how_many_marks_it_has(self) -> None:
        points = [Point(x=x, y=float(x)) for x in range(200)]
        for max_marks, expected in ((charts.MAX_MARKS, 51), (100, 101), (200, 200)):
            one = Series(name="", points=points, shape="triangle", max_marks=max_marks)
            assert len(list(chart("", [one], x_label="").iter("g"))) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("abcde", "abcde"), ("abcdef", "ab…ef"), ("", ""), ("abcdefgh", "ab…gh")]
)
def test_a_long_text_keeps_its_ends(text: str, expected: str) -> None:
    assert shortened(text, 5) == expected


def completed(count: int, **changes: Any) -> list[Trial]:
    """Return trials whose objective hangs on the learning rate alone."""
    trials = []
    for number in range(count):
        exponent = -5 + 4 * (number * 7 % count) / count
        values = {
            "lr": 10**exponent,
            "momentum": (number * 5 % count) / count,
            "opt": "sgd" if number % 2 else "adam",
        }
        trials.append(trial(number, values, objective=abs(exponent + 2.5), **changes))
    return trials


def importances(page: SweepPage) -> dict[str, float]:
    texts = page.section("Importance of each key").of("text")
    return {name: float(share.rstrip("%")) for name, share in zip(texts[::2], texts[1::2], strict=True)}


class TestImportance:
    def test_the_key_that_matters_is_first(self, write: Write) -> None:
        page = write(completed(30))
        shares = importances(page)
        assert next(iter(shares)) == "lr"
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert sum(shares.values()) == pytest.approx(100, abs=1.5)
        assert shares["lr"] > 60
        (said,) = page.section("Importance of each key").of("p")
        assert "the best 5 of the 30 completed trials, by loss" in said

    def test_direction_counts(self, write: Write) -> None:
        trials = [
            trial(n, {"a": n % 5, "b": n // 5 % 2}, objective=float(n % 5 == 4) + n / 1e3) for n in range(20)
        ]
        low = importances(write(trials))
        high = importances(write(trials, [("loss", "maximize")]))
        assert low != high
        assert next(iter(high)) == "a"

    def test_the_page_is_the_same_each_time(self, write: Write) -> None:
        assert write(completed(12)).source == write(completed(12)).source

    def test_only_completed_trials_that_match_count(self, write: Write) -> None:
        others = [
            mismatch(100, overrides=["lr=10", "momentum=5", "opt=x"], objective=-1.0),
            pruned(101, overrides=["lr=20", "momentum=6", "opt=x"], objective=-2.0),
            unfinished(102, ledgers.FAILED, overrides=["lr=30", "momentum=7", "opt=x"]),
        ]
        alone = importances(write(completed(12)))
        assert importances(write([*completed(12), *others])) == alone

    def test_a_key_that_some_trials_lack(self, write: Write) -> None:
        trials = completed(12)
        trials += [trial(20 + n, {"lr": 1e-3 * (n + 1), "opt": "lion"}, objective=5.0 + n) for n in range(4)]
        assert set(importances(write(trials))) == {"lr", "momentum", "opt"}

    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            ([1e-4, None, 1e-1], "FloatDistribution(high=0.1, log=True, low=0.0001, step=None)"),
            ([1.0, 100.0], "FloatDistribution(high=100.0, log=False, low=1.0, step=None)"),
            ([0.0, 1000.0], "FloatDistribution(high=1000.0, log=False, low=0.0, step=None)"),
            (["b", None, "a", "b"], "CategoricalDistribution(choices=('a', 'b'))"),
        ],
    )
    def test_what_a_key_may_be_is_told_by_its_values(
        self, column: list[float | str | None], expected: str
    ) -> None:
        assert repr(sweep_report._distribution(column)) == expected

    def test_equal_shares_are_not_made_up(self, write: Write) -> None:
        grid = [(a, b) for a in "xy" for b in "zw"]
        found = [0.0, 1.0, 1.0, 0.0]
        trials = [
            trial(n, {"a": a, "b": b}, objective=objective)
            for n, ((a, b), objective) in enumerate(zip(grid, found, strict=True))
        ]
        assert importances(write(trials)) == {"a": 0.0, "b": 0.0}

    def test_optuna_keeps_quiet_and_as_it_was(
        self, write: Write, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        import optuna

        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.DEBUG)
        try:
            write(completed(4))
            assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
        finally:
            optuna.logging.set_verbosity(before)
        assert capfd.readouterr() == ("", "")
        assert not caplog.records

    def test_without_optuna_it_says_what_to_install(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        page = write(completed(12)).section("Importance of each key")
        assert "".join(text for _, text in page.texts).strip() == (
            "Optuna computes it, and is not installed: pip install 'roundtrip[sweep]'."
        )

    @pytest.mark.parametrize(
        ("trials", "sentence"),
        [
            (completed(3), "It takes 4 completed trials that match to tell; there are 3."),
            ([], "It takes 4 completed trials that match to tell; there are 0."),
            (
                [trial(n, objective=0.5) for n in range(4)],
                "There is none: loss is 0.5 in each completed trial.",
            ),
            (
                [*(trial(n, {"a": 1}) for n in range(4)), unfinished(4, ledgers.FAILED, overrides=["a=2"])],
                "There is none: the completed trials have the same values.",
            ),
        ],
    )
    def test_a_sentence_says_why_there_is_none(
        self, write: Write, trials: list[Trial], sentence: str
    ) -> None:
        assert write(trials).section("Importance of each key").of("p") == [sentence]


def test_text_stays_text(write: Write, tmp_path: Path) -> None:
    evil = "<script>alert('&')</script>".replace("/", "|")
    trials = [
        trial(n, {evil: f"{evil}{n}", "a": f"<b>{n}"}, objective=float(n), run_dir=f"{evil} {n}")
        for n in range(5)
    ]
    trials.append(unfinished(5, ledgers.FAILED, evil))
    page = write(trials, [(evil, "minimize"), (evil + "2", "maximize")], tmp_path / evil)
    assert "<script" not in page.source
    assert "<b>" not in page.source
    assert page.of("h1") == [evil]
    assert evil in page.of("th")
    assert f"{evil}0" in page.of("td")
    assert any(f"{evil}={evil}0" in text for text in page.of("title"))
    assert f"trial 5 failed: {evil}" in page.of("li")
    (words,) = [shlex.split(text) for text in page.of("pre")]
    assert words[3].endswith(f'{evil} 0"')


def test_a_number_in_words_is_no_number() -> None:
    found = [sweep_report._finite(text) for text in ("1e-3", "-2", "nan", "inf", "true", "[1,2]", "")]
    assert found == [1e-3, -2.0, None, None, None, None, None]
    assert math.isfinite(found[0] or math.nan)


def test_a_damaged_ledger_is_told(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="ledger.jsonl must be a ledger"):
        sweep_report.write(Ledger(tmp_path), LOSS)
    assert not (tmp_path / "sweep.html").exists()


def test_the_page_is_replaced_in_one_step(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write([trial(0)]).source
    monkeypatch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write([trial(0), trial(1)])
    assert (tmp_path / "sweep" / "sweep.html").read_text() == before
    assert not list((tmp_path / "sweep").glob(".*.staging"))
