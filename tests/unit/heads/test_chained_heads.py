"""AITM and DBMTL against the papers' formulas task by task; the shift for sampled negatives; forests of any shape."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlrec.heads import AITM, DBMTL, ESCM2, ESMM, DoublyRobustESCM2, Independent
from mtlrec.heads.funnel import HeadOutput

NAMES = ["like", "review", "click", "share", "alone"]
PARENTS = [2, 0, None, 2, None]  # click -> like -> review, click -> share; children before parents on purpose
CHAIN = [f"step{i}" for i in range(6)], [None, 0, 1, 2, 3, 4]


def tower(bank: Any, task: int, x: Tensor) -> Tensor:
    """The hidden layers of one task's tower, which the bank keeps stacked."""
    for layer in getattr(bank, "layers", []):
        x = torch.relu(x @ layer.weight[task].T + layer.bias[task])
    return x


def logits_by_hand(logits: Any, features: list[Tensor]) -> Tensor:
    return torch.cat([x @ logits.weight[task].T + logits.bias[task] for task, x in enumerate(features)], 1)


def mlp(layers: nn.Module, x: Tensor) -> Tensor:
    for layer in layers.modules():
        if isinstance(layer, nn.Linear):
            x = torch.relu(layer(x))
    return x


def aitm_by_hand(head: AITM, fused: Tensor) -> Tensor:
    def z(task: int) -> Tensor:
        own = tower(head.towers, task, fused[:, task])
        parent = PARENTS[task]
        if parent is None:
            return own
        transfer: Any = head.transfers[f"task_{NAMES[task]}"]
        handed_on = torch.relu(transfer.hand_on[0](z(parent)))
        rows = []
        for p, q in zip(handed_on, own, strict=True):  # a row at a time
            scores = torch.stack([transfer.key(u) @ transfer.query(u) / math.sqrt(len(u)) for u in (p, q)])
            attention = scores.exp() / scores.exp().sum()
            rows.append(attention[0] * transfer.value(p) + attention[1] * transfer.value(q))
        return torch.stack(rows)

    return logits_by_hand(head.logits, [z(task) for task in range(5)])


def dbmtl_by_hand(head: DBMTL, fused: Tensor) -> Tensor:
    def r(task: int) -> Tensor:
        own = tower(head.towers, task, fused[:, task])
        parent = PARENTS[task]
        both = own if parent is None else torch.cat([own, r(parent)], 1)
        return mlp(head.relations[f"task_{NAMES[task]}"], both)

    return logits_by_hand(head.logits, [r(task) for task in range(5)])


@pytest.mark.parametrize(
    ("head", "by_hand"),
    [
        (AITM(NAMES, PARENTS, 8, [6, 5]), aitm_by_hand),
        (DBMTL(NAMES, PARENTS, 8, [6], [5, 4]), dbmtl_by_hand),
        (DBMTL(NAMES, PARENTS, 8, [], [5]), dbmtl_by_hand),
    ],
    ids=["aitm", "dbmtl", "dbmtl without towers"],
)
def test_the_papers_formulas(head: Any, by_hand: Any) -> None:
    fused = torch.randn(7, 5, 8)
    output: HeadOutput = head(fused)
    logits = by_hand(head, fused)
    torch.testing.assert_close(output.value, logits)
    torch.testing.assert_close(output.log_p.exp(), logits.sigmoid())
    torch.testing.assert_close(output.log_not_p.exp(), 1 - logits.sigmoid())
    torch.testing.assert_close(output.log_entire_p, output.log_p)
    assert not head.conditional


@pytest.mark.parametrize("kind", [AITM, DBMTL])
def test_a_child_s_loss_reaches_its_ancestors_and_no_sibling(kind: Any) -> None:
    torch.manual_seed(0)
    head, fused = kind(NAMES, PARENTS, 8, [16]), torch.randn(40, 5, 8, requires_grad=True)
    head(fused).value[:, 1].sum().backward()
    assert fused.grad is not None
    assert [bool(slot.abs().sum() > 0) for slot in fused.grad.unbind(1)] == [True, True, True, False, False]


@pytest.mark.parametrize(
    "head",
    [
        Independent(*CHAIN, 8, [6]),
        ESMM(*CHAIN, 8, [6]),
        DoublyRobustESCM2(*CHAIN, 8, [6]),
        AITM(*CHAIN, 8, [6]),
        DBMTL(*CHAIN, 8, [6]),
    ],
    ids=lambda head: type(head).__name__,
)
def test_six_tasks_deep(head: nn.Module) -> None:
    """Finite with gradients at extreme inputs, and float32 under autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output: HeadOutput = head(torch.randn(9, 6, 8) * 100)
    assert {part.dtype for part in output if part is not None} == {torch.float32}
    loss = sum(part.sum() for part in output if part is not None)
    assert isinstance(loss, Tensor)
    loss.backward()
    gradients = [parameter.grad for parameter in head.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("kind", [Independent, ESMM, ESCM2])
def test_training_on_sampled_negatives_learns_the_true_odds(kind: Any) -> None:
    """Among kept rows the root's odds are 1 / rate times the true ones, and the children's conditionals as ever."""
    head = kind(["click", "buy"], [None, 0], 4, sampling_rates=[0.1, 1.0])
    fused = torch.randn(20, 2, 4)
    training, evaluation = head(fused), head.eval()(fused)
    true = evaluation.log_entire_p.exp()
    kept = true[:, 0] + 0.1 * (1 - true[:, 0])  # the share of such rows that stays
    torch.testing.assert_close(training.log_p[:, 0].exp(), true[:, 0] / kept)
    if kind is not Independent:
        torch.testing.assert_close(training.log_p[:, 1].exp(), true[:, 1] / kept)
        torch.testing.assert_close(training.log_not_p[:, 1].exp(), 1 - true[:, 1] / kept)
    else:
        torch.testing.assert_close(training.log_p[:, 1].exp(), training.value[:, 1].sigmoid())
    torch.testing.assert_close(training.value, evaluation.value)
    if kind is Independent:
        torch.testing.assert_close(training.log_entire_p, evaluation.log_entire_p)


@pytest.mark.parametrize("kind", [AITM, DBMTL])
def test_a_task_by_itself_is_corrected_too(kind: Any) -> None:
    head = kind(["click"], [None], 4, [3], sampling_rates=[0.25])
    fused = torch.randn(6, 1, 4)
    torch.testing.assert_close(head(fused).log_p.exp(), (head.eval()(fused).value + math.log(4)).sigmoid())


def test_widths_that_leave_nothing_to_hand_on_are_refused() -> None:
    with pytest.raises(ValueError, match="tower_hidden must have at least one width"):
        AITM(["a"], [None], 4, [])
    with pytest.raises(ValueError, match="relation_hidden must have at least one width"):
        DBMTL(["a"], [None], 4, [4], [])
    for kind in (AITM, DBMTL):
        with pytest.raises(ValueError, match="cycle"):
            kind(["a", "b"], [1, 0], 4, [4])
