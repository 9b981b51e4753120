"""One job under every architecture: what is kept of it, what is said of a kind that does not go with it."""

import pytest

from mtlrec import layers
from mtlrec.comparison.candidates import FUSIONS, HEADS, WEIGHTINGS, candidates
from mtlrec.config.file import load_config


def test_the_kinds_are_those_of_the_config() -> None:
    assert FUSIONS[0] == "single_task"
    assert list(layers.FUSIONS) == FUSIONS
    assert HEADS == ["independent", "esmm", "aitm", "dbmtl", "escm2_ips", "escm2_dr"]
    assert WEIGHTINGS[:2] == ["static", "decay"]
    assert "cagrad" in WEIGHTINGS


def test_every_kind_has_the_size_of_the_jobs_own_model() -> None:
    job = load_config("kuairand", ["model.fusion.dropout=0.1", "model.fusion.norm=layer"])
    found = candidates(job, FUSIONS)
    assert [one.name for one in found] == FUSIONS
    own = next(one for one in found if one.name == "ple")
    assert own.job == job
    for one in found:
        assert abs(one.capacity.parameters / own.capacity.parameters - 1) < 0.05
        assert (one.job.model.fusion.dropout, one.job.model.fusion.norm) == (0.1, "layer")
        assert one.job.model.model_copy(update={"fusion": None}) == job.model.model_copy(update={"fusion": None})


def test_without_matching_widths_are_the_jobs() -> None:
    job = load_config("kuairand", [])
    for one in candidates(job, ["single_task", "mmoe"], match=None):
        assert one.job.model.fusion.expert_hidden == job.model.fusion.expert_hidden


def test_heads_and_weightings_are_crossed_and_named_where_they_differ() -> None:
    job = load_config("kuairand", [])
    found = candidates(job, ["ple", "mmoe"], ["esmm", "independent"], ["uncertainty"])
    assert [one.name for one in found] == ["ple+esmm", "ple+independent", "mmoe+esmm", "mmoe+independent"]
    assert {one.job.loss.weighting.kind for one in found} == {"uncertainty"}
    assert [one.job.model.heads.tower_hidden for one in found] == [[16]] * 4
    assert found[1].job.model.heads.kind == "independent"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fusions": ["pel"]}, "--fusion pel: unknown; kinds are single_task, "),
        ({"fusions": ["ple"], "heads": ["tower"]}, "--heads tower: unknown; kinds are independent, "),
        ({"fusions": ["ple"], "weightings": ["none"]}, "--weighting none: unknown; kinds are static, "),
        ({"fusions": ["ple", "mmoe"]}, "^mmoe: .*features"),
    ],
)
def test_what_cannot_be_compared_is_named(arguments: dict[str, list[str]], message: str) -> None:
    job = load_config("kuairand", ["tasks.0.features=[user_id]"] if arguments["fusions"][-1] == "mmoe" else [])
    with pytest.raises(ValueError, match=message):
        candidates(job, **arguments)


def test_by_default_the_kinds_that_go_with_the_job_are_compared(logged: list[str]) -> None:
    one_task = load_config("criteo")
    names = [candidate.name for candidate in candidates(one_task, match=None)]
    assert names == [kind for kind in FUSIONS if kind not in ("asymmetric", "home")]
    assert [line.partition(":")[2].split(":")[0].strip() for line in logged] == ["asymmetric", "home"]
    assert "two tasks or more" in logged[0]


def test_what_the_job_leaves_at_its_default_is_the_kinds_own_default() -> None:
    job = load_config("kuairand", ["model.fusion.dropout=0.1"])
    ple, home = (candidate.job.model.fusion.arguments for candidate in candidates(job, ["ple", "home"]))
    assert (ple["activation"], ple["norm"], ple["dropout"]) == ("relu", None, 0.1)
    assert (home["activation"], home["norm"], home["dropout"]) == ("silu", "batch", 0.1)
