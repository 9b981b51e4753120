"""Model plus loss, in the form TorchRec's pipelines want: `forward(batch) -> (loss, outputs)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtlrec.batch import Batch
from mtlrec.heads import HeadOutput
from mtlrec.losses import LossReport, MultiTaskLoss
from mtlrec.models.multitask import MultiTaskModel


class StepOutput(NamedTuple):
    """What a step leaves behind, detached: for metrics, messages and predictions."""

    outputs: HeadOutput
    report: LossReport
    batch: Batch


class LossModule(nn.Module):
    """Holds no table, so that TorchRec's tracer leaves it alone (it talks to the other ranks)."""

    def __init__(self, loss: MultiTaskLoss) -> None:
        super().__init__()
        self.multitask = loss

    def forward(self, outputs: HeadOutput, pooled: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, StepOutput]:
        labels = batch.targets, batch.in_space, batch.sample_weights
        with torch.profiler.record_function("mtlrec::loss"):
            loss, report = self.multitask(outputs, *labels, list(pooled.values()))
        return loss, StepOutput(outputs.detach(), report, batch)


class TrainModule(nn.Module):
    """The model's own path, with the pooled vectors shown to the loss: some balancing takes gradients of them."""

    def __init__(self, model: MultiTaskModel, loss: MultiTaskLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = LossModule(loss)

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        pooled = self.model.sparse_arch(batch.sparse)
        outputs = self.model.over_arch(batch.dense, pooled)
        return self.loss(outputs, pooled, batch)
