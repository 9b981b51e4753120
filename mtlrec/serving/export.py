"""From a run to an artefact: gathered, frozen, compiled, held against the checkpoint, and only then given its name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mtlrec.config import JobConfig, LossConfig
from mtlrec.data.collate import rows_of
from mtlrec.data.columns import Columns
from mtlrec.data.dataset import Reader
from mtlrec.data.faults import RowFaults
from mtlrec.data.vocabulary import Vocabulary
from mtlrec.distributed.process_group import Ranks
from mtlrec.models.build import build_train_module
from mtlrec.models.train_module import TrainModule
from mtlrec.serving.lookup import FrozenTables, Precision
from mtlrec.serving.manifest import (
    MANIFEST,
    MODEL,
    PARITY,
    SAMPLE,
    ArtefactError,
    Manifest,
    Sample,
    TensorSpec,
    checksum,
    vocabulary_of,
)
from mtlrec.serving.parity import Parity, compare
from mtlrec.serving.program import (
    PARTS,
    Function,
    ServedModule,
    ServingProgram,
    arguments,
    compiled,
    exported,
    loaded,
)
from mtlrec.training.calibration import Calibration
from mtlrec.training.checkpoint import Checkpoints, JobState, check_tasks, load_tensors, read_job_state
from mtlrec.training.fused_score import FusedScore
from mtlrec.training.loading import loader_of
from mtlrec.training.telemetry import say

SAMPLE_ROWS = 8


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
    """Writes the artefact of a run's checkpoint to the folder `output`.

    Computes in float32 whatever `train.precision`; quantised are the tables alone. For the ranks' device.

    Args:
        precision: of the tables
        which: last, best or the number of a step
        split: whose rows are compared; see `parity.py` for the two limits
        overwrite: replace `output`

    Raises ArtefactError where the artefact is not what the checkpoint is, and leaves nothing behind.
    """
    if ranks.world_size > 1:
        raise ArtefactError("export runs on one rank, whatever the number that trained; start it without torchrun")
    checkpoint = Checkpoints(run, keep_best=job.train.keep_best).named(which)
    state = read_job_state(checkpoint)
    check_tasks(checkpoint, state, [task.name for task in job.tasks])
    with _written(output, overwrite) as folder:
        module = whole_model(job, checkpoint)
        columns, rows = _first_rows(job, split, ranks, state)
        say(f"{checkpoint.name} read; exporting and compiling, which takes some tens of seconds")
        program = serving_program(module, job, precision, ranks.device)
        compiled(exported(program, _example(columns, rows, ranks.device)), folder / MODEL)
        function = loaded(folder / MODEL)
        module.to(ranks.device)
        found = compare(
            checkpoint=module,
            uncompiled=module if precision == "fp32" else ServedModule(program, module.loss.multitask),
            artefact=ServedModule(function, module.loss.multitask),
            loader=loader_of(job, split, ranks, trained_on=state.inputs),
            job=job,
            ranks=ranks,
            split=split,
            tolerance=tolerance,
            most_auc_change=most_auc_change,
        )
        if found.failures:
            raise ArtefactError("\n".join([f"{output}: not written, it would not be the checkpoint:", *found.failures]))
        found.write(folder / PARITY)
        _write_vocabularies(columns, folder)
        sample = _sample(columns, rows.slice(0, SAMPLE_ROWS), folder, function, ranks.device)
        _manifest(job, columns, state, checkpoint, sample, precision, ranks.device, folder).write(folder)
    return found


def whole_model(job: JobConfig, checkpoint: Path) -> TrainModule:
    """The checkpoint's weights, whatever ranks and plan saved them, in one process and in eager mode on the CPU."""
    module = build_train_module(job.model_copy(update={"loss": LossConfig()}))
    module.model.tables.to_empty(device="cpu")
    load_tensors({"model": module.state_dict()}, checkpoint)
    return module.eval()


def serving_program(module: TrainModule, job: JobConfig, precision: Precision, device: torch.device) -> ServingProgram:
    tables = FrozenTables(module.model.tables, job.features.sparse, precision, device)
    kinds = [task.kind for task in job.tasks]
    return ServingProgram(tables, module.model.over_arch.to(device), kinds).eval()


def _example(columns: Columns, rows: pa.Table, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Several rows with several ids: tracing takes what it sees one of for a constant."""
    for count in (len(rows), 2 * len(rows)):
        tensors = inputs_of(columns, pa.concat_tables([rows, rows]).slice(0, count), device)
        if count > 1 and len(tensors[1]) > 1:
            return tensors
    raise ArtefactError("data: the first batch has no row with ids, to trace the model with; name another --split")


def _first_rows(job: JobConfig, split: str, ranks: Ranks, state: JobState) -> tuple[Columns, pa.Table]:
    """The features' columns, and of one batch's rows those that are in order."""
    keep: dict[str, list[Reader]] = {column: [] for column in job.features.columns}
    loader = loader_of(job, split, ranks, trained_on=state.inputs, keep=keep)
    cuts, size = next(loader.cuts())
    batch = loader.batch(cuts, size)
    table = rows_of(cuts).select(job.features.columns)
    return replace(loader.columns, labels={}, group_by=None), table.filter(
        pa.array(batch.weights[: len(table)].numpy() > 0)
    )


@contextmanager
def _written(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder that gets its name when it is whole."""
    if output.exists() and not output.is_dir():
        raise ArtefactError(f"--out {output}: is a file; name a folder")
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise ArtefactError(f"--out {output}: is not empty; --overwrite replaces it")
        if not (output / MANIFEST).is_file():
            raise ArtefactError(f"--out {output}: is no artefact, and is not replaced; name another folder")
    part = output.with_name(f".{output.resolve().name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if output.is_dir():
            shutil.rmtree(output)
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_vocabularies(columns: Columns, folder: Path) -> None:
    for name, vocabulary in columns.vocabularies.items():
        path = vocabulary_of(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(_lines(vocabulary), encoding="utf-8", newline="\n")


def _lines(vocabulary: Vocabulary) -> str:
    return "".join(f"{word}\n" for word in vocabulary.words.to_pylist())


def _sample(columns: Columns, table: pa.Table, folder: Path, function: Function, device: torch.device) -> Sample:
    pq.write_table(table, folder / SAMPLE)
    tensors = inputs_of(columns, table, device)
    with torch.no_grad():
        predictions = function(*tensors)["predictions"]
    return Sample(
        inputs={spec.name: tensor.tolist() for spec, tensor in zip(input_specs(columns), tensors, strict=True)},
        predictions=predictions.tolist(),
    )


def inputs_of(columns: Columns, table: pa.Table, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Rows that are in order, as the program takes them."""
    block = columns.converted(table, RowFaults(len(table)))
    return arguments(columns.batch(block).to(device))


def input_specs(columns: Columns) -> list[TensorSpec]:
    dense, sparse = columns.features.dense, columns.features.sparse
    specs = [
        TensorSpec(name="dense", shape=["B", len(dense)], dtype="float32", columns=[one.name for one in dense]),
        TensorSpec(name="values", shape=["N"], dtype="int64"),
        TensorSpec(name="lengths", shape=[len(sparse), "B"], dtype="int32", columns=[one.name for one in sparse]),
    ]
    weights = TensorSpec(name="weights", shape=["N"], dtype="float32")
    return [*specs, weights] if columns.features.is_weighted else specs


def _manifest(
    job: JobConfig,
    columns: Columns,
    state: JobState,
    checkpoint: Path,
    sample: Sample,
    precision: Precision,
    device: torch.device,
    folder: Path,
) -> Manifest:
    names = [task.name for task in job.tasks]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
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
        ids_hang_on=state.inputs,
        versions={name: metadata.version(name) for name in ("mtlrec", "torch", "torchrec")} | _fbgemm(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        sha256={path.relative_to(folder).as_posix(): checksum(path) for path in files},
        sample=sample,
        job=job.dump(),
    )


def _fbgemm() -> dict[str, str]:
    """Under the name that it is installed by."""
    found = ("fbgemm-gpu-cpu", "fbgemm-gpu")
    return {name: metadata.version(name) for name in found if any(metadata.distributions(name=name))}
