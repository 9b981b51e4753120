"""What a trained model's gates and experts do on real rows, and how its tasks' gradients agree.

Shapes: B batch, T tasks, G gates, E experts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedTensor

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.config.model import AdaTTFusion, AdaTTSpFusion, PLEFusion
from mtlrec.data.loader import Loader
from mtlrec.distributed.process_group import Ranks
from mtlrec.layers import LevelDiagnostics, diagnose
from mtlrec.losses.balancing import Balancing, Totals
from mtlrec.training.sharded import ShardedModel, autocast
from mtlrec.training.telemetry import watched

PEAK = 0.9
"""A gate that gives one expert more than this has hardly mixed."""


@dataclass(frozen=True)
class Level:
    """Means over rows.

    Attributes:
        name: level 1, level 2, ...
        gates, experts: their names
        gate: [G][E], what the gates give the experts; adds up to 1 over the experts
        deviation: [G][E], its standard deviation over rows
        weight: [G][E], what the experts are weighed with, AdaTT's native residual included
        entropy: [G], of a row's gate, 0 for one expert alone to 1 for all alike that it looks at
        peaked: [G], the share of rows where one expert gets more than 0.9
        norm: [E], the Euclidean norm of an expert's output
        zeros: [E], the share of its outputs that are exactly zero
    """

    name: str
    gates: list[str]
    experts: list[str]
    gate: list[list[float]]
    deviation: list[list[float]]
    weight: list[list[float]]
    entropy: list[float]
    peaked: list[float]
    norm: list[float]
    zeros: list[float]


@dataclass(frozen=True)
class Diagnosis:
    """Of `rows` rows.

    Attributes:
        levels: of the fusion layer, in order; none where it has no gates
        tasks: names, T of them
        gradient_norm: [T], of each task's weighted loss with respect to the pooled embeddings, the root of its mean
            square over batches
        gradient_cosine: [T][T], between these gradients, over all batches together; NaN for a task without rows
    """

    rows: int
    levels: list[Level]
    tasks: list[str]
    gradient_norm: list[float]
    gradient_cosine: list[list[float]]


def diagnose_run(
    model: ShardedModel, loader: Loader, job: JobConfig, ranks: Ranks, most_batches: int | None = None
) -> Diagnosis:
    """Collective. Looks at a split's rows, or its first batches; the model is left as it was, its tables too."""
    network, probe = model.module.module.model, _GradientProbe(len(job.tasks))
    balancing, model.loss.balancing = model.loss.balancing, probe
    sums: dict[str, _LevelSums] = {}
    rows = torch.zeros((), dtype=torch.float64, device=ranks.device)
    steps = loader.steps_per_epoch if most_batches is None else min(most_batches, loader.steps_per_epoch)
    network.eval()
    try:
        epoch = loader.epoch()
        for _, batch in zip(range(steps), watched(epoch, steps, "diagnose", ranks.is_first), strict=False):
            batch = batch.to(ranks.device)
            real = batch.weights > 0
            rows += real.sum()
            with autocast(job, ranks.device):
                for name, seen in diagnose(network, batch.dense, batch.sparse).items():
                    sums.setdefault(name, _LevelSums(seen)).add(seen, real)
                _probe(model, batch)
            ranks.liveness.tick()
        epoch.close()
    finally:
        model.loss.balancing = balancing
        model.loss.eval()
    _over_ranks(rows)
    norms, cosines = probe.compute()
    levels = [_level(f"level {index}", one, job) for index, (_, one) in enumerate(sorted(sums.items(), key=_number), 1)]
    return Diagnosis(int(rows.item()), levels, [task.name for task in job.tasks], norms, cosines)


def _number(named: tuple[str, object]) -> int:
    """A level's, of its module's name."""
    return int(re.findall(r"\d+", named[0])[-1])


class _LevelSums:
    """What adds up over rows, and over ranks."""

    def __init__(self, like: LevelDiagnostics) -> None:
        self.rows = like.gates.new_zeros((), dtype=torch.float64)
        self.parts = [
            torch.zeros(shape, dtype=torch.float64, device=like.gates.device)
            for shape in (*[like.gates.shape[1:]] * 3, *[like.gates.shape[1:2]] * 2, *[like.norms.shape[1:]] * 2)
        ]

    def add(self, seen: LevelDiagnostics, real: Tensor) -> None:
        """`real`: which rows are not padding."""
        gates, weights = seen.gates[real].double(), seen.weights[real].double()
        seen_experts = (gates > 0).any(0).sum(-1).clamp(min=2)  # PLE's gates do not look at other tasks' experts
        entropy = torch.special.entr(gates).sum(-1) / seen_experts.log()
        found = (gates, gates.square(), weights, entropy, (gates.amax(-1) > PEAK).double(), seen.norms[real].double())
        for total, part in zip(self.parts, (*found, seen.zeros[real].double()), strict=True):
            total += part.sum(0)
        self.rows += real.sum()

    def means(self) -> list[Tensor]:
        """Collective."""
        _over_ranks(self.rows)
        for total in self.parts:
            _over_ranks(total)
        return [total / self.rows.clamp(min=1) for total in self.parts]


def _level(name: str, sums: _LevelSums, job: JobConfig) -> Level:
    gate, square, weight, entropy, peaked, norm, zeros = sums.means()
    deviation = (square - gate.square()).clamp(min=0).sqrt()
    gates, experts = gate.shape
    tables = (gate, deviation, weight, entropy, peaked, norm, zeros)
    return Level(name, gate_names(job, gates, experts), expert_names(job, experts), *(one.tolist() for one in tables))


def gate_names(job: JobConfig, gates: int, experts: int) -> list[str]:
    """A gate belongs to a task, and one more to the shared module; in MMoE before the last level to an expert of the
    next."""
    tasks = [task.name for task in job.tasks]
    if gates == len(tasks):
        return tasks
    if gates == len(tasks) + 1 and isinstance(job.model.fusion, PLEFusion | AdaTTFusion):
        return [*tasks, "shared"]
    return [f"gate {index}" for index in range(1, gates + 1)]


def expert_names(job: JobConfig, experts: int) -> list[str]:
    fusion, tasks = job.model.fusion, [task.name for task in job.tasks]
    if not isinstance(fusion, PLEFusion | AdaTTFusion | AdaTTSpFusion):
        return [f"expert {index}" for index in range(1, experts + 1)]
    own = fusion.num_task_experts
    counts = own if isinstance(own, list) else [own] * len(tasks)
    modules = [*zip(tasks, counts, strict=True), ("shared", experts - sum(counts))]
    return [module if count == 1 else f"{module} {index}" for module, count in modules for index in range(1, count + 1)]


def _probe(model: ShardedModel, batch: Batch) -> None:
    """Shows the loss's balancing the pooled embeddings as a leaf, so that nothing reaches the tables."""
    network = model.module.module.model
    with torch.no_grad():
        pooled = network.tables(batch.sparse)
    with torch.enable_grad():
        leaf = pooled.values().detach().requires_grad_()
        shown = KeyedTensor(keys=pooled.keys(), length_per_key=pooled.length_per_key(), values=leaf)
        outputs = network.over_arch(batch.dense, shown, batch.sparse)
        model.loss.train()  # what a head adds to the losses in training belongs to them
        model.loss(outputs, batch.labels, batch.label_mask, batch.weights, leaf)


class _GradientProbe(Balancing):
    """Weighs nothing; keeps the inner products of the tasks' gradients, summed over batches."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.gram = torch.zeros(tasks, tasks, dtype=torch.float64)
        self.batches = 0

    def forward(self, totals: Totals, parts: Tensor, pooled: Tensor | None) -> tuple[float, float]:
        assert pooled is not None
        rows = []
        for part in parts:
            (gradient,) = torch.autograd.grad(part, pooled, retain_graph=True)
            rows.append(gradient.double().flatten())
        gradients = torch.stack(rows)
        self.gram = self.gram.to(gradients.device) + gradients @ gradients.T
        self.batches += 1
        return 1.0, 0.0

    def compute(self) -> tuple[list[float], list[list[float]]]:
        """Collective. Norms [T] and cosines [T][T]."""
        _over_ranks(self.gram)
        squares = self.gram.diagonal()
        norms = (squares / max(1, self.batches)).sqrt()
        return norms.tolist(), (self.gram / squares.sqrt().outer(squares.sqrt())).tolist()


def _over_ranks(total: Tensor) -> None:
    if dist.is_initialized():
        dist.all_reduce(total)
