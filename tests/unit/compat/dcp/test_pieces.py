"""DCP still writes a shard as one item, and still clones a shard that lies in a larger buffer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.utils._python_dispatch import TorchDispatchMode

from mtlrec.compat.dcp import pieces
from mtlrec.compat.dcp.sharded_tensor import ShardedTensor
from mtlrec.distributed.process_group import process_group
from mtlrec.training.sharded import build_sharded
from tests.support.toy import toy_job


class Clones(TorchDispatchMode):
    """The bytes of every clone."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            self.bytes.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


def test_a_shard_is_cloned_whole_unless_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process_group("cpu") as ranks:
        state = build_sharded(toy_job(), ranks).module.state_dict()
        tables: dict[str, Any] = {name: tensor for name, tensor in state.items() if ".embedding_bags." in name}
        largest = max(shard.tensor.nbytes for table in tables.values() for shard in table.local_shards())
        with Clones() as whole:
            dcp.save(tables, checkpoint_id=tmp_path / "whole")
        assert max(whole.bytes, default=0) >= largest, "compat/dcp/pieces.py can be deleted"
        monkeypatch.setattr(pieces, "PIECE_BYTES", largest // 4)
        cut = pieces.in_pieces(tables)
        with Clones() as in_pieces:
            dcp.save(cut, checkpoint_id=tmp_path / "cut")
        assert max(in_pieces.bytes) <= largest // 4
        assert all(isinstance(table, ShardedTensor) for table in cut.values())
