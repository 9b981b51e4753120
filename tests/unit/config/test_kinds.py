"""A kind's keys are its constructor's arguments, for mtlrec's own classes and for a user's."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from mtlrec import layers
from mtlrec.config import BOTTOM, FUSION, JobConfig
from mtlrec.config.file import parse_config
from mtlrec.errors import ConfigError
from tests.support.toy import toy_tree

MODULE = '''
from typing import Annotated, Any, Literal, Unpack

from annotated_types import Ge, Gt
from torch import nn
from mtlrec.layers import Bottom, ExpertFusion, ExpertOptions, FusionLayer


class Projected(FusionLayer):
    """A projection for each task.

    More about it.

    Args:
        input_dim: D.
        width: of every task's
            output.
        scale: what it is multiplied with.
    """

    def __init__(
        self, input_dim: int, num_tasks: int, width: Annotated[int, Ge(1)], scale: Annotated[float, Gt(0)] = 2.0,
        mode: Literal["sum", "mean"] = "sum", anything=None,
    ) -> None:
        super().__init__(input_dim, num_tasks, output_dim=width)
        if mode == "mean" and scale != 2.0:
            raise ValueError("scale is for mode sum")


class WithOptions(ExpertFusion):
    def __init__(
        self, input_dim: int, num_tasks: int, expert_hidden: list[list[int]], **options: Unpack[ExpertOptions]
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden)


class WithoutTasks(FusionLayer):
    def __init__(self, input_dim: int) -> None: ...


class Starred(FusionLayer):
    def __init__(self, input_dim: int, num_tasks: int, *widths: int) -> None: ...


class Open(FusionLayer):
    def __init__(self, input_dim: int, num_tasks: int, **anything: Any) -> None: ...


class Reserved(FusionLayer):
    def __init__(self, input_dim: int, num_tasks: int, kind: str = "a") -> None: ...


class NoFusion(nn.Module): ...
'''


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`their_layers`, a package that is no part of mtlrec, on the path."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_layers").mkdir()
    (folder / "their_layers" / "__init__.py").touch()
    (folder / "their_layers" / "fusions.py").write_text(MODULE)
    (folder / "their_layers" / "broken.py").write_text("import a_package_that_is_not_installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def tree_of(**fusion: Any) -> dict[str, Any]:
    return toy_tree(model={"fusion": fusion})


def mistake_in(tmp_path: Path, **fusion: Any) -> str:
    import yaml

    with pytest.raises(ConfigError) as caught:
        parse_config(yaml.safe_dump(tree_of(**fusion)), "job.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_keys_types_defaults_and_descriptions_are_those_of_the_constructor() -> None:
    keys = FUSION.config_class("their_layers.fusions:Projected").model_fields
    assert list(keys) == ["kind", "width", "scale", "mode", "anything"]
    assert keys["width"].is_required()
    assert (keys["scale"].default, keys["anything"].default) == (2.0, None)
    assert keys["width"].description == "of every task's output."
    for kind, part in layers.FUSIONS.items():
        described = FUSION.config_class(kind).model_fields
        assert all(field.description for name, field in described.items() if name != "kind"), part


def test_a_users_class_is_a_kind_like_any_other() -> None:
    tree = tree_of(kind="their_layers.fusions:Projected", width=5)
    job = JobConfig.model_validate(tree)
    assert job.dump()["model"]["fusion"] == {
        "kind": "their_layers.fusions:Projected",
        "width": 5,
        "scale": 2.0,
        "mode": "sum",
        "anything": None,
    }
    assert JobConfig.model_validate(job.dump()) == job
    assert pickle.loads(pickle.dumps(job)) == job
    built = job.model.fusion.build(input_dim=3, num_tasks=2)
    assert (type(built).__name__, built.output_dim) == ("Projected", 5)
    with_options = FUSION("their_layers.fusions:WithOptions", expert_hidden=[[4]], norm="layer")
    assert with_options.arguments == {
        "expert_hidden": [[4]],
        "activation": "relu",
        "norm": "layer",
        "dropout": 0.0,
        "recompute": False,
    }


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        ({"kind": "plee"}, "model.fusion.kind = 'plee': unknown kind; allowed are single_task, shared_bottom"),
        ({"kind": "nowhere.at:All"}, "no module nowhere; install it, or add its folder to PYTHONPATH"),
        ({"kind": "their_layers.at:All"}, "no module their_layers.at; install it"),
        ({"kind": "their_layers.fusions:Absent"}, "no such class: Absent of their_layers.fusions must extend mtlrec"),
        ({"kind": "their_layers.fusions:NoFusion"}, "is no subclass: NoFusion of their_layers.fusions must extend"),
        ({"kind": "their_layers.fusions:WithoutTasks"}, "the constructor of WithoutTasks must take num_tasks"),
        ({"kind": "their_layers.fusions:Starred"}, "takes widths without a name for a key"),
        ({"kind": "their_layers.fusions:Open"}, "takes **options that no key can name"),
        ({"kind": "their_layers.fusions:Reserved"}, "takes kind, which no key can be called"),
        ({"kind": "their_layers.fusions:Projected"}, "model.fusion.width: is required"),
        ({"kind": "their_layers.fusions:Projected", "width": 0}, "model.fusion.width = 0: input should be greater"),
        ({"kind": "their_layers.fusions:Projected", "width": 1, "mode": "max"}, "model.fusion.mode = 'max'"),
        (
            {"kind": "their_layers.fusions:Projected", "wdth": 1, "width": 1},
            "model.fusion.wdth = 1: unknown key; allowed are kind, width, scale, mode, anything",
        ),
        (
            {"kind": "their_layers.fusions:Projected", "width": 1, "scale": 3.0, "mode": "mean"},
            "model.fusion.scale = 3.0: scale is for mode sum",
        ),
        ({"expert_hidden": [[4]]}, "model.fusion = {'expert_hidden': [[4]]}: needs a kind"),
    ],
)
def test_a_mistake_names_its_key(fusion: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in mistake_in(tmp_path, **fusion)


def test_what_a_users_module_raises_is_shown_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_installed"):
        FUSION.config_class("their_layers.broken:Fusion")


def test_a_part_of_another_family_is_refused() -> None:
    tree = toy_tree() | {"model": {"fusion": BOTTOM("concat")}}
    with pytest.raises(ValueError, match="must be a mapping with a kind"):
        JobConfig.model_validate(tree)


def test_the_schema_knows_every_kind() -> None:
    text = str(JobConfig.model_json_schema())
    for kind in (*layers.FUSIONS, *layers.BOTTOMS):
        assert f"'const': '{kind}'" in text, kind
