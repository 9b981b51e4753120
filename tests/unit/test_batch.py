"""Batches on their way to a device."""

import torch

from mtlrec.batch import compact
from mtlrec.config import JobConfig
from mtlrec.data.collate import collate
from mtlrec.data.features.columns import Columns
from tests.support.toy import collated, rows_of, toy_job, toy_table, toy_tree


def weighted_job() -> JobConfig:
    tree = toy_tree(metrics={"group_by": "item_id"})
    tree["features"]["sparse"][2]["weights"] = "recent_weights"
    return JobConfig.model_validate(tree)


def test_what_is_pinned_has_no_gaps() -> None:
    """A batch is a view of its block, of which pinned memory would hold the whole."""
    job = toy_job()
    block = Columns.of(job).block(rows_of(toy_table(50)))
    batch = collate([(block, 10, 20)], 10, job.features.collections)
    for name in ("dense", "targets", "in_space", "entire_space", "sample_weights", "row_mask"):
        part = getattr(batch, name)
        whole = compact(part)
        assert torch.equal(whole, part)
        strides, sizes = whole.stride(), whole.shape
        assert 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) == whole.numel(), name
    assert not batch.targets.T.is_contiguous()


def test_every_part_goes_along() -> None:
    batch = collated(toy_table(50), 52, weighted_job())
    moved = batch.to(torch.device("meta"))
    assert moved.origin == batch.origin == "here.parquet"
    tensors = {name: part for name, part in vars(batch).items() if isinstance(part, torch.Tensor)}
    assert set(vars(batch)) - set(tensors) == {"sparse", "origin"}
    for name, part in tensors.items():
        there = getattr(moved, name)
        assert (there.device.type, there.shape, there.dtype) == ("meta", part.shape, part.dtype), name
    assert list(moved.sparse) == ["bags", "weighted_bags"]
    for name, ids in moved.sparse.items():
        assert ids.keys() == batch.sparse[name].keys()
        assert {ids.values().device.type, ids.lengths().device.type} == {"meta"}
    assert moved.sparse["weighted_bags"].weights().device.type == "meta"


def test_ids_are_by_feature_whatever_their_collection() -> None:
    weighted, plain = (collated(toy_table(9), job=job) for job in (weighted_job(), toy_job()))
    assert sorted(weighted.ids()) == sorted(plain.ids()) == ["item_id", "recent_items", "user_id"]
    assert (len(weighted.sparse), len(plain.sparse)) == (2, 1)
    item = plain.ids()["item_id"]
    assert torch.equal(weighted.ids()["item_id"].values(), item.values())
    assert torch.equal(weighted.ids()["item_id"].lengths(), item.lengths())
