"""The model as one file that runs without mtlrec and TorchRec: exported, compiled ahead of time, and loaded again.

B rows, F dense features, S sparse features, N ids, T tasks. The file's function takes tensors in this order:

    dense    [B, F] float32   `features.dense`, transformed
    values   [N]    int64     the ids of the first feature, row after row, then those of the second, ...
    lengths  [S, B] int32     how many ids each feature has in each row
    weights  [N]    float32   of the ids; only where a feature of the job has weights

and gives a dict of [B, T] float32: `predictions` (p(task) over all impressions, a regression's value, a watch time in
its label's unit), and what metrics and the fused score are made of, `HeadOutput`'s value, log_p, log_not_p and
log_entire_p. B is 1 or more. Ids are not checked: one that is not below its table's rows reads other memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.batch import Batch
from mtlrec.compat.aot_inductor import CompilerFailed, compile_package, load_package
from mtlrec.compat.quiet import quiet_export, quiet_keyed_jagged_tensors
from mtlrec.errors import ArtifactError
from mtlrec.heads import HeadOutput
from mtlrec.io import one_line
from mtlrec.losses import MultiTaskLoss, TaskLosses
from mtlrec.models.multitask import OverArch
from mtlrec.models.train_module import StepOutput
from mtlrec.serving.lookup import FrozenTables

quiet_keyed_jagged_tensors()  # a server makes one for every request

PARTS = ("value", "log_p", "log_not_p", "log_entire_p")
Outputs = dict[str, Tensor]
Function = Callable[..., Outputs]


class ServingProgram(nn.Module):
    """What is exported: the model's own path behind frozen tables."""

    def __init__(self, tables: FrozenTables, over_arch: OverArch, losses: TaskLosses) -> None:
        super().__init__()
        self.tables, self.over_arch, self.losses = tables, over_arch, losses

    def forward(self, dense: Tensor, values: Tensor, lengths: Tensor, weights: Tensor | None = None) -> Outputs:
        flat = lengths.flatten()
        offsets = nn.functional.pad(flat.cumsum(0), (1, 0))
        ids = KeyedJaggedTensor(keys=self.tables.keys, values=values, lengths=flat, weights=weights)
        outputs = self.over_arch(dense, self.tables(values, offsets, weights), ids)
        return {"predictions": self.losses.predictions(outputs)} | {part: getattr(outputs, part) for part in PARTS}


def arguments(batch: Batch) -> tuple[Tensor, ...]:
    """A batch as the function takes it."""
    ids, rows = batch.sparse, len(batch)
    tensors = (batch.dense.contiguous(), ids.values(), ids.lengths().view(-1, rows))
    return tensors if ids.weights_or_none() is None else (*tensors, ids.weights())


def exported(program: ServingProgram, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """For any number of rows and ids. `example` has several of each."""
    some = torch.export.Dim.DYNAMIC
    axes: list[dict[int, object]] = [{0: some}, {0: some}, {1: some}, {0: some}]
    with torch.no_grad(), quiet_export():
        found = torch.export.export(program, example, dynamic_shapes=(*axes[: len(example)],))
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
