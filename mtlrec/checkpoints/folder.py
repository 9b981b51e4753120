"""Checkpoints through torch.distributed.checkpoint: written beside, renamed when whole, the last N and the best kept.

    checkpoints/step_00000400/   one file per rank, DCP's metadata, job.json (position, config, plan), and once it
                                 was evaluated valid.json
    checkpoints/.writing_...     what a crash leaves; removed by the next save

A folder with its final name is complete, because the rename comes last. Everything saved is a tensor; the metadata,
which DCP keeps as a pickle, is read by an unpickler that knows DCP's own classes and nothing else, so loading runs no
code.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from mtlrec.checkpoints.pieces import in_pieces
from mtlrec.checkpoints.staging import Staging
from mtlrec.config import METRIC_DIRECTIONS
from mtlrec.data.order import Position
from mtlrec.distributed.plans import Plan
from mtlrec.errors import CheckpointError, CheckpointNotSaved, Preempted

STEP = "step_{:08d}"
EVALUATION = "valid.json"
KEPT = "this checkpoint was not saved, those before it are whole: mend the folder and --resume"
WORST = -math.inf


@dataclass(frozen=True)
class JobState:
    """What is saved beside the tensors, as JSON: steps done, the position in the data and what it counts in, and what
    the features' ids hang on (`Loader.inputs`)."""

    step: int
    position: Position
    files: str
    ranks: int
    inputs: dict[str, str]
    config: dict[str, Any]
    plan: Plan

    def text(self) -> str:
        return json.dumps(asdict(self) | {"plan": self.plan.dump()}, indent=1)


class Checkpoints:
    """The `checkpoints/` folder of a run.

    Saving in the background copies the tensors and goes on; a thread writes them, talking to the other ranks' threads
    over a process group of its own, because the default one is busy training. At most one is being written.
    """

    def __init__(
        self,
        run: Path,
        keep: int = 2,
        keep_best: str | None = None,
        in_background: bool = True,
        timeout_s: int = 300,
    ) -> None:
        self.folder = run / "checkpoints"
        self.keep, self.keep_best = keep, keep_best
        self.in_background, self._timeout = in_background, timedelta(seconds=timeout_s)
        self._staging = Staging()
        self._group: dist.ProcessGroup | None = None
        self._writing: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The other ranks cannot finish what is being written without this one; an error of its own comes first."""
        try:
            self.wait()
        except Exception:
            if kind is None or issubclass(kind, Preempted):
                raise

    def complete(self) -> list[Path]:
        """Oldest first."""
        folders = self.folder.glob("step_*")
        return sorted(
            path for path in folders if re.fullmatch(r"step_\d{8,}", path.name) and (path / "job.json").is_file()
        )

    def latest(self) -> Path | None:
        return next(reversed(self.complete()), None)

    def best(self) -> Path | None:
        """The first among equals; a checkpoint that was not evaluated, or without a figure, is not the best."""
        best = max(self.complete(), key=self._score, default=None)
        return best if best is not None and self._score(best) > WORST else None

    def named(self, which: str) -> Path:
        """`last`, `best` or the number of a step. Raises CheckpointError where there is none."""
        match which:
            case "last":
                found = self.latest()
            case "best":
                found = self.best()
            case _:
                found = next((path for path in self.complete() if path.name == f"step_{which:0>8}"), None)
        if found is None:
            there = ", ".join(str(int(path.name.removeprefix("step_"))) for path in self.complete())
            what = f"there are those of steps {there}" if there else "train it first"
            hint = "; the best is known where train.keep_best names a metric" if which == "best" and there else ""
            raise CheckpointError(f"{self.folder}: no complete checkpoint '{which}': {what}{hint}")
        return found

    def evaluated(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Collective. Keeps the figures of the valid split with the step's checkpoint; an older best may go."""
        self.wait()
        if dist.get_rank() == 0:
            text = json.dumps({task: {k: v for k, v in of.items() if math.isfinite(v)} for task, of in metrics.items()})
            path = self.folder / STEP.format(step) / EVALUATION
            try:
                _write_synced(path.with_suffix(".part"), text)
                path.with_suffix(".part").rename(path)
                self._remove_old()
            except OSError as error:
                raise CheckpointNotSaved(
                    f"{path}: {error.strerror}; the checkpoint is whole, its figures were not kept"
                ) from None

    def _score(self, checkpoint: Path) -> float:
        """Higher is better."""
        task, _, metric = (self.keep_best or "").partition("/")
        try:
            value = float(json.loads((checkpoint / EVALUATION).read_text(encoding="utf-8"))[task][metric])
        except (OSError, ValueError, LookupError, TypeError):
            return WORST
        if not math.isfinite(value):
            return WORST
        return value if METRIC_DIRECTIONS[metric] == "highest" else -value

    def save(self, tensors: dict[str, Any], state: JobState) -> None:
        """Collective. On return the tensors may change; `wait` tells when the checkpoint is complete and older ones
        beyond `keep` are gone.

        Raises CheckpointNotSaved where the one before could not be written: it is waited for first.
        """
        self.wait()
        tensors = in_pieces(tensors)
        if not self.in_background:
            self._write(tensors, state)
            return
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        staged = self._staging.staged(tensors)
        self._writing = Future()
        gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
        arguments = (self._writing, gpu, self._write, staged, state)
        Thread(target=_run, args=arguments, name="checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises CheckpointNotSaved if that failed; earlier ones are kept."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, tensors: dict[str, Any], state: JobState) -> None:
        """Collective, over the group if there is one."""
        name = STEP.format(state.step)
        writing = self.folder / f".writing_{name}"
        try:
            if dist.get_rank() == 0:
                for left in self.folder.glob(".writing_*"):
                    shutil.rmtree(left)
                writing.mkdir(parents=True)
            dist.barrier(self._group)
            dcp.save(tensors, storage_writer=FileSystemWriter(writing), process_group=self._group)
            if dist.get_rank() == 0:
                self._complete(writing, name, state)
            dist.barrier(self._group)
        except dcp.api.CheckpointException as error:
            raise CheckpointNotSaved(f"{writing}: {_reason(error)}; {KEPT}") from None
        except OSError as error:
            raise CheckpointNotSaved(f"{error.filename or writing}: {error.strerror}; {KEPT}") from None

    def _complete(self, writing: Path, name: str, state: JobState) -> None:
        """Gives what is written its name, which says that it is whole, and removes what it supersedes."""
        _write_synced(writing / "job.json", state.text())
        _sync_folder(writing)
        final = self.folder / name
        if final.exists():
            final.rename(self.folder / f".writing_{name}_before")
        writing.rename(final)
        _sync_folder(self.folder)
        for left in self.folder.glob(".writing_*"):
            shutil.rmtree(left)
        self._remove_old()

    def _remove_old(self) -> None:
        best = self.best()
        for old in self.complete()[: -self.keep]:
            if old != best:
                going = self.folder / f".writing_{old.name}_old"  # a name that says it is not whole
                old.rename(going)
                shutil.rmtree(going)


def _run(done: Future[None], gpu: int | None, work: Callable[..., None], *arguments: Any) -> None:
    try:
        if gpu is not None:
            torch.cuda.set_device(gpu)  # a new thread begins on the first one
        work(*arguments)
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def read_job_state(checkpoint: Path) -> JobState:
    try:
        raw = json.loads((checkpoint / "job.json").read_text(encoding="utf-8"))
        position, plan = Position.of(raw.pop("position")), Plan.model_validate(raw.pop("plan"))
        return JobState(position=position, plan=plan, **raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / 'job.json'}: not the state of a job ({_one_line(error)})") from None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Of two dumped configs: `train.epochs 6, now 2`, a line for every key."""
    found: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        one, other, name = before.get(key), now.get(key), f"{prefix}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{name}.")
        elif one != other:
            found.append(f"{name} {_short(one)}, now {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: Exception) -> str:
    return " ".join(repr(error).split())[:200]


def check_tasks(checkpoint: Path, saved: JobState, names: Sequence[str]) -> None:
    """Raises CheckpointError unless the tasks are the checkpoint's, in its order: experts are kept by position."""
    before = [str(task["name"]) for task in saved.config["tasks"]]
    if before != list(names):
        raise CheckpointError(
            f"{checkpoint}: its tasks are {', '.join(before)}, the job's {', '.join(names)}; name the same in the same "
            "order, or start a new run with --init-from, which moves weights by name"
        )


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Names are the folder's: without this a power cut may keep a file and lose its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: dcp.api.CheckpointException) -> str:
    """One line; CheckpointException is a BaseException, which an `except Exception` would miss."""
    reasons = dict.fromkeys(str(failure[0]) or repr(failure[0]) for failure in error.failures.values())
    return " ".join("; ".join(reasons).split())[:300]


def _why_not_loaded(reason: str) -> str:
    if "Missing key" in reason or "ize mismatch" in reason:
        return f"{reason}; the job is not the one that was saved: --init-from takes from it what fits"
    return f"{reason}; where the checkpoint is damaged, remove its folder and the one before is taken"


def load_tensors(tensors: dict[str, Any], checkpoint: Path) -> None:
    """Collective. Fills `tensors` in place, resharding as needed."""
    try:
        dcp.load(tensors, storage_reader=SafeReader(checkpoint))
    except dcp.api.CheckpointException as error:
        raise CheckpointError(f"{checkpoint}: {_why_not_loaded(_reason(error))}") from None


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
        raise pickle.UnpicklingError(f"{module}.{name} has no business there")
