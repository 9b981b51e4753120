"""A comparison as a page of text, for a pull request or a repository: what the report's first screen says."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from mtlrec.comparison.comparison import Comparison
from mtlrec.comparison.differences import seeds_in_words
from mtlrec.comparison.report import answer, edge
from mtlrec.io import write_text


def write_markdown(comparison: Comparison, path: Path, title: str) -> None:
    """`path` has its name only when it is whole."""
    write_text(path, "\n".join(_lines(comparison, title)) + "\n")


def _lines(comparison: Comparison, title: str) -> Iterator[str]:
    yield f"# {title}: {len(comparison.candidates)} architectures, {seeds_in_words(len(comparison.seeds))} each\n"
    yield from answer(comparison)
    yield ""
    yield from _ranking(comparison)
    yield (
        "\nMean and standard deviation over the seeds on the test split; in brackets the gain over "
        f"{comparison.baseline}, better above 0, with its 95 % interval, paired by seed."
    )
    yield f"A star: shown to differ from {comparison.baseline}, all tasks of a pair together at 5 %."
    yield from comparison.not_judged
    yield "\n| | parameters | MFLOP a row | samples/s | learning rates |\n|---|---|---|---|---|"
    for name, _ in comparison.ranking():
        (candidate,) = (one for one in comparison.candidates if one.name == name)
        rate = statistics.mean(result.samples_per_s for result in comparison.results[name])
        size = f"{candidate.capacity.parameters:,} | {candidate.capacity.flops / 1e6:.3f}"
        yield f"| {name} | {size} | {rate:,.0f} | x{comparison.factors[name]:g} |"
    yield f"\n{edge(comparison)}"
    if verdicts := comparison.verdicts():
        yield "\n## Pair by pair\n"
        yield from (f"- {verdict.text}" for verdict in verdicts)


def _ranking(comparison: Comparison) -> Iterator[str]:
    columns = ["mean rank", "", *(f"{task}, {metric}" for task, metric in comparison.tasks.items())]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for name, rank in comparison.ranking():
        cells = [_cell(comparison, name, task) for task in comparison.tasks]
        yield f"| {' | '.join([f'{rank:.1f}' if comparison.judged else '', name, *cells])} |"


def _cell(comparison: Comparison, name: str, task: str) -> str:
    values = comparison.values(name, task)
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    mean = f"{statistics.mean(values):.4f}{deviation}"
    if name == comparison.baseline:
        return mean
    found = comparison.gain(name, task)
    return f"{mean} ({found.mean:+.4f} ± {found.half_width:.4f}{'*' if comparison.shown(name, task) else ''})"
