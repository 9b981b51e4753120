"""`mtlrec diagnose`: of a real run, against gradients and gates taken without it; it changes nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedTensor

from mtlrec import layers
from mtlrec.config.file import job_of
from mtlrec.distributed.process_group import process_group
from mtlrec.training.loading import loader_of
from mtlrec.training.sharded import load_run
from tests.jobs import write_job
from tests.ranks import run_cli, run_ranks
from tests.toy import FUSIONS, write_toy

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
    assert run_cli("diagnose", run, "--json", *words) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_gates_are_those_of_the_models_own_rows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnosed(run, capsys)
    with process_group("cpu") as ranks:
        job = job_of(run)
        model = load_run(job, run, ranks)
        (batch,) = loader_of(job, "valid", ranks).epoch()
        seen = layers.diagnose(model.module.module.model, batch.dense, batch.sparse)
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
        network = model.module.module.model.eval()
        pooled = network.tables(batch.sparse)
        leaf = pooled.values().detach().requires_grad_()
        shown = KeyedTensor(keys=pooled.keys(), length_per_key=pooled.length_per_key(), values=leaf)
        outputs = network.over_arch(batch.dense, shown, batch.sparse)
        loss, _ = model.loss.eval()(outputs, batch.labels, batch.label_mask, batch.weights, leaf)
        (whole,) = torch.autograd.grad(loss, leaf)
    norms = np.array(found["gradient_norm"])
    cosines = np.array(found["gradient_cosine"])
    np.testing.assert_allclose(np.diag(cosines), 1.0, atol=1e-9)
    gram = cosines * norms[:, None] * norms
    assert gram.sum() == pytest.approx(whole.double().square().sum().item(), rel=1e-4)


def test_it_changes_nothing_and_can_look_at_less(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with process_group("cpu") as ranks:
        job = job_of(run)
        model = load_run(job, run, ranks)
        before = {name: tensor.clone() for name, tensor in model.module.module.model.over_arch.state_dict().items()}
        ids = next(iter(loader_of(job, "valid", ranks).epoch())).sparse
        looked_up = model.module.module.model.tables(ids).values().clone()
        from mtlrec.analysis.diagnostics import diagnose_run

        balancing = model.loss.balancing
        found = diagnose_run(model, loader_of(job, "train", ranks), job, ranks, most_batches=2)
        assert found.rows == 400
        assert model.loss.balancing is balancing
        assert torch.equal(model.module.module.model.tables(ids).values(), looked_up)
        after = model.module.module.model.over_arch.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_it_is_told_in_tables(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("diagnose", run, "--split", "test") == 0
    said = capsys.readouterr().out
    assert "level 1, 101 rows" in said
    assert "gradients of the tasks on the pooled embeddings" in said
    assert run_cli("diagnose", run, "--split", "tset") == 2
    assert "--split tset: no such split" in capsys.readouterr().err
    assert run_cli("diagnose", run.parent) == 2
    assert "no run" in capsys.readouterr().err


def _on_two_ranks(run: str, split: str, batch_size: int) -> Any:
    from mtlrec.analysis.diagnostics import diagnose_run

    job = job_of(Path(run))
    job = job.model_copy(update={"data": job.data.model_copy(update={"batch_size": batch_size})})
    with process_group("cpu") as ranks:
        model = load_run(job, Path(run), ranks)
        return diagnose_run(model, loader_of(job, split, ranks), job, ranks)


@pytest.mark.distributed
def test_two_ranks_see_what_one_does(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = diagnosed(run, capsys)
    found, other = run_ranks(2, _on_two_ranks, str(run), "valid", 75)
    assert found == other
    assert found.rows == one["rows"]
    for level, alone in zip(found.levels, one["levels"], strict=True):
        np.testing.assert_allclose(level.gate, alone["gate"], atol=1e-6)
        np.testing.assert_allclose(level.norm, alone["norm"], rtol=1e-5)
    np.testing.assert_allclose(found.gradient_norm, one["gradient_norm"], rtol=1e-4)
    np.testing.assert_allclose(found.gradient_cosine, one["gradient_cosine"], atol=1e-4)


@pytest.mark.distributed
def test_rows_that_fill_up_a_batch_count_nowhere(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 101 rows one rank has 51, so the other's second batch of 50 is one that stands for none."""
    one = diagnosed(run, capsys, "--split", "test")
    found, _ = run_ranks(2, _on_two_ranks, str(run), "test", 50)
    assert found.rows == one["rows"] == 101
    for level, alone in zip(found.levels, one["levels"], strict=True):
        np.testing.assert_allclose(level.gate, alone["gate"], atol=1e-6)
        np.testing.assert_allclose(level.zeros, alone["zeros"], atol=1e-6)
