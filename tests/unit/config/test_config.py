"""A wrong config costs one line that names the key, the value, what is allowed and the line of the YAML."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mtlrec.config import FUSION, JobConfig
from mtlrec.config.file import load_config, parse_config, recipe_text, recipes
from mtlrec.errors import ConfigError
from mtlrec.models.build import build_model
from tests.support.toy import FUSIONS, toy_job, toy_tree


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_a_job_and_survives_its_own_dump(name: str) -> None:
    job = load_config(name)
    assert job.name == name
    assert parse_config(yaml.safe_dump(job.dump())) == job
    assert JobConfig.model_validate(yaml.safe_load(recipe_text(name))) == job


@pytest.mark.parametrize("kind", FUSION.kinds)
def test_a_recipe_takes_another_fusion_layer(kind: str) -> None:
    """What both kinds know is kept, what only the old one knows goes."""
    fusion = load_config("feed", ["model.fusion.norm=layer", f"model.fusion.kind={kind}"]).model.fusion
    assert (fusion.kind, fusion.arguments["expert_hidden"], fusion.arguments["norm"]) == (kind, [[128], [64]], "layer")


# override of the toy job -> what the one line must say
MISTAKES = {
    "train.epoch=2": ["train.epoch = 2", "unknown key", "epochs, max_steps"],
    "sharding.constraints={user: {types: [row_wise], cache_load_factor: 2}}": ["cache_load_factor = 2"],
    "sharding.communication.forward=fp8": ["sharding.communication.forward = 'fp8'", "'fp32', 'fp16' or 'bf16'"],
    "model.fusion.width=3": [
        "model.fusion.width = 3",
        "unknown key",
        "expert_hidden, num_task_experts, native_residual",
    ],
    "tasks.click.label=user_id": ["tasks.0.label = 'user_id'", "also a feature", "remove it from features"],
    "tasks.buy.given=klick": ["tasks.1.given = 'klick'", "no such task", "click, buy, like, ratio"],
    "tasks.click.given=buy": ["tasks.0.given = 'buy'", "cycle: click -> buy -> click"],
    "tasks.click.given=click": ["cycle: click -> click"],
    "tasks.ratio.given=click": ["tasks.3.given = 'click': is for binary tasks; 'ratio' is regression"],
    "tasks.like.given=ratio": ["tasks.2.given = 'ratio'", "'ratio' is regression; a parent is binary"],
    "tasks.like.space=ratio": ["tasks.2.space = 'ratio'", "no yes or no but regression; compare it: ratio > 0"],
    "tasks.like.space=watch_ratio": ["no yes or no but regression"],
    "tasks.like.space=like": ["reads 'like', the task itself"],
    "tasks.like.space=click or not is_like": ["reads 'is_like', the task itself"],
    "tasks.like.space=click &": ["tasks.2.space = 'click &'", "is no expression", "write 'and' for '&'"],
    "tasks.like.space=open('x')": ["open('x')", "neither a task, a column nor a comparison"],
    "tasks.like.space=click > buy": ["'click' > 'buy' compares two names; one side must be a number"],
    "tasks.click.label=watch_ratio": ["tasks.0.label = 'watch_ratio'", "label of a regression task too, not 0 or 1"],
    "tasks.ratio.pos_weight=2": ["tasks.3.pos_weight = 2", "unknown key; allowed are kind, name", "huber_delta"],
    "tasks.like.loss=huber": ["tasks.2.loss = 'huber'", "unknown key", "pos_weight, label_smoothing"],
    "tasks.ratio.huber_delta=2": ["tasks.3.huber_delta = 2", "is for loss: huber"],
    "tasks.like.sample_weight=is_like": ["tasks.2.sample_weight = 'is_like'", "the task's own label"],
    "loss.weighting={kind: cagrad, c: 1}": ["loss.weighting.c = 1", "less than 1"],
    "tasks.like.pos_weight=0": ["tasks.2.pos_weight = 0", "greater than 0"],
    "tasks.like.label_smoothing=1": ["tasks.2.label_smoothing = 1", "less than 1"],
    "tasks.like.negative_sampling_rate=0": ["tasks.2.negative_sampling_rate = 0", "greater than 0"],
    "tasks.click.prior=1.5": ["tasks.0.prior = 1.5", "lies between 0 and 1"],
    "tasks.buy.prior=0.1": ["model.heads", "the prior of 'buy' wants one of 'click' above it"],
    "tasks.ratio.negative_sampling_rate=0.1": ["tasks.3.negative_sampling_rate = 0.1", "is for binary tasks; 'ratio'"],
    "tasks.buy.negative_sampling_rate=0.1": ["tasks.1.negative_sampling_rate = 0.1", "give those kept a sample_weight"],
    "model.heads={kind: aitm, tower_hidden: []}": ["model.heads.tower_hidden = []", "must not be empty"],
    "model.heads={kind: escm2_ips, propensity_floor: 0}": ["propensity_floor = 0", "greater than 0"],
    "model.heads={kind: escm2}": ["unknown kind; allowed are independent, esmm, aitm, dbmtl, escm2_ips, escm2_dr"],
    "loss.weighting={kind: gradnorm}": ["unknown kind", "static, decay, uncertainty, dwa, pcgrad, mgda, upgrad"],
    "loss.weighting={kind: dwa, temperature: 0}": ["loss.weighting.temperature = 0", "greater than 0"],
    "data.train=[]": ["data.train = []", "must not be empty"],
    "data.keys=[row, row]": ["data.keys.1 = 'row'", "named twice"],
    "model.fusion={kind: ple, expert_hidden: [[8]], num_task_experts: 0}": [
        "num_task_experts = 0",
        "greater than or equal to 1",
    ],
    "model.fusion={kind: ple, expert_hidden: [[8]], num_task_experts: [1, 0, 1, 1]}": ["num_task_experts.1 = 0"],
    "loss.weighting={kind: decay, rate: {buy: 1.1}}": ["loss.weighting.rate.buy = 1.1", "less than or equal to 1"],
    "tasks.like.name=click": ["tasks.2.name = 'click'", "declared twice"],
    "tasks.like.features=[]": ["tasks.2.features", "is empty"],
    "tasks.like.features=[age, size]": ["'size' is no feature", "age, price, user_id"],
    "features.sparse.item_id.table=items": ["features.sparse.1.table = 'items'", "no such table", "tables are"],
    "features.sparse.item_id.name=age": ["features.sparse.1.name = 'age'", "declared twice"],
    "features.dense.age.std=null": ["standardize needs both mean and std"],
    "features.dense.price.mean=1": ["features.dense.1.mean = 1", "is for transform standardize"],
    "features.dense.price.transform=sqrt": ["features.dense.1.transform = 'sqrt'", "'none', 'clip', 'log1p' or"],
    "features.dense.price.transform=[]": ["features.dense.1.transform = []", "'none', 'clip', 'log1p' or"],
    "features.dense.price.transform=clip": ["features.dense.1", "transform clip needs min, max or both"],
    "features.dense.price={name: price, transform: clip, min: 3, max: 2}": ["dense.1.min = 3", "is not below max = 2"],
    "features.dense.price.transform=standardize": ["standardize needs mean and std", "mtlrec prepare stats"],
    "features.sparse.item_id.seed=3": ["features.sparse.1.seed = 3", "is for transform hash"],
    "features.sparse.item_id.transform=vocabulary": ["features.sparse.1", "needs a file: vocabulary: words.txt"],
    "features.sparse.item_id.transform=bucketize": ["features.sparse.1", "needs boundaries: give them, or run"],
    "features.sparse.item_id.too_long=error": ["features.sparse.1.too_long = 'error'", "is for max_length"],
    "features.sparse.item_id={name: i, table: item, transform: bucketize, boundaries: [2, 2]}": ["do not rise"],
    "data.on_error=skip": ["data.on_error = 'skip'", "'fail', 'skip_file' or 'skip_row'"],
    "features.sparse.item_id.rows=5": ["features.sparse.1.rows = 5", "belongs to tables.item, which the feature names"],
    "features.sparse.item_id={name: i, dim: 4}": [
        "features.sparse.1.rows",
        "is missing: give rows and dim",
        "table: NAME",
    ],
    "features.sparse.item_id={name: i, rows: 5}": ["features.sparse.1.dim", "is missing: give rows and dim"],
    "features.sparse.item_id={name: i, rows: 5, dim: 6}": ["features.sparse.1.dim = 6", "multiple of 4"],
    "features.sparse.item_id={name: user, rows: 5, dim: 4}": [
        "features.sparse.1.rows = 5",
        "declares a table that tables.user declares too",
    ],
    "features.sparse.recent_items={name: user_id, rows: 5, dim: 4}": ["features.sparse.2.name", "declared twice"],
    "tables.spare={rows: 5, dim: 4}": ["tables.spare", "no feature reads this table"],
    "tables.user.dim=6": ["tables.user.dim = 6", "multiple of 4"],
    "model.fusion.expert_hidden=[]": ["model.fusion.expert_hidden = []", "must not be empty"],
    "model.fusion.expert_hidden=[[8], []]": ["model.fusion.expert_hidden.1 = []", "must not be empty"],
    "model.fusion={kind: mmoe, expert_hidden: [[8]], gate_hidden: [[4], [4]]}": [
        "gate_hidden = [[4], [4]]",
        "one list per level (1 here",
    ],
    "model.fusion={kind: ple, expert_hidden: [[8]], num_task_experts: [1, 2]}": [
        "num_task_experts = [1, 2]",
        "of the 4 tasks",
    ],
    "model.fusion={kind: adatt, expert_hidden: [[8]], num_task_experts: [1, 2]}": [
        "num_task_experts = [1, 2]",
        "of the 4 tasks",
    ],
    "model.fusion={kind: adatt, expert_hidden: [[8]], num_shared_experts: 0}": ["num_shared_experts = 0"],
    "model.fusion={kind: customized, expert_hidden: [[8]], merge: sum}": ["fusion.merge = 'sum'", "'project' or"],
    "model.fusion={kind: shared_bottom, expert_hidden: [[8]], gate_dropout: 0.1}": ["gate_dropout", "unknown key"],
    "model.fusion.activation=tanh": ["model.fusion.activation = 'tanh'", "'relu', 'silu' or 'gelu'"],
    "model.fusion.norm=group": ["model.fusion.norm = 'group'", "'layer' or 'batch'"],
    "model.fusion.dropout=1": ["model.fusion.dropout = 1", "less than 1"],
    "model.fusion.gate_dropout=-0.1": ["model.fusion.gate_dropout = -0.1", "greater than or equal to 0"],
    "model.fusion={kind: adatt_sp, expert_hidden: [[8]], norm: batch, recompute: true}": [
        "model.fusion.recompute = True",
        "would count every row twice",
    ],
    "model.fusion.kind=moe": [
        "model.fusion.kind = 'moe'",
        "unknown kind",
        "single_task, shared_bottom, asymmetric, cross_stitch, customized, mmoe, ple, adatt_sp, adatt",
    ],
    "loss.weighting={kind: decay, rate: {bye: 0.9}}": ["loss.weighting.rate.bye = 0.9", "no such task"],
    "sharding.constraints.users.types=[row_wise]": ["sharding.constraints.users", "no such table"],
    "sharding.constraints.user.types=[rowwise]": ["sharding.constraints.user.types.0 = 'rowwise'", "'row_wise'"],
    "data.batch_size=many": ["data.batch_size = 'many'", "integer"],
    "optim.dense.lr=.nan": ["optim.dense.lr = nan", "finite number"],
    "name=a b": ["name = 'a b'"],
}


@pytest.mark.parametrize(("override", "parts"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_says_all(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(yaml.safe_dump(toy_tree()), "job.yaml", [override])
    message = str(caught.value)
    assert message.count("\n") == 0
    assert all(part in message for part in parts), message


def test_features_per_task_want_a_fusion_with_slots() -> None:
    tree = toy_tree(model={"fusion": {"kind": "shared_bottom", "expert_hidden": [[8]]}})
    tree["tasks"][1]["features"] = ["age"]
    with pytest.raises(ConfigError, match=r"tasks\.1\.features.*single_task, asymmetric, .*, ple, adatt_sp, adatt"):
        parse_config(yaml.safe_dump(tree))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_with_a_slot_per_task_takes_features_per_task(fusion: str) -> None:
    """Which those are, the layers say."""
    tree = toy_tree(model={"fusion": FUSIONS[fusion]})
    has_slots = build_model(JobConfig.model_validate(tree)).over_arch.fusion.num_slots is not None
    tree["tasks"][1]["features"] = ["age"]
    if has_slots:
        JobConfig.model_validate(tree)
    else:
        with pytest.raises(ValueError):
            JobConfig.model_validate(tree)


def test_asymmetric_sharing_wants_two_tasks() -> None:
    tree = toy_tree(model={"fusion": {"kind": "asymmetric", "expert_hidden": [[8]]}})
    tree["tasks"] = tree["tasks"][:1]
    with pytest.raises(ConfigError, match=r"model\.fusion = .*: asymmetric sharing needs two tasks or more"):
        parse_config(yaml.safe_dump(tree))


def test_batch_norm_wants_two_rows() -> None:
    tree = toy_tree(model={"fusion": FUSIONS["batch_norm"]})
    with pytest.raises(ConfigError, match=r"data\.batch_size = 1: model\.fusion\.norm: batch has no variance"):
        parse_config(yaml.safe_dump(tree), overrides=["data.batch_size=1"])


def test_the_line_of_the_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    lines = yaml.safe_dump(toy_tree(), sort_keys=False).splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith("  given:"))
    lines[number] = "  given: nothing"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=rf"{path.name}:{number + 1}: tasks.1.given"):
        load_config(path)


def test_a_value_from_set_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(yaml.safe_dump(toy_tree()), "job.yaml", ["train.epochs=lots"])
    assert str(caught.value).startswith("--set: train.epochs = 'lots'")


def test_several_mistakes_are_a_line_each() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(yaml.safe_dump(toy_tree()), "job.yaml", ["train.epoch=2", "data.batch_size=0"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["nowhere.yaml", "no_such_recipe"])
def test_a_missing_config_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_config(name)


def test_a_key_that_stands_twice_is_refused() -> None:
    text = yaml.safe_dump(toy_tree(), sort_keys=False)
    with pytest.raises(ConfigError, match=rf"job:{len(text.splitlines()) + 1}: train: stands here for the second time"):
        parse_config(text + "train: {seed: 1}\n", "job")


@pytest.mark.parametrize(
    "text", ["name: &a [*a]", "a: &a {b: *a}", "? [a, b]\n: 1", "name: 2020-99-99", "x: !!int abc"]
)
def test_odd_yaml_is_one_line_too(text: str) -> None:
    with pytest.raises(ConfigError, match="job"):
        parse_config(text, "job")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "job.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list", "x: !!python/object:os.system {}"])
def test_yaml_that_is_no_job(text: str) -> None:
    with pytest.raises(ConfigError, match="config"):
        parse_config(text)


class TestOverrides:
    def test_by_key_index_and_name(self) -> None:
        text = yaml.safe_dump(toy_tree())
        job = parse_config(text, overrides=["tasks.0.weight=2", "tasks.like.weight=3", "optim.dense.lr=1e-3"])
        assert [task.weight for task in job.tasks] == [2, 1, 3, 1]
        assert job.optim.dense.lr == 1e-3

    def test_a_new_kind_keeps_what_it_knows(self) -> None:
        job = parse_config(yaml.safe_dump(toy_tree()), overrides=["model.fusion.kind=mmoe"])
        assert job.model.fusion.kind == "mmoe"
        assert job.model.fusion.expert_hidden == [[16], [8]]

    def test_a_new_kind_of_weighting(self) -> None:
        tree = toy_tree(loss={"weighting": {"kind": "decay", "rate": {"buy": 0.9}}})
        job = parse_config(yaml.safe_dump(tree), overrides=["loss.weighting.kind=static"])
        assert job.loss.weighting.kind == "static"

    @pytest.mark.parametrize(
        ("override", "part"),
        [
            ("train.epochs", "key.path=value"),
            ("=3", "key.path=value"),
            ("train.epochs=", "no value; write train.epochs=null"),
            ("tasks.nobody.weight=1", "no item 'nobody'; there are click, buy, like, ratio"),
            ("train.epochs.deep=1", "'epochs' holds 2"),
            ("name=[1", "not valid YAML"),
        ],
    )
    def test_wrong_overrides(self, override: str, part: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_config(yaml.safe_dump(toy_tree()), overrides=[override])
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("heads", "refused"),
    [
        ({"kind": "esmm"}, False),
        ({"kind": "escm2_dr"}, False),
        ({"kind": "independent"}, False),
        ({"kind": "independent", "entire_space": True}, True),
        ({"kind": "aitm"}, True),
        ({"kind": "dbmtl"}, True),
    ],
    ids=str,
)
def test_which_heads_can_be_corrected_for_a_sampled_parent(heads: dict[str, object], refused: bool) -> None:
    tree = toy_tree(model={"heads": heads})
    tree["tasks"][2]["negative_sampling_rate"] = 0.1  # follows nothing and nothing follows it
    JobConfig.model_validate(tree)
    tree["tasks"][0]["negative_sampling_rate"] = 0.5
    if refused:
        with pytest.raises(ConfigError, match=r"tasks\.0\.negative_sampling_rate = 0\.5: .* take esmm"):
            parse_config(yaml.safe_dump(tree))
    else:
        JobConfig.model_validate(tree)


def test_label_columns_are_each_named_once_with_the_strictest_rule() -> None:
    tree = toy_tree()
    tree["tasks"][1]["sample_weight"] = "importance"
    tree["tasks"][2]["space"] = "shown_like and watch_ratio > 0.5 and country == 2"
    tree["tasks"].append({"name": "time", "kind": "watch_time", "label": "watch_ratio", "space": "watch_ratio > 0"})
    columns = JobConfig.model_validate(tree).label_columns
    assert columns["country"].key == "tasks.like.space"
    assert {name: column.rule for name, column in columns.items()} == {
        "is_click": "flag",
        "is_buy": "flag",
        "is_like": "flag",
        "watch_ratio": "non_negative",
        "shown_like": "flag",
        "country": "number",
        "importance": "non_negative",
    }


def test_dump_is_plain_yaml() -> None:
    job = toy_job()
    assert JobConfig.model_validate(yaml.safe_load(yaml.safe_dump(job.dump()))) == job


def test_named_table_is_missing_where_the_job_declares_none() -> None:
    tree = toy_tree()
    del tree["tables"]
    with pytest.raises(ConfigError, match=r"features\.sparse\.0\.table = 'user': no such table; the job declares none"):
        parse_config(yaml.safe_dump(tree))


def test_more_buckets_than_rows_are_refused() -> None:
    tree = toy_tree()
    tree["features"]["sparse"].append(
        {"name": "age_bucket", "column": "age", "table": "ages", "transform": "bucketize", "boundaries": [20, 40, 60]}
    )
    tree["tables"]["ages"] = {"rows": 4, "dim": 4}
    assert JobConfig.model_validate(tree).features.sparse[3].source == "age"
    with pytest.raises(
        ConfigError, match=r"features\.sparse\.3\.boundaries.*: make 4 buckets, table 'ages' has 3 rows"
    ):
        parse_config(yaml.safe_dump(tree), overrides=["tables.ages.rows=3"])


def test_a_label_is_no_feature_s_column() -> None:
    tree = toy_tree()
    tree["features"]["dense"].append({"name": "clicked", "column": "is_click"})
    with pytest.raises(ConfigError, match=r"tasks\.0\.label = 'is_click': is also a feature"):
        parse_config(yaml.safe_dump(tree))


class TestStatistics:
    def tree(self) -> dict[str, Any]:
        tree = toy_tree()
        tree["features"]["dense"][0] = {"name": "age", "transform": "standardize"}
        bucket = {"name": "bucket", "column": "price", "table": "buckets", "transform": "bucketize"}
        tree["features"]["sparse"].append(bucket)
        tree["tables"]["buckets"] = {"rows": 8, "dim": 4}
        return tree

    def test_they_fill_what_is_left_open(self, tmp_path: Path) -> None:
        file = tmp_path / "stats.json"
        file.write_text('{"dense": {"age": {"mean": 3, "std": 2}}, "sparse": {"bucket": {"boundaries": [1, 2]}}}')
        job = parse_config(yaml.safe_dump(self.tree()), overrides=[f"data.statistics={file}"])
        assert (job.features.dense[0].mean, job.features.dense[0].std) == (3, 2)
        assert job.features.sparse[3].boundaries == [1, 2]
        file.unlink()
        assert JobConfig.model_validate(job.dump()) == job  # a stored job needs the file no more
        assert parse_config(yaml.safe_dump(job.dump())) == job

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "data.statistics = .*: cannot be read"),
            ("[", "data.statistics = .*: is not what `mtlrec prepare stats` writes"),
            ('{"dense": {"age": {}}, "sparse": {}}', "data.statistics = .*: is not what `mtlrec prepare stats` writes"),
            ('{"dense": {}, "sparse": {}}', "features.dense.0.transform.*standardize needs mean and std"),
        ],
    )
    def test_what_is_wrong_with_them(self, tmp_path: Path, content: str | None, message: str) -> None:
        file = tmp_path / "stats.json"
        if content is not None:
            file.write_text(content)
        with pytest.raises(ConfigError, match=message) as caught:
            parse_config(yaml.safe_dump(self.tree()), overrides=[f"data.statistics={file}"])
        assert "\n" not in str(caught.value)


def test_a_table_declared_in_place_is_one_of_the_tables() -> None:
    """The resolved job has it there, named after its feature, and is a job."""
    named, in_place = toy_tree(), toy_tree()
    named["tables"] = {
        "item": {"rows": 40, "dim": 8},
        "user_id": {"rows": 50, "dim": 8, "lr": 0.3, "init_std": 0.01},
    }
    named["features"]["sparse"][0] = {"name": "user_id", "table": "user_id", "transform": "hash"}
    in_place["tables"] = {"item": {"rows": 40, "dim": 8}}
    own = {"rows": 50, "dim": 8, "lr": 0.3, "init_std": 0.01}
    in_place["features"]["sparse"][0] = {"name": "user_id", "transform": "hash"} | own
    job = JobConfig.model_validate(in_place)
    assert job == JobConfig.model_validate(named)
    assert JobConfig.model_validate(job.dump()) == job


def test_tables_may_be_left_out() -> None:
    tree = toy_tree()
    del tree["tables"]
    tree["features"]["sparse"] = [{"name": name, "rows": 50, "dim": 8} for name in ("user_id", "item_id")]
    assert list(parse_config(yaml.safe_dump(tree)).tables) == ["user_id", "item_id"]
