"""Reading a checkpoint's tensors, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mtlrec.compat.dcp.errors import CheckpointException, failure_reason, is_of_another_model
from mtlrec.compat.dcp.metadata import SafeReader
from mtlrec.errors import CheckpointError


def load_tensors(tensors: dict[str, Any], checkpoint: Path) -> None:
    """Collective. Fills `tensors` in place, resharding as needed."""
    try:
        dcp.load(tensors, storage_reader=SafeReader(checkpoint))
    except CheckpointException as error:
        reason = failure_reason(error)
        if is_of_another_model(reason):
            hint = "the job is not the one that was saved: --init-from takes from it what fits"
        else:
            hint = "where the checkpoint is damaged, remove its folder and the one before is taken"
        raise CheckpointError(f"{checkpoint}: {reason}; {hint}") from None


def saved_shapes(checkpoint: Path) -> dict[str, torch.Size]:
    """Names and shapes of the saved tensors, without reading them."""
    saved = SafeReader(checkpoint).read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in saved.items() if isinstance(entry, TensorStorageMetadata)}
