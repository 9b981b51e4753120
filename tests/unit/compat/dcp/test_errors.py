"""DCP still raises a BaseException, and still has no class for a checkpoint of another model."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from mtlrec.compat.dcp.errors import CheckpointException, failure_reason, is_of_another_model


def test_it_is_no_exception() -> None:
    assert not issubclass(CheckpointException, Exception), "`except Exception` catches it now: compat/dcp/errors.py"


@pytest.mark.parametrize("tensors", [{"other": torch.ones(2)}, {"weight": torch.ones(3)}], ids=["name", "size"])
def test_another_model_is_told_by_text(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    dcp.save({"weight": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(CheckpointException) as raised:
        dcp.load(tensors, checkpoint_id=tmp_path, no_dist=True)
    assert is_of_another_model(failure_reason(raised.value))
    kinds = {type(failure[0]) for failure in raised.value.failures.values()}
    assert kinds <= {RuntimeError, ValueError}, "compat/dcp/errors.py can read classes in place of texts"


def test_a_damaged_checkpoint_is_not_of_another_model(tmp_path: Path) -> None:
    dcp.save({"weight": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    for file in tmp_path.glob("*.distcp"):
        file.unlink()
    with pytest.raises(CheckpointException) as raised:
        dcp.load({"weight": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    assert not is_of_another_model(failure_reason(raised.value))
