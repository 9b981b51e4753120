"""Write the page of a published comparison again, from its results.parquet.

    python docs/results/build.py census
    python docs/results/build.py kuairand --output /tmp/kuairand.html --picture docs/results/kuairand/report.png

`--picture` also takes a picture of the first screen, with Chromium. Figures of the models' insides (gates, gradients,
tables) are made from checkpoints, which are not published: `mtlrec compare` adds them to the page that it writes.
"""

import argparse
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from mtlrec.comparison.report import write_report
from mtlrec.comparison.results import read_results

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(path.parent.name for path in HERE.glob("*/results.parquet")))
    parser.add_argument("--output", type=Path, help="default: report.html beside results.parquet")
    parser.add_argument("--picture", type=Path, help="a PNG of the first screen")
    options = parser.parse_args()
    folder = HERE / options.dataset
    page = options.output or folder / "report.html"
    comparison, latency_ms, title = read_results(folder / "results.parquet")
    write_report(comparison, latency_ms, page, title)
    print(page)
    if options.picture:
        take_picture(page, options.picture)


def take_picture(page: Path, picture: Path) -> None:
    with TemporaryDirectory() as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", "--window-size=1280,900", "--virtual-time-budget=5000"]
        command += [f"--screenshot={picture.absolute()}", page.absolute().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=180)


if __name__ == "__main__":
    main()
