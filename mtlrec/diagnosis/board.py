"""A diagnosis in TensorBoard: every figure over the steps, gates and cosines as pictures too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from mtlrec.diagnosis.diagnosis import Diagnosis
from mtlrec.diagnosis.heatmap import heatmap
from mtlrec.diagnosis.level_sums import Level
from mtlrec.training.telemetry import Telemetry


def write_diagnosis(telemetry: Telemetry, step: int, found: Diagnosis) -> None:
    """For the first rank."""
    telemetry.scalars(step, {key.replace(" ", "_"): value for key, value in scalars_of(found)})
    for level in found.levels:
        picture = heatmap(level.gate, level.gates, level.experts, f"{level.name}: gates' weights, step {step:,}", 1.0)
        telemetry.image(step, f"gates/{level.name.replace(' ', '_')}", picture)
    title = f"cosines of the tasks' gradients, step {step:,}"
    telemetry.image(step, "gradients/cosines", heatmap(found.gradient_cosine, found.tasks, found.tasks, title, 1.0))


def scalars_of(found: Diagnosis) -> Iterator[tuple[str, float]]:
    """Names as TensorBoard groups them, by what stands before the first slash."""
    for level in found.levels:
        yield from _of_level(level)
    for task, norm in zip(found.tasks, found.gradient_norm, strict=True):
        yield f"gradient_norm/{task}", norm
    for (i, one), (j, other) in combinations(enumerate(found.tasks), 2):
        yield f"gradient_cosine/{one}/{other}", found.gradient_cosine[i][j]
    for table in found.tables:
        yield f"table_growth/{table.name}/hot", table.growth("hot")
        yield f"table_growth/{table.name}/seen", table.growth("seen")
        yield f"table_growth/{table.name}/other", table.growth("other")


def _of_level(level: Level) -> Iterator[tuple[str, float]]:
    for index, gate in enumerate(level.gates):
        yield f"gate_entropy/{level.name}/{gate}", level.entropy[index]
        yield f"gate_over_0.9/{level.name}/{gate}", level.peaked[index]
        for expert, weight in zip(level.experts, level.gate[index], strict=True):
            yield f"gate/{level.name}/{gate}/{expert}", weight
    for expert, norm, zeros in zip(level.experts, level.norm, level.zeros, strict=True):
        yield f"expert_norm/{level.name}/{expert}", norm
        yield f"expert_zeros/{level.name}/{expert}", zeros
