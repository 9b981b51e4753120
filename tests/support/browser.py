"""A page as a browser shows it: headless Chromium (Debian's package), where there is one."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no chromium (Debian's package) on this machine"
)
LOOK = """
<script>
addEventListener("load", () => setTimeout(() => {
  const style = (element) => getComputedStyle(element);
  const wide = [document.documentElement, ...document.querySelectorAll(".wide")];
  const labels = [...document.querySelectorAll(".js-plotly-plot text")];
  const seen = {
    overflow: wide.filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.className || one.tagName),
    text: style(document.body).color, page: style(document.body).backgroundColor,
    labels: [...new Set(labels.map((label) => style(label).fill))],
    plots: document.querySelectorAll(".js-plotly-plot").length,
    drawn: [...document.querySelectorAll(".js-plotly-plot")].filter((one) => one.querySelector("svg.main-svg")).length,
    answerBottom: document.querySelector(".answer").getBoundingClientRect().bottom,
    rankingBottom: document.querySelector("#ranking").getBoundingClientRect().bottom,
  };
  const found = document.createElement("pre");
  found.id = "seen"; found.textContent = JSON.stringify(seen);
  document.body.append(found);
}, 1500));
</script>
"""


@dataclass(frozen=True)
class Seen:
    """A page after its scripts have run.

    Attributes:
        dom: its HTML
        console: the lines that it wrote to the console
        overflow: what is wider than its place
        text, page, labels: colors, red, green and blue of 0 to 255; labels are those of the figures
        plots, drawn: figures, and those of them that are there
        answer_bottom, ranking_bottom: where the first words and the first table end, in pixels from the top
    """

    dom: str
    console: list[str]
    overflow: list[str]
    text: tuple[float, ...]
    page: tuple[float, ...]
    labels: list[tuple[float, ...]]
    plots: int
    drawn: int
    answer_bottom: float
    ranking_bottom: float


def opened(page: Path, scratch: Path, scheme: str = "light", width: int = 1280) -> Seen:
    """Opens a copy below `scratch`, with all that folds unfolded."""
    copy = scratch / "page.html"
    text = page.read_text(encoding="utf-8").replace("<details>", "<details open>")
    copy.write_text(text.replace("</body>", LOOK + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={scratch / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr"]
    options += ["--blink-settings=preferredColorScheme=" + {"dark": "0", "light": "1"}[scheme]]
    done = subprocess.run(
        ["chromium", *options, "--virtual-time-budget=20000", "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)
    assert found is not None, done.stderr[-2000:]
    seen = json.loads(unescape(found[1]))
    return Seen(
        dom=done.stdout,
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
        overflow=seen["overflow"],
        text=_color(seen["text"]),
        page=_color(seen["page"]),
        labels=[_color(label) for label in seen["labels"]],
        plots=seen["plots"],
        drawn=seen["drawn"],
        answer_bottom=seen["answerBottom"],
        ranking_bottom=seen["rankingBottom"],
    )


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Of WCAG 2: 1 to 21; 4.5 is what text wants."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: tuple[float, ...]) -> float:
    linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _color(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in re.findall(r"[\d.]+", text)[:3])
