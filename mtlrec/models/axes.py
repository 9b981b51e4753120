"""What the axes of a model's dense parameters stand for: each part's own account, under the model's names."""

from __future__ import annotations

from torch import nn

from mtlrec import heads
from mtlrec.config import JobConfig
from mtlrec.layers import Bottom, FusionLayer
from mtlrec.layers.blocks.axes import Axes, prefixed, units
from mtlrec.models.multitask import MultiTaskModel


def parameter_axes(model: MultiTaskModel, job: JobConfig) -> Axes:
    """Name -> labels of each axis, for every dense parameter and saved buffer. `model` may be on the meta device."""
    bottom, fusion = model.over_arch.bottom, model.over_arch.fusion
    assert isinstance(bottom, Bottom)
    assert isinstance(fusion, FusionLayer)
    dense, sparse = ([each.name for each in features] for features in (job.features.dense, job.features.sparse))
    axes: Axes = {name: (None,) * t.dim() for name, t in model.state_dict().items() if name.startswith("over_arch.")}
    axes |= prefixed("over_arch.bottom", bottom.axes(dense, sparse))
    columns = bottom.output_columns(dense, sparse)
    axes |= prefixed("over_arch.fusion", fusion.axes([task.name for task in job.tasks], columns))
    return axes | prefixed("over_arch.heads", _heads(model.over_arch.heads, job))


def _heads(head: nn.Module, job: JobConfig) -> Axes:
    """What a child reads of its parent means nothing under another parent."""
    axes: Axes = {}
    for task in job.tasks:
        if task.given is None:
            continue
        match head:
            case heads.AITM():
                name = f"transfers.task_{task.name}.hand_on.0.weight"
                axes[name] = (None, units([task.given], head.state_dict()[name].shape[1]))
            case heads.DBMTL():
                name = f"relations.task_{task.name}.net.0.weight"
                of_parent = head.state_dict()[f"logits.task_{task.given}.weight"].shape[1]
                own = head.state_dict()[name].shape[1] - of_parent
                axes[name] = (None, [*units(["own"], own), *units([("parent", task.given)], of_parent)])
    return axes
