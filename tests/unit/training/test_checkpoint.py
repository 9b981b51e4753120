"""Nothing in a checkpoint's metadata is executed, and what is not a tensor is not loaded."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from mtlrec.training.checkpoint import CheckpointError, Checkpoints, load_tensors, read_job_state, saved_shapes


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("thing", [Bomb(), {"state_dict_metadata": Bomb()}, print, torch.nn.Linear(1, 1)])
def test_metadata_that_would_run_code_is_refused(thing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(thing))
    with pytest.raises(CheckpointError, match=r"\.metadata: not a checkpoint's metadata .*has no business there"):
        saved_shapes(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_only_tensors_are_loaded(tmp_path: Path) -> None:
    dcp.save({"weight": torch.ones(2), "note": "text"}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(CheckpointError, match="holds note, which is no tensor"):
        saved_shapes(tmp_path)


def test_a_missing_or_damaged_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        load_tensors({"weight": torch.ones(2)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"job\.json: not the state of a job"):
        read_job_state(tmp_path)
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"job\.json: not the state of a job"):
        read_job_state(tmp_path)


def test_tensors_come_back_in_place(tmp_path: Path) -> None:
    dcp.save({"model": {"weight": torch.arange(6.0).view(2, 3)}}, checkpoint_id=tmp_path, no_dist=True)
    assert saved_shapes(tmp_path) == {"model.weight": torch.Size([2, 3])}
    weight = torch.zeros(2, 3)
    load_tensors({"model": {"weight": weight}}, tmp_path)
    assert weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(CheckpointError, match="Missing key"):
        load_tensors({"model": {"bias": torch.zeros(2)}}, tmp_path)


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    for name in ("step_00000003", "step_00000010", ".writing_step_00000012", "step_00000011"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "step_00000011":
            (tmp_path / "checkpoints" / name / "job.json").write_text("{}")
    assert [path.name for path in Checkpoints(tmp_path).complete()] == ["step_00000003", "step_00000010"]
