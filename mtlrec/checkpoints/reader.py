"""Reading a checkpoint's tensors, with an unpickler that builds DCP's metadata and runs no code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from mtlrec.errors import CheckpointError
from mtlrec.io import one_line


def failure_reason(error: dcp.api.CheckpointException) -> str:
    """One line; CheckpointException is a BaseException, which an `except Exception` would miss."""
    reasons = dict.fromkeys(str(failure[0]) or repr(failure[0]) for failure in error.failures.values())
    return one_line("; ".join(reasons), 300)


def _why_not_loaded(reason: str) -> str:
    if "Missing key" in reason or "ize mismatch" in reason:
        return f"{reason}; the job is not the one that was saved: --init-from takes from it what fits"
    return f"{reason}; where the checkpoint is damaged, remove its folder and the one before is taken"


def load_tensors(tensors: dict[str, Any], checkpoint: Path) -> None:
    """Collective. Fills `tensors` in place, resharding as needed."""
    try:
        dcp.load(tensors, storage_reader=SafeReader(checkpoint))
    except dcp.api.CheckpointException as error:
        raise CheckpointError(f"{checkpoint}: {_why_not_loaded(failure_reason(error))}") from None


def saved_shapes(checkpoint: Path) -> dict[str, torch.Size]:
    """Names and shapes of the saved tensors, without reading them."""
    saved = SafeReader(checkpoint).read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in saved.items() if isinstance(entry, TensorStorageMetadata)}


class SafeReader(FileSystemReader):
    """DCP's reader with an unpickler that builds DCP's metadata and nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(str(self.path)) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata: Metadata = _MetadataUnpickler(file).load()
        except (OSError, EOFError, LookupError, AttributeError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path}: not a checkpoint's metadata ({error})") from None
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{path}: not a checkpoint's metadata (a {type(metadata).__name__})")
        odd = [
            name for name, entry in metadata.state_dict_metadata.items() if not isinstance(entry, TensorStorageMetadata)
        ]
        if odd:
            raise CheckpointError(f"{path}: holds {odd[0]}, which is no tensor; only tensors are loaded")
        metadata.storage_meta = metadata.storage_meta or dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    ALLOWED = {
        "torch.distributed.checkpoint.metadata": {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch": {"Size", "device"},
        "torch.serialization": {"_get_layout"},
        "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePosixPath"},
        "collections": {"OrderedDict"},
    }

    def find_class(self, module: str, name: str) -> Any:
        module = "pathlib" if module == "pathlib._local" else module  # where Python 3.13 keeps its paths
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if name in self.ALLOWED.get(module, set()) or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in checkpoint metadata")
