"""What a diagnosis may mean, and which option of the job addresses it: a line each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from mtlrec.config.tasks import MIN_TEST_POSITIVES
from mtlrec.diagnosis.diagnosis import Diagnosis
from mtlrec.diagnosis.level_sums import PEAK, Level

DEAD, FAINT = 0.01, 0.1
"""An expert's largest weight at any gate: in all, and as a share of what it had if all were alike."""
COLLAPSED = 0.5
"""The share of rows in which a gate gives nearly everything to one expert."""
ALIKE = 0.995
"""The entropy from which a gate no longer tells experts apart."""
SILENT = 0.9
"""The share of zeros among an expert's outputs."""
APART = 10.0
"""The largest over the smallest: norms of experts, norms of tasks' gradients."""
CONFLICT = -0.1
"""The cosine of two tasks' gradients."""
CROWDED, LARGE_TABLE = 0.9, 100_000
"""The share of lookups that go to the hot rows of a table of so many."""
DRIFTED = 10.0
"""How many times as long as drawn a table's rows may be."""
MISCALIBRATED = 1.2
"""Predicted over observed positives, or the other way round."""


def warnings_of(found: Diagnosis) -> list[str]:
    levels = [line for level in found.levels for line in _of_level(level, found.tasks)]
    return [*levels, *_of_gradients(found), *_of_tables(found), *_of_curves(found)]


def _of_level(level: Level, tasks: list[str]) -> Iterator[str]:
    largest = [max(row[index] for row in level.gate) for index in range(len(level.experts))]
    dead = [expert for expert, most in zip(level.experts, largest, strict=True) if most < DEAD]
    faint = [
        f"{expert} ({most:.1%} at most)"
        for expert, most in zip(level.experts, largest, strict=True)
        if DEAD <= most < FAINT / len(level.experts)
    ]
    if dead:
        yield (
            f"{level.name}: dead experts, given under {DEAD:.0%} by every gate, at the price of a live one: "
            f"{', '.join(dead)}; gate_dropout makes gates try them, or take fewer experts"
        )
    if faint:
        yield f"{level.name}: nearly dead experts: {', '.join(faint)}; gate_dropout, or fewer experts"
    silent = [f"{name} ({share:.0%})" for name, share in zip(level.experts, level.zeros, strict=True) if share > SILENT]
    if silent:
        yield (
            f"{level.name}: experts whose outputs are nearly all zero, with ReLUs that may have died: "
            f"{', '.join(silent)}; activation: silu, norm: layer, or a lower optim.dense.lr"
        )
    if len(level.experts) > 1:
        yield from _of_gates(level, tasks)
    if min(level.norm) > 0 and max(level.norm) > APART * min(level.norm):
        large, small = (level.experts[level.norm.index(pick(level.norm))] for pick in (max, min))
        yield (
            f"{level.name}: the outputs of expert {large} are {max(level.norm) / min(level.norm):.0f} times as long as "
            f"those of {small}, so that the gates' weights mislead; norm: layer"
        )


def _of_gates(level: Level, tasks: list[str]) -> Iterator[str]:
    collapsed, alike, alone = [], [], []
    for gate, peaked, entropy, row in zip(level.gates, level.peaked, level.entropy, level.gate, strict=True):
        if peaked > COLLAPSED:
            collapsed.append(f"{gate} (mostly {level.experts[row.index(max(row))]}, {peaked:.0%})")
        elif entropy > ALIKE:
            alike.append(gate)
        share = sum(row[-level.shared :]) if level.shared else 1.0
        if gate in tasks and share < DEAD:
            alone.append(f"{gate} ({share:.1%})")
    if collapsed:
        yield (
            f"{level.name}: gates that give one expert more than {PEAK:g} in most rows, so that nothing is mixed: "
            f"{', '.join(collapsed)}; gate_dropout, shorter inputs (see the tables' norms), or a simpler layer does as "
            "well"
        )
    if alike:
        yield (
            f"{level.name}: gates that weigh all experts alike: {', '.join(alike)}: the experts may have learned the "
            "same; train longer, or give tasks experts of their own (ple, adatt)"
        )
    if alone:
        yield (
            f"{level.name}: tasks that take next to nothing from the shared experts, and learn alone: "
            f"{', '.join(alone)}; fewer shared experts, or gate_dropout"
        )


def _of_gradients(found: Diagnosis) -> Iterator[str]:
    norms = {task: norm for task, norm in zip(found.tasks, found.gradient_norm, strict=True) if norm > 0}
    if norms and max(norms.values()) > APART * min(norms.values()):
        loud, quiet = max(norms, key=lambda t: norms[t]), min(norms, key=lambda t: norms[t])
        yield (
            f"the gradients of {loud} on the embeddings are {norms[loud] / norms[quiet]:.0f} times those of {quiet}, "
            f"which hardly shapes them; a larger weight for {quiet}, or loss.weighting: uncertainty or a method on "
            "gradients"
        )
    for (i, one), (j, other) in combinations(enumerate(found.tasks), 2):
        cosine = found.gradient_cosine[i][j]
        if cosine < CONFLICT:
            yield (
                f"{one} and {other} pull the embeddings apart (cosine {cosine:.2f}); loss.weighting: pcgrad, cagrad or "
                "upgrad, or embeddings of their own"
            )


def _of_tables(found: Diagnosis) -> Iterator[str]:
    grown = []
    for table in found.tables:
        if table.rows >= LARGE_TABLE and table.hot_share > CROWDED:
            yield (
                f"table {table.name}: {table.hot_share:.0%} of the lookups go to 1% of its {table.rows:,} rows; where "
                "it is too large for a GPU, sharding.constraints with the kernel fused_uvm_caching keeps these there"
            )
        growth = max((times for times in (table.growth("hot"), table.growth("seen")) if times == times), default=0.0)
        if growth > DRIFTED:
            grown.append(f"{table.name} ({growth:.0f} times)")
    if grown:
        yield (
            f"tables whose rows are many times as long as they were drawn: {', '.join(grown)}: they may remember "
            "single rows of the training data, and gates saturate on long inputs; a lower optim.sparse.lr, "
            "decay: cosine, or fewer epochs"
        )


def _of_curves(found: Diagnosis) -> Iterator[str]:
    for task, curve in found.curves.items():
        if len(curve.rows) == 1:
            yield (
                f"{task}: gives every row the same probability and has learned nothing of them: the ReLUs of its tower "
                "have died, or nothing reaches it; a lower optim.dense.lr, more warmup_steps, another train.seed"
            )
            continue
        predicted, observed = (
            sum(share * rows for share, rows in zip(of, curve.rows, strict=True))
            for of in (curve.predicted, curve.observed)
        )
        if (
            curve.positives >= MIN_TEST_POSITIVES
            and not observed / MISCALIBRATED < predicted < MISCALIBRATED * observed
        ):
            yield (
                f"{task}: {predicted / observed:.2f} positives are predicted for each that there is; where the "
                "probabilities matter themselves, mtlrec evaluate --calibrate isotonic"
            )
