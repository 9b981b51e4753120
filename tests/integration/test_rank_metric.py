"""`mtlrec evaluate --rank-metric` and the score that `predict` then writes, of real runs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import ndcg_score

from tests.support.jobs import write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import write_toy

pytestmark = pytest.mark.slow
TASKS = ("click", "buy", "like", "watch")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranked")
    root = write_toy(folder / "data", train=(2000,), valid=1500, test=1200)
    tasks = [
        {"name": "click", "label": "is_click"},
        {"name": "buy", "label": "is_buy", "given": "click"},
        {"name": "like", "label": "is_like", "space": "shown_like"},
        {"name": "watch", "kind": "watch_time", "label": "watch_s", "space": "click", "weight": 0.1},
    ]
    config = write_job(folder / "job.yaml", root, tasks=tasks, metrics={"group_by": "user_id"})
    assert run_cli("train", config, "-o", folder / "run") == 0
    return folder


def evaluated(trained: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run_cli("evaluate", trained / "run", "--json", *words) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def predicted(trained: Path, *words: str) -> dict[str, np.ndarray]:
    out = trained / "scores.parquet"
    assert run_cli("predict", trained / "run", "--input", trained / "data" / "test", "-o", out, *words) == 0
    table = pq.read_table(out)
    wanted = ["fused_score", "is_click", "is_buy", *(f"pred_{task}" for task in TASKS)]
    return {name: np.array(table[name], np.float64) for name in wanted} | {
        "user_id": np.array(table["user_id"].fill_null(-1))
    }


def test_what_is_searched_is_kept_and_predicted(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--rank-metric", "ndcg@5", "--relevance", "click,buy=3")
    found = evaluated(trained, capsys, *words)
    ranking = found["ranking"]
    assert (ranking["metric"], ranking["relevance"]) == ("ndcg@5", {"click": 1.0, "buy": 3.0})
    assert set(ranking["exponents"]) == set(TASKS)
    assert sum(ranking["exponents"].values()) == pytest.approx(1, abs=1e-3)
    valid = ranking["tasks"]["valid"]
    assert set(valid) == set(TASKS)
    best = max(valid, key=lambda task: valid[task]["ndcg@5"]["mean"])
    assert ranking["best_alone"] == best
    fused = ranking["fused"]["valid"]["ndcg@5"]
    assert fused["mean"] >= max(valid[best]["ndcg@5"]["mean"], ranking["all_alike"]["valid"]["ndcg@5"]["mean"]) - 1e-4
    assert fused["half_width"] > 0
    assert 0 < ranking["random_order"]["valid"]["ndcg@5"]["mean"] < fused["mean"]
    assert evaluated(trained, capsys)["test"] == found["test"], "the usual metrics are as they were"

    rows = predicted(trained)
    product = np.prod([rows[f"pred_{task}"] ** power for task, power in ranking["exponents"].items()], axis=0)
    np.testing.assert_allclose(rows["fused_score"], product, rtol=1e-4)
    test, per_user = {"fused": ranking["fused"]["test"], "alone": ranking["tasks"]["test"][best]}, {}
    for way, score in (("fused", rows["fused_score"]), ("alone", rows[f"pred_{ranking['best_alone']}"])):
        ndcgs, hits = [], []
        for user in set(rows["user_id"]) - {-1}:  # of rows without a user nobody's order can be told
            mine = rows["user_id"] == user
            worth = rows["is_click"][mine] + 3.0 * rows["is_buy"][mine]
            if np.ptp(worth) > 0:
                ndcgs.append(ndcg_score([worth], [score[mine]], k=5))
                hits.append((worth[np.argsort(-score[mine])][:5] > 0).any())
        assert ranking["users"]["test"] == len(ndcgs)
        per_user[way] = np.array(ndcgs)
        assert test[way]["ndcg@5"]["mean"] == pytest.approx(np.mean(ndcgs), abs=1e-5)
        assert test[way]["hit_rate@5"]["mean"] == pytest.approx(np.mean(hits))
        expected = 1.96 * np.std(ndcgs, ddof=1) / np.sqrt(len(ndcgs))
        assert test[way]["ndcg@5"]["half_width"] == pytest.approx(expected, rel=1e-4)
    gains = per_user["fused"] - per_user["alone"]
    found = ranking["gains"]["test"]["ndcg@5"]
    assert found["mean"] == pytest.approx(gains.mean(), abs=1e-5)
    assert found["half_width"] == pytest.approx(1.96 * gains.std(ddof=1) / np.sqrt(len(gains)), rel=1e-3)


def test_powers_may_be_given(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(trained, capsys, "--rank-metric", "hit_rate@3", "--exponents", "click=1,watch=0.5")["ranking"]
    assert found["exponents"] == {"click": 1.0, "watch": 0.5}
    assert found["relevance"] == {"click": 1.0, "buy": 1.0, "like": 1.0}
    assert list(found["users"]) == ["test"], "nothing is searched, so that the valid split is not read"
    (kept,) = (trained / "run" / "checkpoints").glob("*/fused_score.json")
    assert json.loads(kept.read_text())["metric"] == "ndcg@5", "what was searched stays"
    rows = predicted(trained, "--exponents", "buy=2")
    np.testing.assert_allclose(rows["fused_score"], rows["pred_buy"] ** 2, rtol=1e-4)


def test_it_is_told_in_a_table(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run_cli("evaluate", trained / "run", "--split", "valid", "--rank-metric", "ndcg@3") == 0
    said = capsys.readouterr().out
    assert "order of each user's impressions, worth click + buy + like" in " ".join(said.split())
    assert "fused over " in said
    assert "ndcg@3" in said
    assert "all to one power" in said
    assert "by lot" in said
    assert re.search(r"fused: \w+\^0\.\d+ x \w+\^0\.\d+", said)


@pytest.mark.distributed
def test_two_ranks_find_what_one_does(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--rank-metric", "ndcg@5", "--relevance", "click")
    one = evaluated(trained, capsys, *words)["ranking"]
    two = run_ranks(2, _ranking, str(trained / "run"))[0]
    assert two["users"] == one["users"]
    for task, figures in one["tasks"]["test"].items():
        assert two["tasks"]["test"][task]["ndcg@5"][0] == pytest.approx(figures["ndcg@5"]["mean"], abs=1e-6)
    assert two["fused"]["valid"]["ndcg@5"][0] == pytest.approx(one["fused"]["valid"]["ndcg@5"]["mean"], abs=1e-3)


def _ranking(run: str) -> dict[str, Any]:
    from dataclasses import asdict

    from mtlrec.config.file import job_of
    from mtlrec.distributed.process_group import process_group
    from mtlrec.evaluation.ranking import RankMetric
    from mtlrec.evaluation.ranking_report import ranked_rows, report_on
    from mtlrec.training.loading import loader_of
    from mtlrec.training.sharded import load_run

    job, relevance = job_of(Path(run)), {"click": 1.0}
    with process_group("cpu") as ranks:
        model = load_run(job, Path(run), ranks)
        splits = {
            split: ranked_rows(model, loader_of(job, split, ranks), job, ranks, relevance, split)
            for split in ("valid", "test")
        }
    return asdict(report_on(splits, job, RankMetric("ndcg", 5), relevance, None))


@pytest.mark.distributed
def test_two_ranks_keep_one_score_and_predict_with_it(trained: Path, tmp_path: Path) -> None:
    """Calibrated at the same time: the score is of the model's own probabilities."""
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    (tmp_path / "data").symlink_to(trained / "data")
    words = ["evaluate", str(run), "--rank-metric", "ndcg@5", "--calibrate", "platt"]
    assert run_ranks(2, run_cli, *words) == [0, 0]
    out = str(tmp_path / "run_scores")
    assert run_ranks(2, run_cli, "predict", str(run), "--input", str(tmp_path / "data" / "test"), "-o", out) == [0, 0]
    (kept,) = run.glob("checkpoints/*/fused_score.json")
    exponents = json.loads(kept.read_text())["exponents"]
    rows = pq.read_table(tmp_path / "run_scores")
    raw = tmp_path / "raw.parquet"
    assert run_cli("predict", run, "--input", trained / "data" / "test", "-o", raw, "--raw") == 0
    plain = pq.read_table(raw)
    product = np.prod([np.array(plain[f"pred_{task}"]) ** power for task, power in exponents.items()], axis=0)
    by_row = dict(zip(plain["row"].to_pylist(), product, strict=True))
    np.testing.assert_allclose(rows["fused_score"], [by_row[row] for row in rows["row"].to_pylist()], rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank-metric", "ndcg"], "--rank-metric ndcg: ndcg@K or hit_rate@K, as in ndcg@10"),
        (["--rank-metric", "ndcg@5", "--relevance", "clik"], "--relevance clik: no such task"),
        (["--relevance", "click"], "--relevance click: goes with --rank-metric"),
        (["--exponents", "click=1"], "--exponents click=1: goes with --rank-metric"),
        (["--rank-metric", "ndcg@5", "--set", "metrics.group_by=null"], "--set metrics.group_by=user_id"),
        (["--rank-metric", "ndcg@5", "--set", "data.valid=[]"], "data.valid: --rank-metric searches"),
        (["--rank-metric", "ndcg@5", "--set", "metrics.group_by=row"], "has rows of different worth"),
    ],
)
def test_a_mistake_costs_one_line(
    words: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run_cli("evaluate", trained / "run", *words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said
