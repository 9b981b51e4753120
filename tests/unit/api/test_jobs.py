"""Jobs from files, recipes and objects, and overrides in Python."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mtlrec
from mtlrec.api.jobs import load_job
from mtlrec.config import FUSION, JobConfig
from mtlrec.errors import ConfigError
from tests.support.toy import toy_job, toy_table


def test_overrides_are_those_of_the_command() -> None:
    by_words = load_job("census", ["train.epochs=3", "optim.dense.lr=1e-5", "train.keep_best=income/auc"])
    given = {"train.epochs": 3, "optim.dense.lr": 1e-5, "train.keep_best": "income/auc"}
    assert load_job("census", given) == by_words
    assert by_words.optim.dense.lr == 1e-5
    assert by_words.train.epochs == 3


def test_a_section_may_be_an_object() -> None:
    fusion = FUSION("mmoe", expert_hidden=[[8]], num_experts=2)
    job = load_job(toy_job(), {"model.fusion": fusion, "data.root": Path("logs"), "data.valid": []})
    assert job.model.fusion == fusion
    assert job.data.root == "logs"
    assert job.data.valid == []
    assert load_job(job) is job


@pytest.mark.parametrize("text", ["a: b", "[x]", "null", "# no comment", "*", "'", "yes"])
def test_text_stays_text(text: str) -> None:
    assert load_job(toy_job(), {"data.valid": [text]}).data.valid == [text]
    assert load_job(toy_job(), {"data.statistics": None, "data.keys": ["row"]}).data.keys == ["row"]


def test_a_mistake_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        load_job(toy_job(), {"train.epochs": 0})
    with pytest.raises(ConfigError, match="keep_best"):
        load_job(toy_job(), {"train.keep_best": "click/auc", "data.valid": []})


def test_a_job_built_of_objects_is_the_job_of_its_tree() -> None:
    job = toy_job()
    assert type(job)(**{name: getattr(job, name) for name in type(job).model_fields}) == job
    assert json.dumps(job.dump())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda job: mtlrec.load_job(job, {"train.epochs": object()}), "overrides: <object .*give a plain value"),
        (lambda job: mtlrec.compare(job, "nowhere", seeds=0), "seeds=0: give 1 or more"),
        (lambda job: mtlrec.compare(job, "nowhere", learning_rates=()), "learning_rates=0: give 1 or more"),
        (lambda job: mtlrec.bench(job, steps=1), "steps=1: give 5 or more"),
        (lambda job: mtlrec.diagnose("nowhere", batches=0), "batches=0: give 1 or more"),
        (lambda job: mtlrec.train(toy_job("s3://bucket"), "nowhere", data={"train": toy_table(3)}), "local files only"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(call: Callable[[JobConfig], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(toy_job())
