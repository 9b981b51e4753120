"""Saved by some ranks under one plan, loaded by others under another: the same states, the same further steps.

Plans mix sharding types over the tables, of which one is of weighted ids, in a collection of its own. Every rank count
and plan trains on the same global batches.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from mtlrec.batch import Batch
from mtlrec.checkpoints.table_states import mixing
from mtlrec.compat.dcp import pieces
from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import Ranks, process_group
from mtlrec.training.loading import loader_of
from mtlrec.training.saving import Saving
from mtlrec.training.trainer import Trainer
from tests.support.jobs import final_tensors
from tests.support.ranks import run_ranks
from tests.support.toy import collated, toy_job, toy_table, write_toy

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BEFORE, AFTER, GLOBAL_BATCH = 10, 20, 48
Plan = dict[str, str]
"""Sharding type by table."""

SAVED: Plan = {"user": "data_parallel", "item": "column_wise", "recent": "row_wise"}
OTHERS: dict[str, tuple[int, Plan]] = {
    "one rank": (1, {"user": "table_wise", "item": "table_wise", "recent": "data_parallel"}),
    "three ranks": (3, {"user": "row_wise", "item": "data_parallel", "recent": "table_wise"}),
    "columns for rows": (2, {"user": "column_wise", "item": "row_wise", "recent": "table_column_wise"}),
    "grid": (4, {"user": "grid_shard", "item": "table_row_wise", "recent": "column_wise"}),
}
WITHOUT_COLUMNS = {"user": "data_parallel", "item": "table_wise", "recent": "row_wise"}
SPARSE: dict[str, Plan] = {"adagrad": SAVED, "sgd": SAVED, "rowwise_adagrad": WITHOUT_COLUMNS}
ROWS_ONLY: Plan = {"user": "row_wise", "item": "row_wise", "recent": "data_parallel"}


def job_of(plan: Plan, sparse: str, root: Path) -> JobConfig:
    return toy_job(
        root,
        data={"root": str(root), "batch_size": 64},
        tables={name: {"rows": 50, "dim": 16} for name in plan},
        features={
            "sparse": [
                {"name": "user_id", "table": "user"},
                {"name": "item_id", "table": "item"},
                {"name": "recent_items", "table": "recent", "pooling": "mean", "weights": "recent_weights"},
            ]
        },
        optim={"sparse": {"kind": sparse, "lr": 0.1}, "dense": {"kind": "adam", "lr": 0.002}},
        sharding={"constraints": {table: {"types": [kind]} for table, kind in plan.items()}},
    )


def batches(job: JobConfig, steps: range, rank: int, world_size: int) -> list[Batch]:
    share = GLOBAL_BATCH // world_size
    tables = [toy_table(GLOBAL_BATCH, seed=step).slice(rank * share, share) for step in steps]
    return [collated(table, GLOBAL_BATCH, job) for table in tables]


def steps(trainer: Trainer, which: range) -> list[list[float]]:
    ranks = trainer.ranks
    stream: Any = iter(batches(trainer.job, which, ranks.rank, ranks.world_size))
    losses = []
    for step in which:
        trainer.optimizers.set_learning_rates(step)
        losses.append(trainer.pipeline.progress(stream).report.losses.tolist())
    trainer.pipeline.reset()
    return losses


def trainer_and_saving(job: JobConfig, run: Path, ranks: Ranks) -> tuple[Trainer, Saving]:
    return Trainer(job, ranks, loader_of(job, "train", ranks, training=True)), Saving(job, run, ranks)


def save(trainer: Trainer, saving: Saving, step: int) -> None:
    trainer.step = step
    saving.save(trainer)
    saving.checkpoints.wait()


def train_and_go_on(kinds: dict[str, Plan], folder: Path, root: Path) -> dict[str, list[list[float]]]:
    """Saves after BEFORE steps and goes on, per sparse optimizer; saves again at the end, elsewhere."""
    losses = {}
    with process_group("cpu", 60) as ranks:
        for sparse, plan in kinds.items():
            pieces.PIECE_BYTES = 500 if sparse == "adagrad" else 2**28  # of seven rows each
            trainer, saving = trainer_and_saving(job_of(plan, sparse, root), folder / sparse, ranks)
            steps(trainer, range(BEFORE))
            save(trainer, saving, BEFORE)
            losses[sparse] = steps(trainer, range(BEFORE, BEFORE + AFTER))
            saving.checkpoints.folder = folder / f"{sparse}_end" / "checkpoints"
            save(trainer, saving, BEFORE + AFTER)
    return losses


def resume_and_go_on(
    kinds: dict[str, Plan], folder: Path, root: Path, name: str
) -> tuple[dict[str, list[list[float]]], dict[str, set[str]]]:
    """From the checkpoint; saved at once, and again at the end."""
    losses, types = {}, {}
    with process_group("cpu", 60) as ranks:
        for sparse, plan in kinds.items():
            trainer, saving = trainer_and_saving(job_of(plan, sparse, root), folder / sparse, ranks)
            saving.resume(trainer)
            saving.checkpoints.folder = folder / f"{sparse}_{name}" / "checkpoints"
            save(trainer, saving, BEFORE)
            types[sparse] = {table.sharding_type for table in trainer.model.plan.tables.values()}
            losses[sparse] = steps(trainer, range(BEFORE, BEFORE + AFTER))
            saving.checkpoints.folder = folder / f"{sparse}_{name}_end" / "checkpoints"
            save(trainer, saving, BEFORE + AFTER)
    return losses, types


@pytest.fixture(scope="module")
def unresharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, list[list[float]]]]:
    folder = tmp_path_factory.mktemp("reshard")
    root = write_toy(folder / "data")
    first, second = run_ranks(2, train_and_go_on, SPARSE, folder, root)
    assert first == second
    for sparse in SPARSE:
        before, after = (without_random_state(folder / run) for run in (sparse, f"{sparse}_end"))
        assert not any(torch.equal(tensor, after[name]) for name, tensor in before.items() if "momentum" in name)
    return folder, root, first


def test_large_shards_are_saved_in_pieces(unresharded: Any) -> None:
    """The column-wise table of 50 x 16: four times rows of 8 columns, fifteen at a time."""
    folder, _, _ = unresharded
    for sparse, rows in (("adagrad", [15, 15, 15, 5] * 2), ("sgd", [50] * 2)):
        saved = FileSystemReader(folder / sparse / "checkpoints" / "step_00000010").read_metadata()
        (table,) = (entry for name, entry in saved.state_dict_metadata.items() if name.endswith("item.weight"))
        assert [chunk.sizes[0] for chunk in table.chunks] == rows


def without_random_state(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in final_tensors(run).items() if not name.startswith("random")}


@pytest.mark.parametrize("name", OTHERS)
def test_resharded_equals_unresharded(name: str, unresharded: Any) -> None:
    folder, root, wanted = unresharded
    ranks, plan = OTHERS[name]
    kinds = {sparse: plan if sparse != "rowwise_adagrad" else ROWS_ONLY for sparse in SPARSE}
    for losses, types in run_ranks(ranks, resume_and_go_on, kinds, folder, root, name):
        for sparse in kinds:
            assert types[sparse] == set(kinds[sparse].values())
            torch.testing.assert_close(torch.tensor(losses[sparse]), torch.tensor(wanted[sparse]), rtol=0, atol=1e-6)
    for sparse in kinds:
        saved, loaded = without_random_state(folder / sparse), without_random_state(folder / f"{sparse}_{name}")
        assert saved.keys() == loaded.keys()
        assert any(key.startswith("optimizer.tables") for key in saved) == (sparse != "sgd")
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in saved.items())
        ended = without_random_state(folder / f"{sparse}_{name}_end")
        for key, tensor in without_random_state(folder / f"{sparse}_end").items():
            torch.testing.assert_close(
                ended[key], tensor, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_row_wise_adagrad_under_other_column_cuts(tmp_path: Path) -> None:
    """It keeps a value per row and piece: the same plan goes on exactly, another takes means by width."""
    root = write_toy(tmp_path / "data")
    columns = dict.fromkeys(("user", "item", "recent"), "column_wise")
    (wanted, _) = run_ranks(2, train_and_go_on, {"rowwise_adagrad": columns}, tmp_path, root)
    (again, _), _ = run_ranks(2, resume_and_go_on, {"rowwise_adagrad": columns}, tmp_path, root, "same")
    assert again == wanted
    whole = dict.fromkeys(columns, "row_wise")
    run_ranks(3, resume_and_go_on, {"rowwise_adagrad": whole}, tmp_path, root, "whole")
    finer = dict.fromkeys(columns, "column_wise")
    run_ranks(4, resume_and_go_on, {"rowwise_adagrad": finer}, tmp_path, root, "finer")
    saved = without_random_state(tmp_path / "rowwise_adagrad")
    states = [key for key in saved if key.startswith("optimizer.tables")]
    assert len(states) == 3
    for key in states:
        value = saved[key]
        assert value.shape == (50, 2)
        assert not torch.equal(value[:, 0], value[:, 1])
        mean = without_random_state(tmp_path / "rowwise_adagrad_whole")[key]
        torch.testing.assert_close(mean, value.mean(dim=1, keepdim=True))
        pieces = without_random_state(tmp_path / "rowwise_adagrad_finer")[key]
        torch.testing.assert_close(pieces, value.repeat_interleave(2, dim=1))


def test_pieces_that_overlap_are_mixed_by_width() -> None:
    three, two = [(0, 4), (4, 4), (8, 4)], [(0, 6), (6, 6)]
    wanted = torch.tensor([[2 / 3, 0], [1 / 3, 1 / 3], [0, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(mixing(three, two), wanted)
