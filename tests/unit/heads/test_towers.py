"""The bank of towers, and the chain by depths, against a loop over tasks in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, logsigmoid

from mtlrec.heads import AITM, DBMTL, ESCM2, ESMM, Independent
from mtlrec.heads.funnel import ProbabilityChain, topological_order
from mtlrec.heads.towers import TaskLogits, Towers

FORESTS = [[None], [None] * 4, [None, 0, 1, 2, 3], [2, 0, None, 2, None], [None, 0, 0, None, 3, 3, 1]]


def one_tower(towers: Towers, task: int, x: Tensor) -> Tensor:
    """[B, H] -> [B], with plain products of one task's weights."""
    for layer in getattr(towers.hidden, "layers", []):
        x = torch.relu(x @ layer.weight[task].T + layer.bias[task])
    return (x @ towers.logits.weight[task].T + towers.logits.bias[task]).squeeze(1)


@pytest.mark.parametrize("hidden", [[], [6], [6, 5]])
def test_the_bank_matches_a_loop_over_tasks(hidden: list[int]) -> None:
    towers = Towers(3, 8, hidden).double()
    banked, looped = (torch.randn(20, 3, 8, dtype=torch.float64).requires_grad_() for _ in range(2))
    looped.data.copy_(banked.data)
    weights = torch.randn(20, 3, dtype=torch.float64)
    (weights * towers(banked)).sum().backward()
    gradients = [parameter.grad.clone() for parameter in towers.parameters() if parameter.grad is not None]
    towers.zero_grad()
    one_by_one = torch.stack([one_tower(towers, task, looped[:, task]) for task in range(3)], dim=1)
    torch.testing.assert_close(towers(banked), one_by_one, rtol=1e-12, atol=1e-12)
    (weights * one_by_one).sum().backward()
    torch.testing.assert_close(banked.grad, looped.grad, rtol=1e-12, atol=1e-12)
    for gradient, parameter in zip(gradients, towers.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-12)


def chained_by_loop(logits: Tensor, parents: list[int | None]) -> tuple[Tensor, Tensor]:
    log_p: dict[int, Tensor] = {}
    log_not_p: dict[int, Tensor] = {}
    for task in topological_order(parents):
        parent, x = parents[task], logits[:, task]
        if parent is None:
            log_p[task], log_not_p[task] = logsigmoid(x), logsigmoid(-x)
        else:
            log_p[task] = log_p[parent] + logsigmoid(x)
            log_not_p[task] = torch.logaddexp(log_not_p[parent], log_p[parent] + logsigmoid(-x))
    tasks = range(len(parents))
    return torch.stack([log_p[task] for task in tasks], 1), torch.stack([log_not_p[task] for task in tasks], 1)


@pytest.mark.parametrize("parents", FORESTS, ids=str)
def test_the_chain_matches_a_loop_over_tasks(parents: list[int | None]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, len(parents), dtype=torch.float64, generator=generator) * 5
    chained, looped = x.clone().requires_grad_(), x.clone().requires_grad_()
    chain = ProbabilityChain(parents)
    found, expected = chain(chained), chained_by_loop(looped, parents)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(chain.log_product(logsigmoid(x)), expected[0])
    weights = torch.randn(2, 50, len(parents), dtype=torch.float64, generator=generator)
    for one, (log_p, log_not_p) in ((chained, found), (looped, expected)):
        (weights[0] * log_p + weights[1] * log_not_p).sum().backward()
        assert one.grad is not None
    torch.testing.assert_close(chained.grad, looped.grad, rtol=1e-12, atol=1e-12)


def test_a_logit_that_is_not_finite_stays_with_its_task_and_row() -> None:
    logits = torch.zeros(3, 5)
    logits[1, 4] = torch.nan
    log_p, log_not_p = ProbabilityChain([2, 0, None, 2, None])(logits)
    for part in (log_p, log_not_p):
        assert part.isnan().nonzero().tolist() == [[1, 4]]


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_hidden_layers_have_the_options_of_experts(norm: str | None) -> None:
    torch.manual_seed(0)
    towers = Towers(2, 4, [6], activation="gelu", norm=norm, dropout=0.5)  # type: ignore[arg-type]
    x = torch.randn(30, 2, 4)
    assert not torch.equal(towers(x), towers(x)), "dropout"
    towers.eval()
    hidden = towers.hidden
    for task in range(2):
        h = x[:, task] @ hidden.layers[0].weight[task].T + hidden.layers[0].bias[task]  # type: ignore[index, union-attr]
        if norm == "layer":
            h = layer_norm(h, [6])
        elif norm == "batch":
            statistics = hidden.norms[0].batch_norm  # type: ignore[index, union-attr]
            units = slice(6 * task, 6 * task + 6)
            h = (h - statistics.running_mean[units]) / (statistics.running_var[units] + statistics.eps).sqrt()
        expected = gelu(h) @ towers.logits.weight[task].T + towers.logits.bias[task]
        torch.testing.assert_close(towers(x)[:, task], expected.squeeze(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Independent, ESMM, ESCM2, AITM, DBMTL])
@pytest.mark.parametrize("option", [{"activation": "silu"}, {"norm": "layer"}, {"dropout": 0.5}], ids=str)
def test_every_head_takes_the_options(kind: type[nn.Module], option: dict[str, object]) -> None:
    values = []
    for options in ({}, option):
        torch.manual_seed(0)
        head = kind(["a", "b"], [None, 0], 4, [6], **options)
        values.append(head(torch.randn(9, 2, 4)).value)
    assert not torch.allclose(*values)


@pytest.mark.parametrize("kind", [Independent, ESMM, ESCM2, AITM, DBMTL])
def test_every_head_starts_where_it_is_told(kind: type[nn.Module]) -> None:
    head = kind(["a", "b", "c"], [None, 0, None], 4, [6])
    head.set_bias([-3.0, 0.5, 40.0])  # type: ignore[operator]
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, TaskLogits):
                module.weight.zero_()
    assert head(torch.randn(5, 3, 4)).value[0].tolist() == [-3.0, 0.5, 40.0]
