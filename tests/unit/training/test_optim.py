"""Learning rates by hand, and that they reach every optimizer."""

import pytest

from mtlrec.config.kinds.optimizers import DenseAdam
from mtlrec.distributed.process_group import process_group
from mtlrec.models.build import build_train_module
from mtlrec.training.optim import Optimizers, learning_rate, undecayed
from mtlrec.training.sharded import build_sharded
from tests.support.toy import FUSIONS, toy_job


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (DenseAdam(lr=1.0), [1, 1, 1, 1, 1]),
        (DenseAdam(lr=1.0, warmup_steps=3), [0.25, 0.5, 0.75, 1, 1]),
        (DenseAdam(lr=2.0, decay="linear"), [2, 1.5, 1, 0.5, 0]),
        (DenseAdam(lr=1.0, decay="linear", min_lr_ratio=0.2), [1, 0.8, 0.6, 0.4, 0.2]),
        (DenseAdam(lr=1.0, decay="cosine"), [1, 0.853553, 0.5, 0.146447, 0]),
        (DenseAdam(lr=1.0, warmup_steps=2, decay="linear"), [1 / 3, 2 / 3, 1, 0.5, 0]),
        (DenseAdam(lr=1.0, warmup_steps=9, decay="cosine"), [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_learning_rates(schedule: DenseAdam, rates: list[float]) -> None:
    assert [learning_rate(schedule, step, 5) for step in range(5)] == pytest.approx(rates, abs=1e-6)


def test_rates_reach_the_fused_the_replicated_and_the_dense_optimizer() -> None:
    job = toy_job(
        optim={"sparse": {"lr": 1.0, "warmup_steps": 3}, "dense": {"lr": 0.5, "clip_norm": 1.0}},
        sharding={"constraints": {"user": {"types": ["data_parallel"]}, "item": {"types": ["row_wise"]}}},
    )
    with process_group("cpu", 60) as ranks:
        optimizers = Optimizers(build_sharded(job, ranks).module, job, total_steps=10)
        optimizers.set_learning_rates(1)
        optimizers.combined.zero_grad()
        assert [group["lr"] for group in optimizers.fused.param_groups] == [0.5]
        assert optimizers.replicated is not None
        assert [group["lr"] for group in optimizers.replicated.param_groups] == [0.5]
        assert [group["lr"] for group in optimizers.dense.param_groups] == [0.5]
        assert {group["lr"] for group in optimizers.combined.param_groups} == {0.5}


@pytest.mark.parametrize(
    ("fusion", "spared"),
    [
        ("adatt", {"levels.0.residual.weight", "levels.1.residual.weight"}),
        ("batch_norm", {"levels.0.experts.norms.0.weight", "levels.0.experts.norms.1.weight"}),
        ("layer_norm_and_dropout", {"levels.0.experts.norms.0.weight"}),
        ("cross_stitch", {"stitches.0.weight", "stitches.1.weight"}),
        ("customized_weight", {"weights.weight"}),
    ],
)
def test_decay_spares_biases_norms_and_what_mixes_outputs(fusion: str, spared: set[str]) -> None:
    job = toy_job(model={"fusion": FUSIONS[fusion]}, loss={"weighting": {"kind": "uncertainty"}})
    module = build_train_module(job)
    ids = undecayed(module)
    names = {name for name, parameter in module.named_parameters() if id(parameter) in ids}
    assert names >= {f"model.over_arch.fusion.{name}" for name in spared} | {"loss.multitask.balancing.log_variances"}
    assert all(name.endswith("bias") or "fusion" in name or "log_variances" in name for name in names)
    decayed = {name for name, parameter in module.named_parameters() if id(parameter) not in ids}
    assert not any(name.endswith("bias") for name in decayed)
    assert "model.over_arch.bottom.mlp.net.0.weight" in decayed
    assert any(name.endswith("experts.layers.0.weight") or "experts.0.layers.0.weight" in name for name in decayed)
