"""Heads against probabilities multiplied out in float64, and at logits where naive formulas break."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlrec.heads import ESMM, Independent
from mtlrec.heads.funnel import ProbabilityChain, topological_order
from mtlrec.losses import Binary, Regression, TaskLosses

# click -> long_view -> like, click -> share, and a root of its own; children before parents on purpose
PARENTS = [2, 0, None, 2, None]


def multiplied(logits: torch.Tensor, parents: list[int | None]) -> torch.Tensor:
    """p(task) over all impressions, float64: walk to the root and multiply."""
    p = torch.sigmoid(logits.double())
    columns = []
    for task in range(len(parents)):
        product, walk = torch.ones(len(p), dtype=torch.float64), task
        while walk is not None:
            product = product * p[:, walk]
            walk = parents[walk]  # type: ignore[assignment]
        columns.append(product)
    return torch.stack(columns, 1)


def test_chain_is_the_product_along_the_path() -> None:
    logits = torch.randn(200, 5) * 3
    log_p, log_not_p = ProbabilityChain(PARENTS)(logits)
    wanted = multiplied(logits, PARENTS)
    torch.testing.assert_close(log_p.exp().double(), wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(log_not_p.exp().double(), 1 - wanted, rtol=1e-5, atol=1e-7)


@settings(max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=5, max_size=5))
def test_child_never_exceeds_parent_and_all_is_finite(values: list[float]) -> None:
    logits = torch.tensor([values], requires_grad=True)
    log_p, log_not_p = ProbabilityChain(PARENTS)(logits)
    for task, parent in enumerate(PARENTS):
        if parent is not None:
            assert log_p[0, task] <= log_p[0, parent]
    (log_p.sum() + log_not_p.sum()).backward()
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(log_not_p).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_esmm_and_conditional_towers_share_the_chain() -> None:
    torch.manual_seed(0)
    names = [f"t{i}" for i in range(5)]
    esmm, independent = ESMM(names, PARENTS, 8, [6]), Independent(names, PARENTS, 8, [6])
    independent.load_state_dict(esmm.state_dict())
    x = torch.randn(30, 5, 8)
    joint, conditional = esmm(x), independent(x)
    torch.testing.assert_close(joint.log_entire_p, conditional.log_entire_p)
    torch.testing.assert_close(joint.log_p, joint.log_entire_p)
    torch.testing.assert_close(conditional.log_p.exp(), conditional.value.sigmoid())
    torch.testing.assert_close(conditional.log_not_p.exp(), 1 - conditional.value.sigmoid())
    assert (esmm.conditional, independent.conditional) == (False, True)


def test_entire_space_towers_are_not_multiplied() -> None:
    head = Independent(["a", "b"], [None, 0], 4, entire_space=True)
    output = head(torch.randn(6, 2, 4))
    assert not head.conditional
    torch.testing.assert_close(output.log_entire_p.exp(), output.value.sigmoid())


def test_predictions_are_probabilities_or_values() -> None:
    output = ESMM(["a", "b", "c"], [None, 0, None], 4)(torch.randn(6, 3, 4))
    predictions = TaskLosses([Binary(), Binary(), Regression()]).predictions(output)
    torch.testing.assert_close(predictions[:, 1], (output.value[:, 0].sigmoid() * output.value[:, 1].sigmoid()))
    torch.testing.assert_close(predictions[:, 2], output.value[:, 2])


def test_each_tower_reads_its_own_slot() -> None:
    head = Independent(["a", "b"], [None, None], 4, [3])
    x = torch.randn(5, 2, 4, requires_grad=True)
    head(x).value[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].abs().sum() > 0
    assert x.grad[:, 1].abs().sum() == 0


def test_outputs_stay_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = ESMM(["a", "b"], [None, 0], 4, [8])(torch.randn(6, 2, 4))
    assert {part.dtype for part in output if part is not None} == {torch.float32}


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        topological_order([1, 0])
    with pytest.raises(ValueError, match="cycle"):
        ESMM(["a", "b"], [1, 0], 4)
