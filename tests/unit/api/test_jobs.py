"""Jobs from files, recipes and objects, and overrides in Python."""

import json
from pathlib import Path

import pytest

from mtlrec.api.jobs import load_job
from mtlrec.config import MMoEFusion
from mtlrec.errors import ConfigError
from tests.support.toy import toy_job


def test_overrides_are_those_of_the_command() -> None:
    by_words = load_job("census_ple", ["train.epochs=3", "optim.dense.lr=1e-5", "train.keep_best=income/auc"])
    given = {"train.epochs": 3, "optim.dense.lr": 1e-5, "train.keep_best": "income/auc"}
    assert load_job("census_ple", given) == by_words
    assert by_words.optim.dense.lr == 1e-5
    assert by_words.train.epochs == 3


def test_a_section_may_be_an_object() -> None:
    fusion = MMoEFusion(kind="mmoe", expert_hidden=[[8]], num_experts=2)
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
