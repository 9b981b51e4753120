"""What the axes of a model's dense parameters stand for: each part's own account, under the model's names."""

from __future__ import annotations

from mtlrec.config import JobConfig
from mtlrec.heads.head import Head
from mtlrec.layers import Bottom, FusionLayer
from mtlrec.layers.blocks.axes import Axes, prefixed
from mtlrec.models.multitask import MultiTaskModel


def parameter_axes(model: MultiTaskModel, job: JobConfig) -> Axes:
    """Name -> labels of each axis, for every dense parameter and saved buffer. `model` may be on the meta device."""
    bottom, fusion, heads = model.over_arch.bottom, model.over_arch.fusion, model.over_arch.heads
    assert isinstance(bottom, Bottom)
    assert isinstance(fusion, FusionLayer)
    assert isinstance(heads, Head)
    dense, sparse = ([each.name for each in features] for features in (job.features.dense, job.features.sparse))
    tasks = [task.name for task in job.tasks]
    axes: Axes = {name: (None,) * t.dim() for name, t in model.state_dict().items() if name.startswith("over_arch.")}
    axes |= prefixed("over_arch.bottom", bottom.axes(dense, sparse))
    axes |= prefixed("over_arch.fusion", fusion.axes(tasks, bottom.output_columns(dense, sparse)))
    return axes | prefixed("over_arch.heads", heads.axes(tasks))
