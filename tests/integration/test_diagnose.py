"""`mtlrec diagnose`: of a real run, against gradients and gates taken without it; it changes nothing."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtlrec import layers
from mtlrec.config.file import job_of
from mtlrec.distributed.process_group import process_group
from mtlrec.evaluation.slices import kept_for_slices
from mtlrec.training.loading import loader_of
from mtlrec.training.sharded import load_run
from tests.support.jobs import curve, final_tensors, write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import FUSIONS, write_toy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diagnose")
    model = {"fusion": FUSIONS["ple"]}
    weighting = {"weighting": {"kind": "uncertainty"}}
    config = write_job(folder / "job.yaml", write_toy(folder), model=model, loss=weighting, data={"batch_size": 200})
    assert run_cli("train", config, "-o", folder / "run") == 0
    return folder / "run"


def diagnosed(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run_cli("diagnose", run, "--json", *words) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_gates_are_those_of_the_models_own_rows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnosed(run, capsys)
    with process_group("cpu") as ranks:
        job = job_of(run)
        model = load_run(job, run, ranks)
        (batch,) = loader_of(job, "valid", ranks).epoch()
        seen = layers.diagnose(model.network, batch.dense, batch.sparse)
    assert found["rows"] == 150 == len(batch)
    assert [level["name"] for level in found["levels"]] == ["level 1", "level 2"]
    for level, (gates, weights, norms, zeros) in zip(found["levels"], seen.values(), strict=True):
        np.testing.assert_allclose(level["gate"], gates.mean(0), atol=1e-6)
        np.testing.assert_allclose(level["deviation"], gates.std(0, correction=0), atol=1e-4)
        np.testing.assert_allclose(level["weight"], weights.mean(0), atol=1e-6)
        entropy = -torch.xlogy(gates, gates).sum(-1).mean(0) / np.log((gates[0] > 0).sum(-1))
        np.testing.assert_allclose(level["entropy"], entropy, atol=1e-5)
        np.testing.assert_allclose(level["peaked"], (gates.max(-1).values > 0.9).float().mean(0), atol=1e-6)
        np.testing.assert_allclose(level["norm"], norms.mean(0), rtol=1e-5)
        np.testing.assert_allclose(level["zeros"], zeros.mean(0), atol=1e-6)
    first, last = found["levels"]
    assert first["gates"] == ["click", "buy", "like", "ratio", "shared"]
    assert last["gates"] == ["click", "buy", "like", "ratio"]
    assert first["experts"] == ["click", "buy 1", "buy 2", "like", "ratio", "shared 1", "shared 2"]


def test_gradients_add_up_to_that_of_the_whole_loss(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnosed(run, capsys)
    with process_group("cpu") as ranks:
        job = job_of(run)
        model = load_run(job, run, ranks)
        (batch,) = loader_of(job, "valid", ranks).epoch()
        network = model.network.eval()
        pooled = network.sparse_arch(batch.sparse)
        leaves = {name: vector.detach().requires_grad_() for name, vector in pooled.items()}
        outputs = network.over_arch(batch.dense, leaves)
        loss, _ = model.loss.eval()(outputs, batch.targets, batch.in_space, batch.sample_weights)
        whole = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(leaves.values()))])
    norms = np.array(found["gradient_norm"])
    cosines = np.array(found["gradient_cosine"])
    np.testing.assert_allclose(np.diag(cosines), 1.0, atol=1e-9)
    gram = cosines * norms[:, None] * norms
    assert gram.sum() == pytest.approx(whole.double().square().sum().item(), rel=1e-4)


def test_it_changes_nothing_and_can_look_at_less(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with process_group("cpu") as ranks:
        job = job_of(run)
        model = load_run(job, run, ranks)
        before = {name: tensor.clone() for name, tensor in model.network.over_arch.state_dict().items()}
        ids = next(iter(loader_of(job, "valid", ranks).epoch())).sparse
        looked_up = {name: vector.clone() for name, vector in model.network.sparse_arch(ids).items()}
        from mtlrec.diagnosis.diagnosis import diagnose_run

        balancing = model.loss.balancing
        found = diagnose_run(model, loader_of(job, "train", ranks), job, ranks, most_batches=2)
        assert found.rows == 400
        assert model.loss.balancing is balancing
        again = model.network.sparse_arch(ids)
        assert all(torch.equal(again[name], vector) for name, vector in looked_up.items())
        after = model.network.over_arch.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_tables_are_counted_and_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnosed(run, capsys)
    table = pq.read_table(run.parent / "valid")
    items = [*table["item_id"].to_pylist(), *(item for row in table["recent_items"].to_pylist() for item in row[-5:])]
    ids = {"user": [user for user in table["user_id"].to_pylist() if user is not None], "item": items}
    weights = final_tensors(run)
    for use in found["tables"]:
        mine = Counter(ids[use["name"]])
        assert (use["rows"], use["lookups"], use["seen"]) == (
            {"user": 50, "item": 40}[use["name"]],
            len(ids[use["name"]]),
            len(mine),
        )
        ((hottest, often),) = mine.most_common(1)  # a hundredth of so few rows is one
        assert use["hot_share"] == pytest.approx(often / len(ids[use["name"]]))
        norms = (
            weights[f"model.model.sparse_arch.collections.bags.embedding_bags.{use['name']}.weight"]
            .double()
            .norm(dim=1)
        )
        assert use["hot_norm"] in [pytest.approx(norms[row].item(), rel=1e-4) for row, n in mine.items() if n == often]
        rest = [row for row in mine if row != hottest]
        if list(mine.values()).count(often) == 1:
            assert use["seen_norm"] == pytest.approx(norms[rest].mean().item(), rel=1e-4)
        unseen = [row for row in range(use["rows"]) if row not in mine]
        assert (use["other_norm"] is None) == (not unseen)
        assert use["drawn_norm"] == pytest.approx(0.05 * math.sqrt(8), rel=0.05)


def test_calibration_curves_and_slices_are_of_the_rows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnosed(run, capsys, "--slice", "shown_like")
    out = run.parent / "scores.parquet"
    assert run_cli("predict", run, "--input", run.parent / "valid", "-o", out, "--raw") == 0
    rows = pq.read_table(out)
    clicks, scores = np.array(rows["is_click"], float), np.array(rows["pred_click"])
    curve = found["curves"]["click"]
    assert set(found["curves"]) == {"click", "buy", "like"}
    assert sum(curve["rows"]) == pytest.approx(150)
    assert curve["positives"] == clicks.sum()
    assert curve["predicted"] == sorted(curve["predicted"])
    assert np.dot(curve["predicted"], curve["rows"]) == pytest.approx(scores.sum(), rel=1e-3)
    assert np.dot(curve["observed"], curve["rows"]) == pytest.approx(clicks.sum())
    order = np.argsort(scores)
    ends = np.cumsum(curve["rows"]).round().astype(int)
    for part, observed in zip(np.split(clicks[order], ends[:-1]), curve["observed"], strict=True):
        assert observed == pytest.approx(part.mean())
    slices = found["slices"]
    assert (slices["column"], slices["names"], slices["tasks"]) == ("shown_like", ["0", "1"], ["click", "buy", "like"])
    for index, value in enumerate((0, 1)):
        mine = np.array(rows["shown_like"]) == value
        assert slices["rows"][index] == mine.sum()
        assert slices["auc"][0][index] == pytest.approx(roc_auc_score(clicks[mine], scores[mine]), abs=1e-3)
    assert slices["auc"][2][0] is None, "like has no rows where nothing was shown"


def test_a_column_that_is_not_there_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run_cli("diagnose", run, "--slice", "city") == 2
    assert "city" in capsys.readouterr().err.strip().splitlines()[-1]
    assert run_cli("diagnose", run, "--slice", "recent_items") == 2
    assert "recent_items" in (said := capsys.readouterr().err.strip().splitlines()[-1])
    assert "--slice" in said
    assert "numbers, text, dates or booleans" in said


def test_it_is_told_in_tables(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("diagnose", run, "--split", "test", "--slice", "price") == 0
    said = capsys.readouterr().out
    assert "level 1, 101 rows" in said
    assert "gradients of the tasks on the pooled embeddings" in said
    assert "tables: what is looked up" in said
    assert "predicted and observed shares of positives" in " ".join(said.split())
    assert run_cli("diagnose", run, "--split", "tset") == 2
    assert "--split tset: no such split" in capsys.readouterr().err
    assert run_cli("diagnose", run.parent) == 2
    assert "no run" in capsys.readouterr().err


def _on_two_ranks(run: str, split: str, batch_size: int, slice_by: str | None = None) -> Any:
    from mtlrec.diagnosis.diagnosis import diagnose_run

    job = job_of(Path(run))
    job = job.model_copy(update={"data": job.data.model_copy(update={"batch_size": batch_size})})
    with process_group("cpu") as ranks:
        model = load_run(job, Path(run), ranks)
        loader = loader_of(job, split, ranks, keep=kept_for_slices(slice_by))
        return diagnose_run(model, loader, job, ranks, slice_by=slice_by)


@pytest.mark.distributed
def test_two_ranks_see_what_one_does(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = diagnosed(run, capsys, "--slice", "shown_like")
    found, other = run_ranks(2, _on_two_ranks, str(run), "valid", 75, "shown_like")
    assert repr(found) == repr(other)  # a figure may be NaN
    assert found.rows == one["rows"]
    for level, alone in zip(found.levels, one["levels"], strict=True):
        np.testing.assert_allclose(level.gate, alone["gate"], atol=1e-6)
        np.testing.assert_allclose(level.norm, alone["norm"], rtol=1e-5)
    np.testing.assert_allclose(found.gradient_norm, one["gradient_norm"], rtol=1e-4)
    np.testing.assert_allclose(found.gradient_cosine, one["gradient_cosine"], atol=1e-4)
    for use, alone in zip(found.tables, one["tables"], strict=True):
        assert [use.name, use.rows, use.lookups, use.seen] == [
            alone[key] for key in ("name", "rows", "lookups", "seen")
        ]
        assert use.hot_share == pytest.approx(alone["hot_share"])
        assert use.seen_norm == pytest.approx(alone["seen_norm"], rel=1e-5)
    for task, found_curve in found.curves.items():
        np.testing.assert_allclose(found_curve.predicted, one["curves"][task]["predicted"], rtol=1e-3)
    assert found.slices.rows == one["slices"]["rows"]
    np.testing.assert_allclose(found.slices.auc[0], one["slices"]["auc"][0], atol=1e-6)


@pytest.mark.distributed
def test_rows_that_fill_up_a_batch_count_nowhere(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 101 rows one rank has 51, so the other's second batch of 50 is one that stands for none."""
    one = diagnosed(run, capsys, "--split", "test")
    found, _ = run_ranks(2, _on_two_ranks, str(run), "test", 50)
    assert found.rows == one["rows"] == 101
    for level, alone in zip(found.levels, one["levels"], strict=True):
        np.testing.assert_allclose(level.gate, alone["gate"], atol=1e-6)
        np.testing.assert_allclose(level.zeros, alone["zeros"], atol=1e-6)


def test_training_looks_inside_and_is_as_without(run: Path, tmp_path: Path) -> None:
    """The same curve and weights, with dropout and a balancer that counts its steps; TensorBoard has the looks."""
    root = run.parent
    model = {"fusion": FUSIONS["ple"] | {"dropout": 0.2, "gate_dropout": 0.1, "norm": "layer"}}
    loss = {"weighting": {"kind": "dwa", "every": 3}}
    runs = {}
    for every in (0, 4):
        folder = tmp_path / f"every_{every}"
        config = write_job(folder / "job.yaml", root, model=model, loss=loss, train={"diagnose_every": every})
        assert run_cli("train", config, "-o", folder / "run") == 0
        runs[every] = folder / "run"
    assert curve(runs[0]) == curve(runs[4])
    without, with_looks = (final_tensors(runs[every]) for every in (0, 4))
    assert all(torch.equal(with_looks[name], value) for name, value in without.items() if "step" not in name)
    events = EventAccumulator(str(runs[4]), size_guidance={"images": 0, "scalars": 0}).Reload()
    steps = [event.step for event in events.Images("gates/level_1")]
    last = curve(runs[4])[-1]["step"]
    assert steps == [4, 8, 12, 16, last]
    assert [event.step for event in events.Scalars("table_growth/user/hot")] == steps
    assert {"gate_entropy/level_1/click", "gradient_cosine/click/buy"} <= set(events.Tags()["scalars"])
    encoded = events.Images("gradients/cosines")[-1].encoded_image_string
    assert encoded.startswith(b"\x89PNG")
    assert EventAccumulator(str(runs[0])).Reload().Tags()["images"] == []


def test_without_a_valid_split_nothing_is_looked_at(run: Path, tmp_path: Path) -> None:
    config = write_job(
        tmp_path / "job.yaml", run.parent, train={"diagnose_every": 1, "max_steps": 2}, data={"valid": []}
    )
    assert run_cli("train", config, "-o", tmp_path / "run") == 0
    assert EventAccumulator(str(tmp_path / "run")).Reload().Tags()["images"] == []


def test_a_job_whose_tasks_read_no_embeddings_is_looked_into(run: Path, tmp_path: Path, capsys: Any) -> None:
    tasks = [{"name": "click", "label": "is_click", "features": ["age"]}]
    tasks += [{"name": "like", "label": "is_like", "features": ["age", "price"]}]
    model = {"fusion": FUSIONS["adatt_sp"], "heads": {"kind": "independent"}}
    config = write_job(tmp_path / "job.yaml", run.parent, tasks=tasks, model=model, train={"max_steps": 3})
    assert run_cli("train", config, "-o", tmp_path / "run") == 0
    assert diagnosed(tmp_path / "run", capsys)["gradient_norm"] == [0.0, 0.0]


def test_decayed_weights_are_those_of_the_last_step(run: Path, tmp_path: Path, capsys: Any) -> None:
    """like weighs 50 in the first epoch, a fifth of that in the second."""
    weighting = {"kind": "decay", "initial": {"like": 50.0}, "rate": {"like": 0.2}, "unit": "epoch"}
    norms = {}
    for name, loss, epochs in (("static", {}, 2), ("decay", {"weighting": weighting}, 2)):
        train = {"epochs": epochs, "eval_every": 0}
        config = write_job(
            tmp_path / name / "job.yaml",
            run.parent,
            loss=loss,
            train=train,
            optim={"dense": {"lr": 1e-9}, "sparse": {"lr": 1e-9}},
        )
        assert run_cli("train", config, "-o", tmp_path / name / "run") == 0
        norms[name] = diagnosed(tmp_path / name / "run", capsys)["gradient_norm"]
    click, _, like, _ = (decayed / static for decayed, static in zip(norms["decay"], norms["static"], strict=True))
    assert click == pytest.approx(1, rel=1e-3)
    assert like == pytest.approx(10 / 0.5, rel=1e-3)


def test_a_model_that_is_not_finite_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path / "job.yaml", run.parent, train={"max_steps": 1}, data={"valid": [], "test": []})
    assert run_cli("train", config, "-o", tmp_path / "run", "--set", "optim.dense.lr=1e30") == 0
    capsys.readouterr()
    folder = tmp_path / "run" / "config.yaml"
    folder.write_text(folder.read_text().replace("valid: []", "valid: [valid/*.parquet]"))
    assert run_cli("diagnose", tmp_path / "run") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the model's output for click" in said
    assert "part-0.parquet" in said


def test_lookups_of_a_look_are_no_iterations(run: Path) -> None:
    """By which FBGEMM's Adam corrects its averages."""
    from mtlrec.compat.fbgemm.fused_lookups import fused_lookups
    from mtlrec.diagnosis.diagnosis import diagnose_run
    from mtlrec.evaluation.evaluate import evaluate

    with process_group("cpu") as ranks:
        job = job_of(run)
        model = load_run(job, run, ranks)
        lookups = fused_lookups(model.module)
        assert lookups
        for part in lookups:
            part.iter.fill_(7)
            part.iter_cpu.fill_(7)
        diagnose_run(model, loader_of(job, "valid", ranks), job, ranks)
        evaluate(model.module, loader_of(job, "valid", ranks), job, ranks)
        assert [(part.iter.item(), part.iter_cpu.item()) for part in lookups] == [(7, 7)] * len(lookups)
        model.network.sparse_arch(next(iter(loader_of(job, "valid", ranks).epoch())).sparse)
        assert [part.iter_cpu.item() for part in lookups] == [8] * len(lookups), "any other counts"


def _train_with_looks(config: str, output: str) -> int:
    return run_cli("train", config, "-o", output)


@pytest.mark.distributed
def test_two_ranks_look_while_they_train(run: Path, tmp_path: Path) -> None:
    runs = {}
    for every in (0, 3):
        model = {"fusion": FUSIONS["batch_norm"]}
        loss = {"weighting": {"kind": "uncertainty"}}
        folder = tmp_path / f"every_{every}"
        config = write_job(folder / "job.yaml", run.parent, model=model, loss=loss, train={"diagnose_every": every})
        assert run_ranks(2, _train_with_looks, str(config), str(folder / "run")) == [0, 0]
        runs[every] = folder / "run"
    assert curve(runs[0]) == curve(runs[3])
    steps = [event.step for event in EventAccumulator(str(runs[3])).Reload().Images("gates/level_1")]
    assert steps == [3, 6, 9, 10]


@pytest.mark.parametrize("kind", ["independent", "aitm", "dbmtl", "escm2_ips", "escm2_dr"])
def test_every_kind_of_heads_is_looked_into(kind: str, run: Path, tmp_path: Path, capsys: Any) -> None:
    """Some say more in training than in an evaluation, and their losses want it."""
    model = {"fusion": FUSIONS["mmoe"], "heads": {"kind": kind, "tower_hidden": [8]}}
    config = write_job(tmp_path / "job.yaml", run.parent, model=model, train={"max_steps": 2, "diagnose_every": 1})
    assert run_cli("train", config, "-o", tmp_path / "run") == 0
    found = diagnosed(tmp_path / "run", capsys)
    assert all(norm > 0 for norm in found["gradient_norm"])


def test_curves_are_of_true_probabilities_where_negatives_are_sampled(run: Path, tmp_path: Path, capsys: Any) -> None:
    tasks = [
        {"name": "click", "label": "is_click", "negative_sampling_rate": 0.2},
        {"name": "like", "label": "is_like"},
    ]
    model = {"fusion": FUSIONS["mmoe"]}
    config = write_job(tmp_path / "job.yaml", run.parent, model=model, tasks=tasks)
    assert run_cli("train", config, "-o", tmp_path / "run") == 0
    found = diagnosed(tmp_path / "run", capsys)
    out = tmp_path / "scores.parquet"
    assert run_cli("predict", tmp_path / "run", "--input", run.parent / "valid", "-o", out) == 0
    curve_of_click = found["curves"]["click"]
    predicted = np.dot(curve_of_click["predicted"], curve_of_click["rows"])
    assert predicted == pytest.approx(np.array(pq.read_table(out)["pred_click"]).sum(), rel=1e-3)
