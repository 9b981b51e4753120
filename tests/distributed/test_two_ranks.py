"""Jobs on two ranks: evaluated on one, resumed, with fewer rows than ranks, on another number of ranks."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.jobs import curve, final_tensors, killed_after, write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import FUSIONS, toy_tree, write_toy

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


BY_ROWS = {"constraints": {"user": {"types": ["row_wise"]}}}


def on_two_ranks(*arguments: str | Path) -> list[int]:
    return run_ranks(2, run_cli, *arguments)


def last_metrics(run: Path, split: str) -> dict[str, Any]:
    return [record for record in curve(run) if record["kind"] == split][-1]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(value == pytest.approx(b[key], rel=1e-5, nan_ok=True) for key, value in a.items() if value is not None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, one table cut by rows, the other where the planner wants it; five steps an epoch."""
    folder = tmp_path_factory.mktemp("two")
    config = write_job(folder / "job.yaml", write_toy(folder / "data"), sharding=BY_ROWS)
    every = ["--set", "train.checkpoint_every=2", "--set", "train.keep_checkpoints=9"]
    assert on_two_ranks("train", config, "-o", folder / "run", *every) == [0, 0]
    return folder / "run"


def test_trained_on_two_and_evaluated_on_one(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads((trained / "plan.json").read_text())["tables"]
    sharded = [
        table for table in plan.values() if table["sharding_type"] != "data_parallel" and table["ranks"] == [0, 1]
    ]
    assert sharded, "no table is on both ranks in parts, so the test would say little"
    for split in ("test", "valid"):
        assert run_cli("evaluate", trained, "--split", split, "--json") == 0
        alone = json.loads(capsys.readouterr().out)[split]
        together = last_metrics(trained, split)
        for task, metrics in alone.items():
            for name, value in metrics.items():
                assert together[f"{task}/{name}"] == pytest.approx(value, rel=1e-5), (task, name)


def test_evaluating_in_mid_epoch_leaves_training_as_it_was(trained: Path, tmp_path: Path) -> None:
    often = ["--set", "train.eval_every=2", "--set", "data.shuffle_buffer=100"]
    assert on_two_ranks("train", trained.parent / "job.yaml", "-o", tmp_path / "run", *often) == [0, 0]
    lines = [[r for r in curve(run) if r["kind"] == "train"] for run in (tmp_path / "run", trained)]
    assert lines[0] == lines[1]
    assert len([r for r in curve(tmp_path / "run") if r["kind"] == "valid"]) == 5


def test_two_ranks_resume_bitwise(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for path in sorted((run / "checkpoints").iterdir())[3:]:  # what a run killed after step 6 leaves: mid-epoch
        shutil.rmtree(path)
    every = ["--set", "train.checkpoint_every=2", "--set", "train.keep_checkpoints=9"]
    assert on_two_ranks("train", trained.parent / "job.yaml", "-o", run, *every, "--resume") == [0, 0]
    assert curve(run) == curve(trained)
    before, after = final_tensors(trained), final_tensors(run)
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)


def test_batch_norm_is_one_model_on_all_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each rank's statistics are of its own rows; what is evaluated and saved is the mean of both."""
    fusion = {"model": {"fusion": FUSIONS["batch_norm"]}}
    config, run = write_job(tmp_path / "job.yaml", write_toy(tmp_path / "data"), **fusion), tmp_path / "run"
    every = ["--set", "train.checkpoint_every=2", "--set", "train.keep_checkpoints=9", "--set", "train.eval_every=3"]
    assert on_two_ranks("train", config, "-o", run, *every) == [0, 0]
    before, weights = curve(run), final_tensors(run)
    assert any("running_var" in name for name in weights)
    assert run_cli("evaluate", run, "--split", "test", "--json") == 0
    alone, together = json.loads(capsys.readouterr().out)["test"], last_metrics(run, "test")
    for task, metrics in alone.items():
        for name, value in metrics.items():
            assert together[f"{task}/{name}"] == pytest.approx(value, rel=1e-5), (task, name)

    killed_after(run, 6)
    assert on_two_ranks("train", config, "-o", run, *every, "--resume") == [0, 0]
    assert curve(run) == before
    again = final_tensors(run)
    assert weights.keys() == again.keys()
    assert all((weights[key] == again[key]).all() for key in weights)


def test_batch_norm_is_evaluated_in_mid_epoch_as_it_would_be_saved(tmp_path: Path) -> None:
    """Whether a checkpoint is due then or not."""
    config = write_job(tmp_path / "job.yaml", write_toy(tmp_path / "data"), model={"fusion": FUSIONS["batch_norm"]})
    found = []
    for run, saved_every in ((tmp_path / "saved", 3), (tmp_path / "unsaved", 100)):
        often = ["--set", "train.eval_every=3", "--set", f"train.checkpoint_every={saved_every}"]
        assert on_two_ranks("train", config, "-o", run, *often, "--set", "train.max_steps=4") == [0, 0]
        found.append([record for record in curve(run) if record["kind"] == "valid"])
    assert [record["step"] for record in found[0]] == [3, 4]
    assert found[0] == found[1]


def test_resuming_on_another_world_size(tmp_path: Path) -> None:
    """Two ranks, then one, then three, all in one epoch: as many steps as the rows that are left make."""
    config, run = write_job(tmp_path / "job.yaml", write_toy(tmp_path / "data")), tmp_path / "run"
    every = ["--set", "train.checkpoint_every=1", "--set", "train.keep_checkpoints=99", "--set", "train.epochs=1"]
    assert on_two_ranks("train", config, "-o", run, *every) == [0, 0]
    killed_after(run, 2)  # 2 steps of 2 ranks and 64 rows: 301 of 557 rows are left, 5 steps for one rank
    assert run_cli("train", config, "-o", run, *every, "--resume") == 0
    assert position(run) == (7, {"epoch": 1, "phases": []})
    killed_after(run, 4)  # 173 rows are left, 58 for each of three ranks
    assert run_ranks(3, run_cli, "train", config, "-o", run, *every, "--resume") == [0, 0, 0]
    assert position(run) == (5, {"epoch": 1, "phases": []})
    assert [record["step"] for record in curve(run) if record["kind"] == "train"] == [1, 2, 3, 4, 5]


def position(run: Path) -> tuple[int, dict[str, Any]]:
    """Of the last checkpoint: steps done, and where it stands in the data."""
    last = max((run / "checkpoints").iterdir())
    state = json.loads((last / "job.json").read_text())
    return state["step"], state["position"]


def test_a_warm_start_reaches_every_shard(trained: Path, tmp_path: Path) -> None:
    """Row- and column-wise shards of a grown table, read by the rank that holds them."""
    tree = toy_tree(trained.parent / "data", tables={"user": {"rows": 75, "dim": 8}})
    tree["sharding"] = {"constraints": {"user": {"types": ["row_wise"]}, "item": {"types": ["column_wise"]}}}
    tree["optim"] = {"sparse": {"lr": 1e-12}, "dense": {"lr": 1e-12}}
    tree["train"] |= {"max_steps": 1}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(tree))
    assert on_two_ranks("train", tmp_path / "new.yaml", "-o", tmp_path / "new", "--init-from", trained) == [0, 0]
    before, after = final_tensors(trained), final_tensors(tmp_path / "new")
    user, item = (
        f"model.model.sparse_arch.collections.bags.embedding_bags.{table}.weight" for table in ("user", "item")
    )
    np.testing.assert_allclose(after[user][:50], before[user], atol=1e-6)
    np.testing.assert_allclose(after[item], before[item], atol=1e-6)
    assert (after[user][50:] != 0).any(dim=1).all()


def test_two_ranks_predict_what_one_does(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = trained.parent / "data" / "train"
    assert run_cli("predict", trained, "--input", rows, "-o", tmp_path / "one.parquet", "--json") == 0
    assert json.loads(capfd.readouterr().out)["rows"] == 557
    assert on_two_ranks("predict", trained, "--input", rows, "-o", tmp_path / "two", "--json") == [0, 0]
    assert json.loads(capfd.readouterr().out)["rows"] == 557
    one, two = pq.read_table(tmp_path / "one.parquet"), pq.read_table(tmp_path / "two")
    assert two["row"].equals(one["row"])
    np.testing.assert_allclose(two["pred_buy"], one["pred_buy"], rtol=1e-5)


def test_a_mistake_on_the_first_rank_stops_all(trained: Path, tmp_path: Path) -> None:
    """An existing run, which rank 0 alone looks for: nobody waits in a collective for the others."""
    assert on_two_ranks("train", trained.parent / "job.yaml", "-o", trained) == [2, 1]


def test_fewer_rows_than_ranks_and_an_uneven_end(tmp_path: Path) -> None:
    """One row in the test split: one rank has nothing but padding, and nobody waits for it."""
    root = write_toy(tmp_path / "data", train=(65, 64), valid=3, test=1)
    tree = toy_tree(root, train={"epochs": 1, "timeout_s": 60})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert on_two_ranks("train", tmp_path / "job.yaml", "-o", tmp_path / "run") == [0, 0]
    assert last_metrics(tmp_path / "run", "test")["click/rows"] == 1
    assert last_metrics(tmp_path / "run", "valid")["click/rows"] == 3


def spoil(root: Path) -> None:
    """An id beyond its table in the last row of the train split, which is the last rank's."""
    path = root / "train" / "part-1.parquet"
    table = pq.read_table(path)
    ids = table["item_id"].to_numpy().copy()
    ids[-1] = 1000
    pq.write_table(table.set_column(table.column_names.index("item_id"), "item_id", pa.array(ids)), path)


def test_a_bad_row_on_one_rank_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil(write_toy(tmp_path / "data"))
    config = write_job(tmp_path / "job.yaml", tmp_path / "data")
    in_order = ["--set", "data.shuffle=none"]
    assert on_two_ranks("train", config, "-o", tmp_path / "run", *in_order) == [1, 2]
    said = capfd.readouterr().err
    assert "part-1.parquet: row group 0, row 256: column 'item_id' holds id 1000" in said
    assert "another rank has ended; its own message says why" in said  # and not: waited in vain until train.timeout_s


def test_a_bad_row_is_left_out_and_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil(write_toy(tmp_path / "data"))
    config, run = write_job(tmp_path / "job.yaml", tmp_path / "data"), tmp_path / "run"
    assert on_two_ranks("train", config, "-o", run, "--set", "data.on_error=skip_row") == [0, 0]
    said = capfd.readouterr().err
    assert said.count("part-1.parquet: row group 0, row 256: column 'item_id' holds id 1000") == 1
    assert said.count("1 of 557 rows were left out (data.on_error)") == 2
    assert position(run) == (10, {"epoch": 2, "phases": []})
    scores = tmp_path / "scores.parquet"
    bad = tmp_path / "data" / "train" / "part-1.parquet"
    assert run_cli("predict", run, "--input", bad, "-o", scores) == 0  # as the run's config says
    assert pq.read_table(scores)["pred_click"].is_null().to_pylist() == [False] * 256 + [True]


def test_scores_of_a_job_that_failed_have_no_names(tmp_path: Path) -> None:
    """Replicated tables: the rank without the bad row could finish alone."""
    spoil(write_toy(tmp_path / "data"))
    config, run = write_job(tmp_path / "job.yaml", tmp_path / "data"), tmp_path / "run"
    replicated = {table: {"types": ["data_parallel"]} for table in ("user", "item")}
    options = ["--set", f"sharding.constraints={json.dumps(replicated)}", "--set", "train.max_steps=1"]
    assert run_cli("train", config, "-o", run, *options, "--set", "data.train=[train/part-0.parquet]") == 0
    source = tmp_path / "data" / "train"
    assert on_two_ranks("predict", run, "--input", source, "-o", tmp_path / "scores") == [1, 2]
    assert list((tmp_path / "scores").iterdir()) == []
    with_days = tmp_path / "log"
    for day, shop, country in ((1, "a", "de"), (2, "b", "fr")):
        folder = with_days / f"day={day}" / f"shop={shop}" / f"country={country}"
        folder.mkdir(parents=True)
        shutil.copy(source / "part-0.parquet", folder)
    assert on_two_ranks("predict", run, "--input", with_days, "-o", tmp_path / "scores") == [0, 0]
    schemas = [pq.read_schema(path).names for path in sorted((tmp_path / "scores").iterdir())]
    assert schemas[0] == schemas[1]
    assert schemas[0][-7:-4] == ["day", "shop", "country"]
    assert pq.read_table(sorted((tmp_path / "scores").iterdir())).num_rows == 600
