"""The model as one file that runs without mtlrec and TorchRec: exported, compiled ahead of time, and loaded again.

B rows, F dense features, T tasks; S sparse features and N ids of a collection. The file's function takes tensors in
this order:

    dense         [B, F] float32   `features.dense`, transformed

and for each collection of the job (`features.collections`: bags, weighted_bags)

    NAME.values   [N]    int64     the ids of its first feature, row after row, then those of its second, ...
    NAME.lengths  [S, B] int32     how many ids each of its features has in each row
    NAME.weights  [N]    float32   of the ids; of weighted_bags alone

and gives a dict of [B, T] float32: `predictions` (p(task) over all impressions, a regression's value, a watch time in
its label's unit), and what metrics and the fused score are made of, `HeadOutput`'s value, log_p, log_not_p and
log_entire_p. B is 1 or more. Ids are not checked: one that is not below its table's rows reads other memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.batch import Batch
from mtlrec.compat.aot_inductor import CompilerFailed, compile_package, load_package
from mtlrec.compat.quiet import quiet_export, quiet_keyed_jagged_tensors
from mtlrec.config import Collection
from mtlrec.errors import ArtifactError
from mtlrec.heads import HeadOutput
from mtlrec.io import one_line
from mtlrec.losses import MultiTaskLoss, TaskLosses
from mtlrec.models.multitask import OverArch
from mtlrec.models.train_module import StepOutput
from mtlrec.serving.lookup import FrozenSparseArch

quiet_keyed_jagged_tensors()  # a server makes one for every request

PARTS = ("value", "log_p", "log_not_p", "log_entire_p")
Outputs = dict[str, Tensor]
Function = Callable[..., Outputs]


class ServingProgram(nn.Module):
    """What is exported: the model's own path behind frozen tables."""

    def __init__(
        self,
        sparse_arch: FrozenSparseArch,
        collections: Mapping[str, Collection],
        over_arch: OverArch,
        losses: TaskLosses,
    ) -> None:
        super().__init__()
        self.sparse_arch, self.over_arch, self.losses = sparse_arch, over_arch, losses
        self._collections = dict(collections)

    def forward(self, dense: Tensor, *ids: Tensor) -> Outputs:
        pooled = self.sparse_arch(self._by_collection(ids))
        outputs = self.over_arch(dense, pooled)
        return {"predictions": self.losses.predictions(outputs)} | {part: getattr(outputs, part) for part in PARTS}

    def _by_collection(self, ids: tuple[Tensor, ...]) -> dict[str, KeyedJaggedTensor]:
        """From the tensors in the order of `arguments`."""
        tensors = iter(ids)
        return {
            name: KeyedJaggedTensor(
                keys=collection.features,
                values=next(tensors),
                lengths=next(tensors).flatten(),
                weights=next(tensors) if collection.is_weighted else None,
            )
            for name, collection in self._collections.items()
        }


def arguments(batch: Batch) -> tuple[Tensor, ...]:
    """A batch as the function takes it."""
    tensors = [batch.dense.contiguous()]
    for ids in batch.sparse.values():
        weights = ids.weights_or_none()
        tensors += [ids.values(), ids.lengths().view(-1, len(batch))] + ([] if weights is None else [weights])
    return tuple(tensors)


def exported(program: ServingProgram, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """For any number of rows and ids. `example` has several of each."""
    some = torch.export.Dim.DYNAMIC
    dense, *ids = example
    axes = tuple({tensor.dim() - 1: some} for tensor in ids)  # [N], and lengths [S, B]
    with torch.no_grad(), quiet_export():
        found = torch.export.export(program, (dense, *ids), dynamic_shapes=({0: some}, axes))
    narrow = [f"{name} in [{limits.lower}, {limits.upper}]" for name, limits in found.range_constraints.items()]
    assert all(limits.lower <= 2 and limits.upper > 2**31 for limits in found.range_constraints.values()), narrow
    return found


def compiled(program: torch.export.ExportedProgram, path: Path) -> None:
    """Writes the AOTInductor package. Raises ArtifactError where there is no C++ compiler that does."""
    try:
        with quiet_export():
            compile_package(program, path)
    except CompilerFailed as error:
        raise ArtifactError(
            f"the model cannot be compiled ({one_line(error)}); export needs a C++ compiler, g++ or one named in CXX, "
            "and room on the disk"
        ) from None


def loaded(path: Path) -> Function:
    """The package's function, which needs FBGEMM's operators. Its calls hold the GIL: more runners would not help."""
    return load_package(path)


class ServedModule(nn.Module):
    """A program's function where a train module is expected, to be evaluated: `batch -> (loss, StepOutput)`."""

    def __init__(self, function: Function, loss: MultiTaskLoss) -> None:
        super().__init__()
        self.function, self.loss = function, loss

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        outputs = head_output(self.function(*arguments(batch)))
        loss, report = self.loss(outputs, batch.targets, batch.in_space, batch.sample_weights)
        return loss, StepOutput(outputs, report, batch)


def head_output(outputs: Outputs) -> HeadOutput:
    return HeadOutput(*(outputs[part] for part in PARTS))
