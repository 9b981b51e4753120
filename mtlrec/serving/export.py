"""From a run to an artifact: gathered, frozen, compiled, held against the checkpoint, and only then given its name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import torch

from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.checkpoints.job_state import check_tasks, read_job_state
from mtlrec.checkpoints.reader import load_tensors
from mtlrec.config import JobConfig, LossConfig
from mtlrec.data.features.columns import Columns
from mtlrec.data.features.vocabulary import place_of
from mtlrec.data.sources.arrow_types import item_type
from mtlrec.distributed.process_group import Ranks
from mtlrec.errors import ArtifactError, ParityError
from mtlrec.evaluation.calibration import Calibration
from mtlrec.evaluation.fused_score import FusedScore
from mtlrec.models.build import build_task_losses, build_train_module
from mtlrec.models.train_module import TrainModule
from mtlrec.serving.lookup import FrozenSparseArch, Precision
from mtlrec.serving.manifest import (
    MANIFEST,
    MODEL,
    PARITY,
    SAMPLE,
    VOCABULARIES,
    Manifest,
    Sample,
    TensorSpec,
    capabilities,
    checksum,
    input_specs,
    vocabulary_of,
)
from mtlrec.serving.parity import Parity, compare
from mtlrec.serving.predictor import Predictor
from mtlrec.serving.program import PARTS, ServedModule, ServingProgram, compiled, exported, loaded
from mtlrec.serving.sample import example_of, first_rows, write_sample
from mtlrec.training.loading import loader_of

logger = logging.getLogger(__name__)


def export(
    run: Path,
    job: JobConfig,
    output: Path,
    ranks: Ranks,
    precision: Precision = "fp32",
    which: str = "last",
    split: str = "valid",
    tolerance: float = 1e-6,
    most_auc_change: float = 5e-4,
    overwrite: bool = False,
) -> Parity:
    """Writes the artifact of a run's checkpoint to the folder `output`.

    Computes in float32 whatever `train.precision`; quantized are the tables alone. For the ranks' device.

    Args:
        precision: of the tables
        which: last, best or the number of a step
        split: whose rows are compared; see `parity.py` for the two limits
        overwrite: replace `output`

    Raises ArtifactError for what cannot be exported, ParityError where the artifact is not what the checkpoint is;
    neither leaves anything behind.
    """
    if ranks.world_size > 1:
        raise ArtifactError("export runs on one rank, whatever the number that trained; start it without torchrun")
    checkpoint = Checkpoints(run, keep_best=job.keep_best).named(which)
    state = read_job_state(checkpoint)
    check_tasks(checkpoint, state, [task.name for task in job.tasks])
    with _written(output, overwrite) as folder:
        module = whole_model(job, checkpoint)
        columns, rows = first_rows(job, split, ranks, state)
        logger.info(f"{checkpoint.name} read; exporting and compiling, which takes some tens of seconds")
        program = serving_program(module, job, precision, ranks.device)
        compiled(exported(program, example_of(columns, ranks.device)), folder / MODEL)
        function = loaded(folder / MODEL)
        module.to(ranks.device)
        found = compare(
            checkpoint=module,
            uncompiled=module if precision == "fp32" else ServedModule(program, module.loss.multitask),
            artifact=ServedModule(function, module.loss.multitask),
            loader=loader_of(job, split, ranks, expected_fingerprints=state.id_fingerprints),
            job=job,
            ranks=ranks,
            split=split,
            tolerance=tolerance,
            most_auc_change=most_auc_change,
        )
        if found.failures:
            lines = [f"{output}: not written, it would not be the checkpoint:", *found.failures]
            raise ParityError("\n".join(lines), found)
        found.write(folder / PARITY)
        _copy_vocabularies(job, folder)
        sample = write_sample(columns, rows, folder, function, ranks.device)
        _manifest(job, checkpoint, precision, ranks.device, columns, rows, sample, folder).write(folder)
        Predictor(folder)  # which checks it: it must load where it was made
    return found


def whole_model(job: JobConfig, checkpoint: Path) -> TrainModule:
    """The checkpoint's weights, whatever ranks and plan saved them, in one process and in eager mode on the CPU."""
    module = build_train_module(job.model_copy(update={"loss": LossConfig()}))
    module.model.sparse_arch.to_empty(device="cpu")
    load_tensors({"model": module.state_dict()}, checkpoint)
    return module.eval()


def serving_program(module: TrainModule, job: JobConfig, precision: Precision, device: torch.device) -> ServingProgram:
    sparse_arch = FrozenSparseArch(module.model.sparse_arch, job.features, job.tables, precision, device)
    return ServingProgram(
        sparse_arch, job.features.collections, module.model.over_arch.to(device), build_task_losses(job)
    ).eval()


@contextmanager
def _written(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that gets its name when it is whole; what had it before is there until then."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise ArtifactError(f"--output {output}: is a {'link' if output.is_symlink() else 'file'}; name a folder")
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise ArtifactError(f"--output {output}: is not empty; --overwrite replaces it")
        others = {path.name for path in output.iterdir()} - {MODEL, MANIFEST, PARITY, SAMPLE, VOCABULARIES}
        if others or not (output / MANIFEST).is_file() or not (output / MODEL).is_file():
            raise ArtifactError(
                f"--output {output}: is no artifact, or more than one, and is not replaced; name another"
            )
    final = output.resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as beside:
        part = Path(beside) / "new"
        part.mkdir()
        yield part
        before = Path(beside) / "old"
        if final.exists():
            final.rename(before)
        try:
            part.rename(final)
        except OSError:
            if before.exists():
                before.rename(final)
            raise


def _copy_vocabularies(job: JobConfig, folder: Path) -> None:
    """As they are, byte by byte."""
    for feature in job.features.sparse:
        if feature.vocabulary is not None:
            store, key = place_of(job.data.root, feature.vocabulary)
            path = vocabulary_of(folder, feature.name)
            path.parent.mkdir(exist_ok=True)
            with store.system.open_input_stream(key) as source:
                path.write_bytes(source.read())


def _manifest(
    job: JobConfig,
    checkpoint: Path,
    precision: Precision,
    device: torch.device,
    columns: Columns,
    rows: pa.Table,
    sample: Sample,
    folder: Path,
) -> Manifest:
    state, names = read_job_state(checkpoint), [task.name for task in job.tasks]
    return Manifest(
        name=job.name,
        run_step=state.step,
        precision=precision,
        device="cuda" if device.type == "cuda" else "cpu",
        inputs=input_specs(columns),
        outputs=[
            TensorSpec(name=name, shape=["B", len(names)], dtype="float32", columns=names)
            for name in ("predictions", *PARTS)
        ],
        tasks=[{"name": task.name, "kind": task.kind, "given": task.given, "label": task.label} for task in job.tasks],
        calibration=Calibration.read(checkpoint),
        fused_score=FusedScore.read(checkpoint, job),
        id_fingerprints=state.id_fingerprints,
        float_columns={one.name: str(item) for one in rows.schema if pa.types.is_floating(item := item_type(one.type))},
        versions={name: metadata.version(name) for name in ("mtlrec", "torch", "torchrec")} | _fbgemm(),
        capabilities=capabilities(device),
        sha256={path.relative_to(folder).as_posix(): checksum(path) for path in sorted(folder.rglob("*.*"))},
        sample=sample,
        job=job.dump(),
    )


def _fbgemm() -> dict[str, str]:
    """Under the name that it is installed by."""
    found = ("fbgemm-gpu-cpu", "fbgemm-gpu")
    return {name: metadata.version(name) for name in found if any(metadata.distributions(name=name))}
