"""What a diagnosis may mean, and which option of the job addresses it: a line each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from mtlrec.analysis.diagnostics import Diagnosis, Level

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


def warnings_of(found: Diagnosis) -> list[str]:
    return [line for level in found.levels for line in _of_level(level)] + list(_of_gradients(found))


def _of_level(level: Level) -> Iterator[str]:
    for index, expert in enumerate(level.experts):
        largest = max(row[index] for row in level.gate)
        if largest < DEAD:
            yield (
                f"{level.name}: expert {expert} is dead, no gate gives it {DEAD:.0%}: it costs time and does nothing; "
                "gate_dropout makes gates try it, or take fewer experts"
            )
        elif largest < FAINT / len(level.experts):
            yield f"{level.name}: expert {expert} is nearly dead, {largest:.1%} at most; gate_dropout, or fewer experts"
        if level.zeros[index] > SILENT:
            yield (
                f"{level.name}: {level.zeros[index]:.0%} of the outputs of expert {expert} are zero: its ReLUs may "
                "have died; activation: silu, norm: layer, or a lower optim.dense.lr"
            )
    for gate, peaked, entropy, row in zip(level.gates, level.peaked, level.entropy, level.gate, strict=True):
        if len(level.experts) > 1 and peaked > COLLAPSED:
            expert = level.experts[row.index(max(row))]
            yield (
                f"{level.name}: in {peaked:.0%} of rows the gate of {gate} gives one expert (mostly {expert}) more "
                "than 0.9: nothing is mixed there; gate_dropout, or a simpler layer does as well"
            )
        elif len(level.experts) > 1 and entropy > ALIKE:
            yield (
                f"{level.name}: the gate of {gate} weighs all experts alike: the experts may have learned the same; "
                "train longer, or give tasks experts of their own (ple, adatt)"
            )
    if min(level.norm) > 0 and max(level.norm) > APART * min(level.norm):
        large, small = (level.experts[level.norm.index(pick(level.norm))] for pick in (max, min))
        yield (
            f"{level.name}: the outputs of expert {large} are {max(level.norm) / min(level.norm):.0f} times as long as "
            f"those of {small}, so that the gates' weights mislead; norm: layer"
        )
    yield from _of_sharing(level)


def _of_sharing(level: Level) -> Iterator[str]:
    """Where there is a shared module."""
    shared = [index for index, expert in enumerate(level.experts) if expert.split()[0] == "shared"]
    if not shared:
        return
    for gate, row in zip(level.gates, level.gate, strict=True):
        share = sum(row[index] for index in shared)
        if gate != "shared" and share < DEAD:
            yield (
                f"{level.name}: {gate} takes {share:.1%} from the shared experts: it learns alone; fewer shared "
                "experts, or gate_dropout"
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
