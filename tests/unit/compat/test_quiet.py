"""torch and TorchRec still say on every start what a user can do nothing about."""

import logging
import warnings
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp

from mtlrec.checkpoints.reader import load_tensors
from mtlrec.distributed.process_group import process_group
from mtlrec.training.step import TrainingStep
from tests.support.ranks import run_ranks
from tests.support.toy import collated, toy_job, toy_table

Said = list[tuple[str, str]]
"""The kind of a warning or the name of a logger, and the text."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What a small job says in a process of its own: some of it is said once only."""
    (lines,) = run_ranks(1, listen, tmp_path_factory.mktemp("checkpoint"))
    return lines


def listen(folder: Path) -> Said:
    lines: Said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append((record.name, record.getMessage()))  # type: ignore[method-assign]
    for name in ("", "torch", "torchrec"):
        logging.getLogger(name).addHandler(handler)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        train_save_and_load(folder)
    return lines + [(one.category.__name__, f"{one.filename}: {one.message}") for one in warned]


def train_save_and_load(folder: Path) -> None:
    job = toy_job(sharding={"constraints": {"user": {"types": ["data_parallel"]}}})
    with process_group("cpu") as ranks:
        take_step = TrainingStep(job, ranks, total_steps=1, steps_per_epoch=1)
        take_step(iter([collated(toy_table(64), 64, job)]), 0)
        tensors = {"model": take_step.model.state()}
        dcp.save(tensors, checkpoint_id=folder)
        load_tensors(tensors, folder)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("FutureWarning", "/torchrec/"),
        ("FutureWarning", "Please use DTensor"),
        ("torchrec.", ""),
        ("torch.fx._symbolic_trace", "is_fx_tracing"),
        ("root", "Sharding spec not found"),
    ],
)
def test_it_is_still_said(source: str, text: str, said: Said) -> None:
    found = [line for line in said if line[0].startswith(source) and text in line[1]]
    assert found, f"compat/quiet.py need not hide {source} {text!r} any more"
