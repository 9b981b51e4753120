"""Batches on their way to a device."""

import torch

from mtlrec.batch import compact
from mtlrec.data.collate import collate
from mtlrec.data.features.columns import Columns
from tests.support.toy import rows_of, toy_job, toy_table


def test_what_is_pinned_has_no_gaps() -> None:
    """A batch is a view of its block, of which pinned memory would hold the whole."""
    job = toy_job()
    block = Columns.of(job).block(rows_of(toy_table(50)))
    batch = collate([(block, 10, 20)], 10, [feature.name for feature in job.features.sparse], is_weighted=False)
    for name in ("dense", "targets", "in_space", "entire_space", "sample_weights", "row_mask"):
        part = getattr(batch, name)
        whole = compact(part)
        assert torch.equal(whole, part)
        strides, sizes = whole.stride(), whole.shape
        assert 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) == whole.numel(), name
    assert not batch.targets.T.is_contiguous()


def test_every_part_goes_along() -> None:
    job = toy_job(metrics={"group_by": "user_id"})
    block = Columns.of(job, with_groups=True).block(rows_of(toy_table(50)))
    names = [feature.name for feature in job.features.sparse]
    batch = collate([(block, 10, 20)], 12, names, is_weighted=False)
    moved = batch.to(torch.device("meta"))
    assert moved.origin == batch.origin == "here.parquet"
    for name, part in vars(batch).items():
        if isinstance(part, torch.Tensor):
            there = getattr(moved, name)
            assert (there.device.type, there.shape, there.dtype) == ("meta", part.shape, part.dtype), name
    assert moved.sparse.values().device.type == "meta"
