"""What a job says of its model and its losses reaches them."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from mtlrec.config import JobConfig
from mtlrec.errors import ConfigError
from mtlrec.heads import DoublyRobustESCM2
from mtlrec.losses import Binary, Regression
from mtlrec.models.build import build_model, build_task_losses, build_train_module, config_errors
from tests.support.toy import FUSIONS, collated, toy_job, toy_table, toy_tree


def test_a_task_sees_its_own_dense_features_alone() -> None:
    tasks = [
        {"name": "click", "label": "is_click"},
        {"name": "buy", "label": "is_buy", "features": ["price", "item_id"]},
    ]
    job = toy_job(tasks=tasks, model={"fusion": FUSIONS["single_task"], "heads": {"kind": "independent"}})
    torch.manual_seed(0)
    model = build_model(job, torch.device("cpu")).eval()
    batch = collated(toy_table(20), job=job)
    older = batch.dense.clone()
    older[:, 0] += 1.0  # age
    with torch.no_grad():
        before, after = model(batch.dense, batch.sparse).value, model(older, batch.sparse).value
    assert torch.equal(before[:, 1], after[:, 1])
    assert not torch.equal(before[:, 0], after[:, 0])


def test_options_of_a_task_reach_its_loss() -> None:
    tree = toy_tree()
    tree["tasks"][0] |= {"pos_weight": 3.0, "label_smoothing": 0.2}
    tree["tasks"][3] |= {"loss": "huber", "huber_delta": 2.5}
    click, _, _, ratio = (task.build() for task in toy_job(tasks=tree["tasks"]).tasks)
    assert click == Binary(pos_weight=3.0, label_smoothing=0.2)
    assert ratio == Regression(loss="huber", huber_delta=2.5)


def test_options_of_escm2_reach_its_risk() -> None:
    options = {"propensity_floor": 0.2, "conditional_weight": 0.7, "entire_weight": 0.3}
    module = build_train_module(toy_job(model={"heads": {"kind": "escm2_dr", **options}}))
    head = module.model.over_arch.heads
    assert isinstance(head, DoublyRobustESCM2)
    assert (head.propensity_floor, head.conditional_weight, head.entire_weight) == (0.2, 0.7, 0.3)
    assert module.loss.multitask.add_terms == head.add_terms


def test_logits_are_shifted_by_the_sampling_rates_in_training_alone() -> None:
    tree = toy_tree()
    tree["tasks"][0]["negative_sampling_rate"] = 0.25
    heads = build_model(toy_job(tasks=tree["tasks"])).over_arch.heads
    fused = torch.randn(5, 4, 8)
    for in_training, odds in ((True, 4.0), (False, 1.0)):
        outputs = heads.train(in_training)(fused)
        expected = logsigmoid(outputs.value[:, 0] + math.log(odds))
        torch.testing.assert_close(outputs.log_p[:, 0], expected)


@pytest.mark.parametrize("rows", [10, 10_000])
def test_rows_of_a_table_are_drawn_alike_whatever_their_number(rows: int) -> None:
    job = toy_job(tables={"item": {"rows": rows, "dim": 64}})
    torch.manual_seed(0)
    weight = dict(build_model(job, torch.device("cpu")).sparse_arch.table_parameters())["item"].detach()
    assert weight.shape == (rows, 64)
    assert float(weight.std()) == pytest.approx(0.05, rel=0.1)
    assert float(weight.mean()) == pytest.approx(0.0, abs=0.01)


def test_a_value_error_is_the_users_only_where_it_was_raised_on_purpose() -> None:
    with pytest.raises(ConfigError, match=r"model\.fusion: three experts"), config_errors("model.fusion"):
        raise ValueError(
            "three experts",
        )
    with pytest.raises(ValueError, match="zip") as caught, config_errors("model.fusion"):
        dict(zip("ab", [1], strict=True))
    assert not isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("kind", ["independent", "esmm", "escm2_dr", "aitm", "dbmtl"])
def test_towers_start_at_their_priors(kind: str) -> None:
    """With inputs of 0 a fresh model predicts each task's mean, whatever its towers stand for."""
    tree = toy_tree(model={"heads": {"kind": kind, "tower_hidden": [8]}})
    for task, prior in zip(tree["tasks"], (0.3, 0.06, None, 1.7), strict=True):
        task["prior"] = prior
    tree["tasks"][3] |= {"kind": "watch_time", "label": "watch_s"}
    job = JobConfig.model_validate(tree)
    heads, losses = build_model(job).over_arch.heads.eval(), build_task_losses(job)
    for name, parameter in heads.named_parameters():
        if not name.endswith("logits.bias"):
            torch.nn.init.zeros_(parameter)
    predictions = losses.predictions(heads(torch.zeros(2, 4, 8)))
    torch.testing.assert_close(predictions[0], torch.tensor([0.3, 0.06, 0.5, 1.7]), rtol=1e-4, atol=1e-6)


def test_the_prior_of_sampled_files_is_that_of_the_files() -> None:
    """Half of the negatives are gone, so a third of the rows stands for a fifth of the impressions."""
    tree = toy_tree(tasks=[{"name": "click", "label": "is_click", "prior": 1 / 3, "negative_sampling_rate": 0.5}])
    heads = build_model(JobConfig.model_validate(tree)).over_arch.heads
    for name, parameter in heads.named_parameters():
        if not name.endswith("logits.bias"):
            torch.nn.init.zeros_(parameter)
    for in_training, rate in ((True, 1 / 3), (False, 1 / 5)):
        outputs = heads.train(in_training)(torch.zeros(1, 1, 8))
        assert outputs.log_p.exp().item() == pytest.approx(rate)


def test_table_in_place_that_torch_cannot_name_is_declared_under_another_name() -> None:
    tree = toy_tree()
    tree["features"]["sparse"].append({"name": "type", "column": "item_id", "rows": 40, "dim": 8})
    with pytest.raises(ConfigError, match=r"tables\.type: .*tables\.type_id, and name that.*\(table: type_id\)"):
        build_model(JobConfig.model_validate(tree))
    del tree["features"]["sparse"][-1]["rows"], tree["features"]["sparse"][-1]["dim"]
    tree["features"]["sparse"][-1]["table"] = "type_id"
    tree["tables"]["type_id"] = {"rows": 40, "dim": 8}
    build_model(JobConfig.model_validate(tree))
