"""DCP's own reader still runs the code in a checkpoint's metadata. tests/unit/checkpoints holds that ours does not."""

import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint import FileSystemReader


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_the_stock_reader_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with suppress(Exception):
        FileSystemReader(tmp_path).read_metadata()
    assert (tmp_path / "exploded").exists(), "compat/dcp/metadata.py can be deleted"
