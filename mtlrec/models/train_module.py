"""Model plus loss, in the form TorchRec's pipelines want: `forward(batch) -> (loss, outputs)`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from mtlrec.batch import Batch
from mtlrec.heads import HeadOutput
from mtlrec.losses import LossReport, MultiTaskLoss
from mtlrec.models.multitask import MultiTaskModel


class StepOutput(NamedTuple):
    """What a step leaves behind, detached: for metrics, messages and predictions."""

    outputs: HeadOutput
    report: LossReport
    weights: Tensor
    origin: str


class LossModule(nn.Module):
    """Holds no table, so that TorchRec's tracer leaves it alone (it talks to the other ranks)."""

    def __init__(self, loss: MultiTaskLoss) -> None:
        super().__init__()
        self.multitask = loss

    def forward(self, outputs: HeadOutput, batch: Batch) -> tuple[Tensor, StepOutput]:
        loss, report = self.multitask(outputs, batch.labels, batch.label_mask, batch.weights)
        detached = HeadOutput(*(part.detach() for part in outputs))
        return loss, StepOutput(detached, report, batch.weights, batch.origin)


class TrainModule(nn.Module):
    def __init__(self, model: MultiTaskModel, loss: MultiTaskLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = LossModule(loss)

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        return self.loss(self.model(batch.dense, batch.sparse), batch)
