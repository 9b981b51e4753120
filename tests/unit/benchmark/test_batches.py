"""What `mtlrec bench` trains on: full batches, without end, from the files or kept ones as it is told."""

from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch

from mtlrec.benchmark.batches import KEPT, BenchBatches, Source
from mtlrec.distributed.process_group import process_group
from tests.support.toy import toy_job, write_toy

SIZE = 100
STEPS = 557 // SIZE
"""Of an epoch, full ones."""


@pytest.mark.parametrize("source", ["train", "memory", "random"])
def test_batches_are_full_and_never_end(tmp_path: Path, source: Source) -> None:
    job = toy_job(write_toy(tmp_path), data={"batch_size": SIZE})
    with process_group("cpu") as ranks, closing(BenchBatches(job, ranks, source)) as batches:
        assert batches.can_read == batches.reads == (source == "train")
        assert batches.held == {"train": 3 + job.data.prefetch, "memory": STEPS, "random": KEPT}[source]
        taken = list(islice(batches, 3 * KEPT))
    assert [len(batch) for batch in taken] == [SIZE] * 3 * KEPT
    distinct = len({id(batch) for batch in taken})
    assert distinct == {"train": 3 * KEPT, "memory": STEPS, "random": KEPT}[source]


def test_it_reads_or_keeps_as_told(tmp_path: Path) -> None:
    """Kept ones are the first that the files gave, again and again; the files go on where they were: these have fewer
    than are kept, so that reading begins them anew."""
    job = toy_job(write_toy(tmp_path), data={"batch_size": SIZE})
    with process_group("cpu") as ranks, closing(BenchBatches(job, ranks, "train")) as batches:
        read = list(islice(batches, 2))
        batches.reads = False
        kept = list(islice(batches, 2 * STEPS))
        batches.reads = True
        more = list(islice(batches, 2))
    assert [id(batch) for batch in kept[:STEPS]] == [id(batch) for batch in kept[STEPS:]]
    assert len({id(batch) for batch in kept}) == STEPS
    for ours, theirs in zip(read + more, kept, strict=False):
        assert ours is not theirs
        assert torch.equal(ours.targets, theirs.targets)
        assert torch.equal(ours.sparse["bags"].values(), theirs.sparse["bags"].values())


def test_fewer_rows_than_a_batch_are_told(tmp_path: Path) -> None:
    job = toy_job(write_toy(tmp_path), data={"batch_size": 600})
    with process_group("cpu") as ranks, pytest.raises(ValueError, match="fewer rows than a batch"):
        BenchBatches(job, ranks, "memory")
