"""The gradients of the tasks' losses with respect to the pooled embeddings: how large, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mtlrec.batch import Batch
from mtlrec.losses.balancing import Balancing, Coefficients, Totals, gradients_on
from mtlrec.metrics.metric import sum_over_ranks
from mtlrec.models.train_module import StepOutput
from mtlrec.training.sharded import ShardedModel


class TaskGradients(Balancing):
    """Stands in for the loss's balancing; weighs nothing, keeps the inner products of the gradients, summed over
    batches."""

    def __init__(self, tasks: int, device: torch.device) -> None:
        super().__init__()
        self.gram = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)
        self.batches = 0

    def forward(self, totals: Totals, parts: Tensor, pooled: Sequence[Tensor] | None) -> Coefficients:
        assert pooled is not None
        gradients = gradients_on(pooled, parts)
        self.gram += gradients @ gradients.T
        self.batches += 1
        return torch.ones_like(totals.numerators), 0.0

    def compute(self) -> tuple[list[float], list[list[float]]]:
        """Collective. Norms [T], the root of the mean square over batches, and cosines [T][T], NaN for a task without
        gradients."""
        gram = sum_over_ranks(self.gram)
        squares = gram.diagonal()
        norms = (squares / max(1, self.batches)).sqrt()
        return norms.tolist(), (gram / squares.sqrt().outer(squares.sqrt())).tolist()


@contextmanager
def in_place_of_balancing(model: ShardedModel, gradients: TaskGradients) -> Iterator[None]:
    """The loss as in training, but for what weighs its tasks; afterwards all is as it was."""
    loss, balancing, training = model.loss, model.loss.balancing, model.loss.training
    loss.balancing = gradients
    loss.train()  # what a head adds to the losses in training belongs to them
    try:
        yield
    finally:
        loss.balancing = balancing
        loss.train(training)


def probe(model: ShardedModel, batch: Batch) -> StepOutput:
    """Shows the loss the pooled vectors as leaves, so that nothing reaches the tables; returns what an evaluation's
    step does. The model is in evaluation mode; its heads alone also run as in training, for the losses: they then give
    what these are taken of (among the negatives that sampling has kept; imputed errors)."""
    network = model.network
    heads = network.over_arch.heads
    with torch.no_grad():
        pooled = network.sparse_arch(batch.sparse)
    with torch.enable_grad():
        leaves = {name: vector.detach().requires_grad_() for name, vector in pooled.items()}
        fused = network.over_arch.fused(batch.dense, leaves)
        outputs = heads(fused.detach())
        heads.train()
        try:
            labels = batch.targets, batch.in_space, batch.sample_weights
            _, report = model.loss(heads(fused), *labels, list(leaves.values()))
        finally:
            heads.eval()
    return StepOutput(outputs.detach(), report, batch)
