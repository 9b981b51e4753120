"""Plans for machines that are not there: what is added up, what does not fit, and that a real job gets the same one."""

import json
from pathlib import Path

import pytest

from mtlrec.distributed.estimate import GIB, _spans
from tests.support.jobs import write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import write_toy


def planned(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict:
    capsys.readouterr()
    assert run_cli("plan", *arguments, "--json") == 0
    found: dict = json.loads(capsys.readouterr().out)
    return found


def test_criteo_on_64_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "criteo", "--nodes", "8", "--gpus-per-node", "8", "--hbm-gb", "80")
    assert len(found["ranks"]) == 64
    assert len(found["tables"]) == 26
    assert sum(rank["hbm_gb"] for rank in found["ranks"]) == pytest.approx(sum(t["hbm_gb"] for t in found["tables"]))
    assert max(rank["hbm_gb"] for rank in found["ranks"]) < found["usable_gb"] < 80
    for table in found["tables"]:
        copies = len(set(table["ranks"])) if table["sharding_type"] == "data_parallel" else 1
        assert table["hbm_gb"] >= copies * table["rows"] * table["dim"] * 4 / GIB
    times = [sum(rank["ms"].values()) for rank in found["ranks"]]
    assert found["imbalance"] == pytest.approx(max(times) / (sum(times) / 64))
    assert times[found["slowest_rank"]] == max(times)


def test_what_does_not_fit_is_named_with_what_would_help(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["criteo", "--hbm-gb", "8", "--ddr-gb", "2"]
    assert run_cli("plan", *small) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "no plan for 8 ranks of 8 GB and 2 GB of their host: the weights alone are 97.4 GB, of which C1" in said[0]
    assert "take more ranks or memory" in said[0]
    constraint = "sharding.constraints={C1: {types: [table_wise], kernels: [fused]}}"
    assert run_cli("plan", *small, "--nodes", "8", "--set", constraint) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "loosen sharding.constraints (row_wise and fused_uvm_caching ask least of a rank)" in said[0]


def test_large_tables_go_to_the_host_where_the_gpus_are_small(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "criteo", "--hbm-gb", "8")
    on_host = [table["table"] for table in found["tables"] if table["compute_kernel"] == "fused_uvm_caching"]
    assert set(on_host) <= {"C1", "C10", "C20", "C21", "C22"}
    assert on_host


def test_on_cpu_a_table_is_cut_only_where_it_would_not_fit_whole(capsys: pytest.CaptureFixture[str]) -> None:
    on_cpu = ["criteo", "--device", "cpu", "--gpus-per-node", "8"]
    whole = planned(capsys, *on_cpu, "--ddr-gb", "128")
    assert {table["sharding_type"] for table in whole["tables"]} <= {"table_wise", "data_parallel"}
    cut = planned(capsys, *on_cpu, "--ddr-gb", "19")  # C1 alone is 19.1 GiB, and a part of the memory is kept free
    types = {table["table"]: table["sharding_type"] for table in cut["tables"]}
    assert types["C1"] not in ("table_wise", "data_parallel")
    assert max(rank["ddr_gb"] for rank in cut["ranks"]) <= cut["usable_gb"]
    alone = planned(capsys, "criteo", "--device", "cpu", "--gpus-per-node", "1", "--ddr-gb", "200")
    assert {table["sharding_type"] for table in alone["tables"]} == {"table_wise"}


def test_a_job_is_planned_as_it_was_foretold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path / "job.yaml", write_toy(tmp_path / "data"), train={"max_steps": 1})
    options = ["--device", "cpu", "--gpus-per-node", "2"]
    found = planned(capsys, config, *options)
    assert run_cli("plan", config, *options) == 0
    assert "embedding part of a step, as TorchRec estimates it" in capsys.readouterr().out
    assert run_ranks(2, run_cli, "train", config, "-o", tmp_path / "run") == [0, 0]
    made = json.loads((tmp_path / "run" / "plan.json").read_text())["tables"]
    for table in found["tables"]:
        assert made[table["table"]]["sharding_type"] == table["sharding_type"]
        assert sorted(made[table["table"]]["ranks"]) == sorted(set(table["ranks"]))


@pytest.mark.parametrize(("ranks", "spans"), [([0], "0"), ([3, 1, 2, 9, 1], "1-3, 9"), ([], "")])
def test_ranks_as_spans(ranks: list[int], spans: str) -> None:
    assert _spans(ranks) == spans
