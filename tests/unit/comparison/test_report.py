"""The page of a comparison holds the numbers of `results.parquet`, and opens in a browser."""

import math
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlrec.comparison import markdown
from mtlrec.comparison.candidates import candidates
from mtlrec.comparison.comparison import Comparison
from mtlrec.comparison.markdown import write_markdown
from mtlrec.comparison.report import answer, write_report
from mtlrec.comparison.results import read_results, write_results
from mtlrec.comparison.trials import Result
from mtlrec.config.file import load_config
from mtlrec.diagnosis.diagnosis import Curve, Diagnosis
from mtlrec.diagnosis.level_sums import Level
from mtlrec.diagnosis.table_use import TableUse
from mtlrec.errors import DataError
from mtlrec.evaluation.slices import Slices
from tests.support.browser import contrast, needs_browser, opened

KINDS = ["single_task", "shared_bottom", "mmoe", "ple"]
GAINS = {"single_task": 0.0, "shared_bottom": -0.01, "mmoe": 0.004, "ple": 0.012}
SEEDS, TUNING_SEEDS = 6, 2
LATENCY_MS = dict.fromkeys(KINDS, 1.5)
AUC_TASKS = ["click", "long_view", "follow", "like"]


def result(kind: str, factor: float, seed: int) -> Result:
    """ple is best everywhere, shared_bottom better on like and worse elsewhere; follow has few positives."""
    rng = np.random.default_rng([KINDS.index(kind), seed, int(10 * factor)])
    metrics: dict[str, dict[str, float]] = {}
    for index, task in enumerate(AUC_TASKS):
        gain = -GAINS[kind] if (kind, task) == ("shared_bottom", "like") else GAINS[kind]
        auc = 0.6 + 0.05 * index + gain + 0.0005 * rng.normal() - (0.05 if factor != 1 else 0)
        metrics[task] = {"auc": auc, "ne": 1.5 - auc, "rows": 5000.0, "positives": 50.0 if task == "follow" else 900.0}
    metrics["watch_ratio"] = {"mse": 1.0 - GAINS[kind] + 0.0005 * rng.normal(), "rows": 2000.0}
    return Result({"valid": metrics, "test": metrics}, samples_per_s=1000.0 + seed)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    found = candidates(load_config("kuairand", []), KINDS, match=None)
    factors = {"single_task": 1.0, "shared_bottom": 1.0, "mmoe": 1.0, "ple": 1.0}
    diverged = Result({}, 0.0, diverged="step 3: the loss of click is not finite")
    tuning = {
        kind: {factor: [result(kind, factor, seed) for seed in range(TUNING_SEEDS)] for factor in (1.0, 3.0)}
        for kind in KINDS
    }
    tuning["ple"][3.0][1] = diverged
    results = {kind: [result(kind, 1.0, seed) for seed in range(SEEDS)] for kind in KINDS}
    return Comparison(found, list(range(SEEDS)), factors, tuning, results)


def diagnosis(kind: str) -> Diagnosis:
    """Of one level, with a dead expert."""
    level = Level(
        name="level 1",
        gates=["click", "like"],
        experts=["expert 1", "expert 2"],
        gate=[[0.999, 0.001]] * 2,
        deviation=[[0.1, 0.1]] * 2,
        weight=[[1.999, 0.001]] * 2 if kind == "ple" else [[0.999, 0.001]] * 2,
        entropy=[0.1, 0.1],
        peaked=[0.2, 0.2],
        norm=[1.0, 2.0],
        zeros=[0.5, 0.5],
    )
    table = TableUse(
        "user", 200_000, 5_000, 3_000, 0.95, drawn_norm=0.2, hot_norm=0.8, seen_norm=0.5, other_norm=math.nan
    )
    curves = {"click": Curve([0.1, 0.4], [0.2, 0.6], [75.0, 75.0], 60), "like": Curve([0.1], [0.0], [150.0], 0)}
    auc = [[0.61, 0.72], [math.nan, 0.65]]
    slices = Slices("hour", ["0", "1"], [60, 90], ["click", "like"], auc, [[12, 20], [0, 9]])
    return Diagnosis(150, [level], ["click", "like"], [1.0, 2.0], [[1.0, -0.5], [-0.5, 1.0]], [table], curves, slices)


@pytest.fixture(scope="module")
def folder(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_results(comparison, LATENCY_MS, folder / "results.parquet", "feed <1>")
    diagnoses = {kind: diagnosis(kind) for kind in ("mmoe", "ple")}
    write_report(comparison, LATENCY_MS, folder / "report.html", "feed <1>", diagnoses)
    write_markdown(comparison, folder / "report.md", "feed")
    return folder


class Page(HTMLParser):
    """The ranking's figures, where links lead, the page's words, and how many pictures it has."""

    def __init__(self) -> None:
        super().__init__()
        self.candidate, self.means, self.links = "", dict[str, list[float]](), list[str]()
        self.words, self.pictures, self._in_script = "", 0, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._in_script = tag in ("script", "style")
        self.pictures += "plotly-graph-div" in (given.get("class") or "")
        self.links += [value for key, value in attrs if key in ("src", "href") and value]
        if given.get("data-candidate"):
            self.candidate = given["data-candidate"] or ""
            self.means[self.candidate] = []
        if given.get("data-mean"):
            self.means[self.candidate].append(float(given["data-mean"] or ""))

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        self.words += "" if self._in_script else data


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    page = Page()
    page.feed((folder / "report.html").read_text())
    return page


def test_the_page_can_be_written_again_from_the_table(comparison: Comparison, folder: Path, tmp_path: Path) -> None:
    write_report(comparison, LATENCY_MS, tmp_path / "first.html", "feed <1>")
    stored = read_results(folder / "results.parquet")
    write_report(stored.comparison, stored.latency_ms, tmp_path / "again.html", stored.title)
    first, again = ((tmp_path / name).read_text() for name in ("first.html", "again.html"))
    ids = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
    assert ids.sub("", again) == ids.sub("", first)


def test_a_table_of_something_else_is_no_comparison(tmp_path: Path) -> None:
    pq.write_table(pa.table({"candidate": ["ple"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="not the results of a comparison"):
        read_results(tmp_path / "other.parquet")


def test_its_means_are_those_of_the_table(page: Page, folder: Path) -> None:
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert list(page.means) == ["ple", "mmoe", "single_task", "shared_bottom"]
    for candidate, means in page.means.items():
        expected = []
        for task in [*AUC_TASKS, "watch_ratio"]:
            metric = "mse" if task == "watch_ratio" else "auc"
            chosen = {"candidate": candidate, "task": task, "metric": metric, "split": "test", "chosen": True}
            values = [row["value"] for row in rows if chosen.items() <= row.items()]
            assert len(values) == SEEDS
            expected.append(statistics.mean(values))
        assert means == pytest.approx(expected, abs=1e-12)


def test_its_first_words_are_the_answer(page: Page, comparison: Comparison) -> None:
    lines = answer(comparison)
    assert lines == [
        "ple has the best mean rank, 1.0 of 4 over 4 tasks.",
        "Worse somewhere, better nowhere: mmoe (click, long_view, like, watch_ratio), single_task (click, long_view, "
        "like, watch_ratio), shared_bottom (click, long_view, like, watch_ratio).",
    ]
    assert page.words.index(lines[0]) < page.words.index("mean rank", page.words.index(lines[0]) + len(lines[0]))
    assert "feed <1>" in page.words, "names are text, not markup"
    assert "Not judged, for too few positives in the test split: follow." in " ".join(page.words.split())
    assert "seesaw: single_task is better on click, long_view and watch_ratio, shared_bottom on like" in page.words
    assert page.words.count("diverged") == len(comparison.tasks)
    edge = "beyond which better ones may lie: single_task, shared_bottom, mmoe, ple; give --learning-rates"
    assert edge in page.words, "of two that were tried each is at an edge"
    middle = replace(comparison, tuning={kind: {factor: [] for factor in (0.3, 1.0, 3.0)} for kind in KINDS})
    assert middle.at_the_edge == []
    assert replace(middle, tuning={kind: {1.0: []} for kind in KINDS}).at_the_edge == [], "nothing was chosen"


def clicks(auc: float) -> Result:
    return Result({"test": {"click": {"auc": auc}}, "valid": {}}, 1.0)


def _cell(comparison: Comparison) -> str:
    return markdown._cell(comparison, "single_task", "click")


def test_its_text_has_the_same_figures(folder: Path, page: Page, comparison: Comparison) -> None:
    text = (folder / "report.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    ranking = {row[1]: row[2:] for row in rows if len(row) == 2 + len(comparison.tasks)}
    for name, means in page.means.items():
        assert [float(cell.split()[0]) for cell in ranking[name]] == pytest.approx(means, abs=5e-5)
    deviation = statistics.stdev(comparison.values("ple", "click"))
    assert "0.6500 ± 0.0707" in _cell(replace(comparison, results={"single_task": [clicks(0.6), clicks(0.7)]}))
    gain = comparison.gain("ple", "click")
    assert f" ± {deviation:.4f} ({gain.mean:+.4f} ± {gain.half_width:.4f}*)" in ranking["ple"][0]
    assert "(" not in ranking["single_task"][0]
    for line in [*answer(comparison), *(f"- {verdict.text}" for verdict in comparison.verdicts())]:
        assert line in text.splitlines()
    assert "Not judged, for too few positives in the test split: follow." in text


def test_it_needs_no_network_and_has_every_picture(page: Page) -> None:
    assert page.links == []
    assert page.pictures == 1 + 4 + 2 * 4
    assert page.words.count("dead experts, given under 1% by every gate, at the price of a live one: expert 2;") == 2
    assert page.words.count("table user: 95% of the lookups go to 1%") == 2
    assert page.words.count("AUC within values of hour") == 2
    assert page.words.count("click and like pull the embeddings apart") == 2


def test_a_comparison_in_which_no_task_can_be_judged_says_so(comparison: Comparison, tmp_path: Path) -> None:
    few = {
        kind: [
            Result({"test": {"click": {"auc": 0.5, "positives": 3.0}}, "valid": {"click": {"auc": 0.5}}}, 1.0)
            for _ in results
        ]
        for kind, results in comparison.results.items()
    }
    none = Comparison(
        comparison.candidates, comparison.seeds, comparison.factors, {k: {1.0: v[:1]} for k, v in few.items()}, few
    )
    assert none.verdicts() == []
    write_report(none, LATENCY_MS, tmp_path / "report.html", "few")
    write_markdown(none, tmp_path / "report.md", "few")
    assert "Nothing is judged" in (tmp_path / "report.md").read_text()
    assert "Nothing is judged" in (tmp_path / "report.html").read_text()


def test_a_task_of_one_class_is_shown_and_not_judged(comparison: Comparison, tmp_path: Path) -> None:
    like = {"auc": float("nan"), "rows": 900.0, "positives": 900.0}
    without = {
        kind: [Result({split: of | {"like": like} for split, of in one.metrics.items()}, 1.0) for one in results]
        for kind, results in comparison.results.items()
    }
    tuning = {kind: {1.0: results[:1]} for kind, results in without.items()}
    found = Comparison(comparison.candidates, comparison.seeds, comparison.factors, tuning, without)
    assert found.judged == ["click", "long_view", "watch_ratio"]
    assert found.not_judged[1] == "Not judged, for rows of one label alone in the test split: like."
    assert found.ranking()[0] == ("ple", 1.0)
    write_results(found, LATENCY_MS, tmp_path / "results.parquet", "one class")
    write_report(found, LATENCY_MS, tmp_path / "report.html", "one class")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(folder: Path, tmp_path: Path, scheme: str) -> None:
    seen = opened(folder / "report.html", tmp_path, scheme)
    assert seen.console == []
    assert seen.plots == seen.drawn == 1 + 4 + 2 * 4
    assert seen.overflow == []
    assert (sum(seen.page) > 3 * 128) == (scheme == "light")
    assert min(contrast(color, seen.page) for color in (seen.text, *seen.labels)) > 4.5
    gains, gates, cosines = 3 * 5, 2 * 2 + 2 * (2 * 2), 2 * (2 * 2)  # ple's gates with the residual too
    slices = 2 * 3  # a slice of one label has no figure
    assert seen.dom.count('class="heatmap-label"') == gains + gates + cosines + slices
    assert seen.dom.count('class="point"') >= 4 * 3 + 2 * 2  # nor has a share of zero a place on a logarithmic axis
