"""Reading the metadata of a DCP checkpoint without running code from it.

Upstream: `torch.distributed.checkpoint` keeps a checkpoint's metadata as a pickle and reads it with `pickle.load`,
which runs whatever the file says. The classes in it are partly private. Seen in torch 2.13.
Delete when: DCP reads its metadata with a restricted unpickler, or keeps it in a format that holds no code.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from mtlrec.errors import CheckpointError


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
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
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
