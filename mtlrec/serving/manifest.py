"""What lies beside an artifact's program: everything that a caller must know, as JSON, and the files' checksums.

DIR/model.pt2                 the program (`program.py` says what it takes and gives)
DIR/manifest.json             this
DIR/parity.json               what the export compared, and how far apart it was
DIR/sample.parquet            some raw rows
DIR/vocabularies/FEATURE.txt  of features that have one
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import ValidationError

from mtlrec.config import JobConfig
from mtlrec.config.base import Strict
from mtlrec.config.file import parse_config
from mtlrec.data.features.columns import Columns
from mtlrec.errors import ArtifactError
from mtlrec.evaluation.calibration import Calibration
from mtlrec.evaluation.fused_score import FusedScore
from mtlrec.serving.lookup import Precision

MODEL, MANIFEST, PARITY, SAMPLE, VOCABULARIES = (
    "model.pt2",
    "manifest.json",
    "parity.json",
    "sample.parquet",
    "vocabularies",
)


class TensorSpec(Strict):
    name: str
    shape: list[str | int]
    dtype: str
    columns: list[str] = []
    """What its last (dense, predictions) or first (lengths) axis is made of, in order."""


class Sample(Strict):
    """The first rows that the export saw: as tensors, what comes of them, and in `sample.parquet` as they were."""

    inputs: dict[str, list[Any]]
    predictions: list[list[float]]


class Manifest(Strict):
    """See the top of this file. `job` is the run's resolved config: features with their transforms, tables, tasks.

    digest: SHA-256 of all the rest of it
    id_fingerprints: by feature, beside the job (`Columns.id_fingerprints`)
    float_columns: how wide the split's files had them: halffloat, float or double
    capabilities: of the CPU, or the GPU's architecture, that it was compiled on and may use
    """

    format: Literal[1] = 1
    name: str
    run_step: int
    precision: Precision
    device: Literal["cpu", "cuda"]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    tasks: list[dict[str, str | None]]
    calibration: Calibration | None
    fused_score: FusedScore | None
    id_fingerprints: dict[str, str]
    float_columns: dict[str, Literal["halffloat", "float", "double"]]
    versions: dict[str, str]
    capabilities: list[str]
    sha256: dict[str, str]
    sample: Sample
    job: dict[str, Any]
    digest: str = ""

    def write(self, folder: Path) -> None:
        sealed = self.model_copy(update={"digest": self._digest()})
        (folder / MANIFEST).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def _digest(self) -> str:
        return hashlib.sha256(self.model_copy(update={"digest": ""}).model_dump_json().encode()).hexdigest()

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Raises ArtifactError where there is none, or another format's."""
        path = folder / MANIFEST
        if not path.is_file():
            raise ArtifactError(
                f"{folder}: no artifact (it has no {MANIFEST}); `mtlrec export RUN --output DIR` makes one"
            )
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"{path}: {where}: {first['msg']}; export the run again") from None

    def job_config(self, folder: Path, overrides: Sequence[str] = ()) -> JobConfig:
        """The run's job, reading the artifact's own vocabularies. Raises ConfigError for an override."""
        job = parse_config(yaml.safe_dump(self.job), str(folder / MANIFEST), overrides)
        sparse = [
            one.model_copy(update={"vocabulary": str(vocabulary_of(folder.resolve(), one.name))})
            if one.vocabulary is not None
            else one
            for one in job.features.sparse
        ]
        return job.model_copy(update={"features": job.features.model_copy(update={"sparse": sparse})})

    def check_files(self, folder: Path) -> None:
        """Raises ArtifactError where a file is not the one that was exported."""
        if self.digest != self._digest():
            raise ArtifactError(f"{folder / MANIFEST}: is not as it was exported; copy it again")
        for name, expected in self.sha256.items():
            path = folder / name
            if not path.is_file():
                raise ArtifactError(f"{path}: is missing; copy the artifact's whole folder")
            if checksum(path) != expected:
                raise ArtifactError(f"{path}: is not the file that was exported (its SHA-256 differs); copy it again")

    def check_machine(self, folder: Path) -> None:
        """Raises ArtifactError where this machine lacks what compiled code may be made of."""
        lacking = set(self.capabilities) - set(capabilities(torch.device(self.device)))
        if lacking:
            raise ArtifactError(
                f"{folder}: was compiled on a {'CPU' if self.device == 'cpu' else 'GPU'} that has "
                f"{', '.join(sorted(lacking))}, which this one has not; export it on a machine like this one"
            )


def capabilities(device: torch.device) -> list[str]:
    """What compiled code may be made of: a CPU's instruction sets, a GPU's architecture; of no GPU nothing."""
    if device.type == "cuda":
        return ["sm_{}{}".format(*torch.cuda.get_device_capability(device))] if torch.cuda.is_available() else []
    found = torch.cpu.get_capabilities()
    return [str(found["architecture"]), *sorted(name for name, has in found.items() if has is True)]


def vocabulary_of(folder: Path, feature: str) -> Path:
    return folder / VOCABULARIES / f"{feature}.txt"


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_specs(columns: Columns) -> list[TensorSpec]:
    """The tensors that the program takes, in their order (`program.py`)."""
    dense = [feature.name for feature in columns.features.dense]
    specs = [TensorSpec(name="dense", shape=["B", len(dense)], dtype="float32", columns=dense)]
    for name, collection in columns.features.collections.items():
        features, count = collection.features, f"N_{name}"
        specs += [
            TensorSpec(name=f"{name}.values", shape=[count], dtype="int64"),
            TensorSpec(name=f"{name}.lengths", shape=[len(features), "B"], dtype="int32", columns=features),
        ]
        if collection.is_weighted:
            specs.append(TensorSpec(name=f"{name}.weights", shape=[count], dtype="float32"))
    return specs
