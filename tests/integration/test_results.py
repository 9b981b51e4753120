"""The published comparisons: their pages open in a browser, and say what their tables hold."""

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtlrec.comparison.markdown import write_markdown
from mtlrec.comparison.results import read_results
from tests.support.browser import contrast, needs_browser, opened

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FUSIONS = {
    "single_task",
    "shared_bottom",
    "asymmetric",
    "cross_stitch",
    "customized",
    "mmoe",
    "ple",
    "adatt_sp",
    "adatt",
}


@pytest.fixture(scope="module", params=["census", "kuairand"])
def dataset(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def built(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, as the command of docs/results/README.md writes it."""
    page = tmp_path_factory.mktemp(dataset) / "report.html"
    subprocess.run([sys.executable, RESULTS / "build.py", dataset, "--output", page], check=True)
    return page


def test_the_pages_means_are_those_of_the_table(dataset: str, built: Path) -> None:
    page = built.read_text()
    columns = pq.read_table(RESULTS / dataset / "results.parquet").to_pydict()
    names, tasks, metrics, splits, seeds, values, chosen = (
        np.array(columns[key]) for key in ("candidate", "task", "metric", "split", "seed", "value", "chosen")
    )
    judged = chosen & (splits == "test")
    assert set(names) == FUSIONS
    heading = page[page.index('<table id="ranking">') : page.index("</thead>", page.index('<table id="ranking">'))]
    shown = re.findall(r"<th[^>]*>(\w+)<br>(\w+)</th>", heading)
    assert {task for task, _ in shown} == set(tasks)
    rows = re.findall(r'<tr data-candidate="(\w+)">(.*?)</tr>', page, re.DOTALL)
    assert {name for name, _ in rows} == FUSIONS
    for name, cells in rows:
        means = [float(mean) for mean in re.findall(r'data-mean="([^"]+)"', cells)]
        for (task, metric), mean in zip(shown, means, strict=True):
            mine = judged & (names == name) & (tasks == task) & (metrics == metric)
            assert len(set(seeds[mine])) == mine.sum() >= 10
            assert mean == pytest.approx(values[mine].mean(), abs=1e-12)
            assert f">{values[mine].mean():.4f}<" in cells


def test_the_text_is_that_of_the_table(dataset: str, tmp_path: Path) -> None:
    comparison, _, title = read_results(RESULTS / dataset / "results.parquet")
    write_markdown(comparison, tmp_path / "report.md", title)
    assert (tmp_path / "report.md").read_text() == (RESULTS / dataset / "report.md").read_text()


def test_every_architecture_has_the_same_size(dataset: str) -> None:
    columns = pq.read_table(RESULTS / dataset / "results.parquet", columns=["candidate", "parameters"]).to_pydict()
    sizes = dict(zip(columns["candidate"], columns["parameters"], strict=True))
    assert max(sizes.values()) < 1.1 * min(sizes.values()), "within a twentieth of one size"


DARK = pytest.mark.nightly(reason="twenty seconds in a browser; test_report.py opens a dark page in every run")


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=DARK)])
def test_a_browser_shows_it_at_1280_pixels(built: Path, scheme: str, tmp_path: Path) -> None:
    seen = opened(built, tmp_path, scheme)
    assert seen.console == []
    assert seen.plots == seen.drawn == built.read_text().count("plotly-graph-div") >= 1 + 1
    assert seen.overflow == []
    assert (sum(seen.page) > 3 * 128) == (scheme == "light")
    assert min(contrast(color, seen.page) for color in (seen.text, *seen.labels)) > 4.5
    words = unescape(
        re.sub(r"<[^>]+>", "", built.read_text()[built.read_text().index('<div class="answer">') :][:2000])
    )
    assert "has the best mean rank" in words
    assert seen.ranking_bottom < 900, "the answer and the ranking are the first screen"
