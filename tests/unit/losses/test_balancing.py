"""Balancers' weights against NumPy on a recorded batch, over steps, over ranks; what they leave alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mtlrec.config import CAGradWeighting
from mtlrec.distributed.process_group import process_group
from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses import Binary, DynamicWeightAverage, GradientBalancing, MultiTaskLoss, Uncertainty
from mtlrec.losses.balancing import Balancing, Totals
from mtlrec.models.balancing import build_balancing
from tests.support.labels import batch_of, loss_parts
from tests.support.ranks import run_ranks
from tests.support.toy import toy_job

TASKS = 3


def batch(rows: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """pooled [B, 5], the logits' weight [5, T], labels [B, T]; float64."""
    torch.manual_seed(seed)
    pooled, weight = torch.randn(rows, 5, dtype=torch.float64), torch.randn(5, TASKS, dtype=torch.float64)
    return pooled, weight, (torch.rand(rows, TASKS) < 0.3).double()


def outputs_of(logits: torch.Tensor) -> HeadOutput:
    log_p, log_not_p = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    return HeadOutput(logits, log_p, log_not_p, log_p)


def loss_with(balancing: Balancing | None, weights: list[float] | None = None) -> MultiTaskLoss:
    return MultiTaskLoss([Binary()] * TASKS, weights or [1.0] * TASKS, balancing).double()


def step(loss: MultiTaskLoss, pooled: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[Any, Any]:
    pooled = pooled.clone().requires_grad_()
    weight = weight.clone().requires_grad_()
    clicked = labels[:, :1] > 0
    in_space = torch.cat([torch.ones_like(clicked).expand(-1, 2), clicked], dim=1)  # the third task's rows are clicks
    features = pooled.split([2, 3], dim=1)
    logits = torch.tanh(torch.cat(features, dim=1)) @ weight
    total, report = loss(outputs_of(logits), *loss_parts(batch_of(labels, in_space)), features)
    total.backward()
    return (total.detach(), pooled.grad, weight.grad), report


def numpy_losses_and_gradients(
    pooled: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """[T] and [T, B, 5]: each task's mean cross entropy over its rows, and its gradient by pooled, by hand."""
    z, w, y = pooled.numpy(), weight.numpy(), labels.numpy()
    h = np.tanh(z)
    space = np.stack([np.ones(len(y)), np.ones(len(y)), y[:, 0]], 1)
    p = 1 / (1 + np.exp(-h @ w))
    losses = (space * -(y * np.log(p) + (1 - y) * np.log(1 - p))).sum(0) / space.sum(0)
    error = space * (p - y) / space.sum(0)
    gradients = np.stack([(error[:, t : t + 1] * w[:, t]) * (1 - h**2) for t in range(TASKS)])
    return losses, gradients


def test_uncertainty_matches_the_formula_and_its_derivative() -> None:
    balancing = Uncertainty(TASKS)
    loss = loss_with(balancing, [1.0, 2.0, 0.5])
    with torch.no_grad():
        balancing.log_variances.copy_(torch.tensor([0.3, -0.5, 1.0]))
    (total, pooled_grad, _), report = step(loss, *batch())
    losses, gradients = numpy_losses_and_gradients(*batch())
    losses, s = losses * [1.0, 2.0, 0.5], np.array([0.3, -0.5, 1.0])
    c = 0.5 * np.exp(-s)
    assert total.item() == pytest.approx((c * losses + s / 2).sum(), rel=1e-6)
    np.testing.assert_allclose(report.coefficients, c * [1.0, 2.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(pooled_grad, np.einsum("t,tbd->bd", c * [1.0, 2.0, 0.5], gradients), rtol=1e-6)
    assert balancing.log_variances.grad is not None
    np.testing.assert_allclose(balancing.log_variances.grad, 0.5 - c * losses, rtol=1e-6)


def test_dwa_matches_the_paper_over_windows() -> None:
    balancing = DynamicWeightAverage(TASKS, temperature=2.0, window=3)
    loss, means, sums = loss_with(balancing), [], np.zeros((2, TASKS))
    for number in range(12):
        (_, pooled_grad, _), report = step(loss, *batch(seed=number))
        if len(means) < 2:
            expected = np.ones(TASKS)
        else:
            ratio = means[-1] / means[-2]
            expected = TASKS * np.exp(ratio / 2) / np.exp(ratio / 2).sum()
        np.testing.assert_allclose(report.coefficients, expected, rtol=1e-6)
        losses, gradients = numpy_losses_and_gradients(*batch(seed=number))
        np.testing.assert_allclose(pooled_grad, np.einsum("t,tbd->bd", expected, gradients), rtol=1e-6)
        rows = np.array([60, 60, batch(seed=number)[2][:, 0].sum()])
        sums += [losses * rows, rows]
        if number % 3 == 2:
            means.append(sums[0] / sums[1])
            sums = np.zeros((2, TASKS))
    assert not np.allclose(expected, 1)


def test_dwa_of_a_task_without_rows_is_neutral() -> None:
    balancing = DynamicWeightAverage(2, window=1)
    for _ in range(3):
        balancing(Totals(torch.tensor([0.0, 5.0]), torch.tensor([0.0, 10.0])), torch.ones(2), None)
    np.testing.assert_allclose(balancing.coefficients(), [1.0, 1.0])


def test_dwa_goes_on_where_its_state_left_off() -> None:
    first, second = DynamicWeightAverage(TASKS, window=2), DynamicWeightAverage(TASKS, window=2)
    for number in range(7):
        step(loss_with(first), *batch(seed=number))
    second.load_state_dict(first.state_dict())
    for number in range(7, 12):
        reports = [step(loss_with(one), *batch(seed=number))[1] for one in (first, second)]
        assert reports[0].coefficients.tolist() == reports[1].coefficients.tolist()


def numpy_min_norm(gram: np.ndarray) -> np.ndarray:
    """The convex combination of least norm, on a fine grid."""
    steps = np.linspace(0, 1, 201)
    grid = np.array([[a, b, 1 - a - b] for a in steps for b in steps if a + b <= 1 + 1e-12])
    return grid[np.einsum("nt,ts,ns->n", grid, gram, grid).argmin()]


def numpy_aligned(gram: np.ndarray) -> np.ndarray:
    """AlignedMTL (Senushkin et al., 2023) with equal preferences: the smallest singular value for all."""
    values, vectors = np.linalg.eigh(gram)
    return (np.sqrt(values.min()) * vectors @ np.diag(values**-0.5) @ vectors.T).sum(1)


def numpy_upgrad(gram: np.ndarray) -> np.ndarray:
    """Every gradient's projection onto the cone without conflict, summed: min |J^T (e_i + v)| over v >= 0."""
    from scipy.optimize import nnls

    root = np.linalg.cholesky(gram).T  # columns have the gradients' inner products
    return sum(np.eye(TASKS)[i] + nnls(root, -root[:, i])[0] for i in range(TASKS))


def numpy_cagrad(gram: np.ndarray, c: float = 0.4) -> np.ndarray:
    """Algorithm 1 of the paper, its inner minimum on a fine grid."""
    steps = np.linspace(0, 1, 201)
    grid = np.array([[a, b, 1 - a - b] for a in steps for b in steps if a + b <= 1 + 1e-12])
    mean = np.full(TASKS, 1 / TASKS)
    radius = c * np.sqrt(mean @ gram @ mean)
    norm = np.sqrt(np.einsum("nt,ts,ns->n", grid, gram, grid))
    best = (grid @ gram @ mean + radius * norm).argmin()
    return TASKS * (mean + radius / norm[best] * grid[best])


def weighting(kind: str) -> GradientBalancing:
    aggregation = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")
    make: dict[str, Callable[[], Any]] = {
        "mgda": lambda: aggregation.MGDAWeighting(epsilon=1e-6, max_iters=10_000),
        "aligned": aggregation.AlignedMTLWeighting,
        "upgrad": aggregation.UPGradWeighting,
        "cagrad": lambda: aggregation.CAGradWeighting(c=0.4),
        "pcgrad": aggregation.PCGradWeighting,
    }
    return GradientBalancing(make[kind](), of_mean=kind != "pcgrad")


@pytest.mark.parametrize(
    ("kind", "by_hand", "tolerance"),
    [
        ("mgda", lambda gram: TASKS * numpy_min_norm(gram), 0.03),
        ("aligned", numpy_aligned, 1e-6),
        ("upgrad", numpy_upgrad, 1e-2),
        ("cagrad", numpy_cagrad, 0.05),
    ],
)
def test_gradient_weights_match_numpy(kind: str, by_hand: Callable[[np.ndarray], np.ndarray], tolerance: float) -> None:
    (_, pooled_grad, weight_grad), report = step(loss_with(weighting(kind)), *batch())
    _, gradients = numpy_losses_and_gradients(*batch())
    flat = gradients.reshape(TASKS, -1)
    np.testing.assert_allclose(report.coefficients, by_hand(flat @ flat.T), atol=tolerance)
    np.testing.assert_allclose(pooled_grad, np.einsum("t,tbd->bd", report.coefficients, gradients), rtol=1e-6)
    assert weight_grad.abs().sum() > 0


def test_pcgrad_matches_the_paper_for_two_tasks() -> None:
    """With two tasks nothing is left to the order: each gradient loses its part along the other, if they conflict."""
    pcgrad = weighting("pcgrad")
    gram = torch.tensor([[4.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
    np.testing.assert_allclose(pcgrad.weighting(gram), [1 + 1 / 4, 1 + 1 / 2])
    np.testing.assert_allclose(pcgrad.weighting(gram.abs()), [1, 1])


@pytest.mark.parametrize("kind", ["pcgrad", "mgda", "upgrad", "aligned"])
def test_gradients_that_do_not_conflict_are_left_alone(kind: str) -> None:
    pooled = torch.randn(4, 3, requires_grad=True)
    parts = pooled.sum(0)  # a column each: orthogonal, of equal length
    coefficients, _ = weighting(kind)(Totals(parts.detach(), torch.ones(3)), parts, [pooled])
    np.testing.assert_allclose(coefficients, [1, 1, 1], rtol=1e-3)


@pytest.mark.parametrize("kind", ["mgda", "upgrad", "aligned", "cagrad"])
def test_small_gradients_are_weighed_like_large_ones(kind: str) -> None:
    """A mean over thousands of rows has tiny gradients by row."""
    gradients = torch.randn(TASKS, 7, dtype=torch.float64)
    coefficients = []
    for scale in (1.0, 1e-6):
        pooled = torch.zeros(7, dtype=torch.float64, requires_grad=True)
        parts = scale * (gradients @ pooled)
        coefficients.append(weighting(kind)(Totals(parts.detach(), torch.ones(TASKS)), parts, [pooled])[0])
    np.testing.assert_allclose(coefficients[0], coefficients[1], rtol=1e-4)


def test_a_negative_weight_becomes_zero() -> None:
    pooled = torch.randn(5, dtype=torch.float64, requires_grad=True)
    parts = torch.randn(TASKS, 5, dtype=torch.float64) @ pooled
    balancing = GradientBalancing(lambda gram: torch.tensor([-0.5, 0.25, 2.0], dtype=torch.float64))
    assert balancing(Totals(parts.detach(), torch.ones(TASKS)), parts, [pooled])[0].tolist() == [0.0, 0.25, 2.0]  # type: ignore[union-attr]


def test_cagrad_goes_on_where_a_loss_is_in_another_unit() -> None:
    pytest.importorskip("torchjd", reason="TorchJD is not installed")
    pooled = torch.randn(9, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    parts = torch.tensor([1.0, 1.0, 1e5], dtype=torch.float64) * (torch.randn(TASKS, 9, dtype=torch.float64) @ pooled)
    balancing = build_balancing(CAGradWeighting(kind="cagrad"), TASKS)
    coefficients, _ = balancing(Totals(parts.detach(), torch.ones(TASKS)), parts, [pooled])
    assert isinstance(coefficients, torch.Tensor)
    assert (coefficients > 0).all()


def test_uncertainty_of_a_task_without_rows_stands_still() -> None:
    balancing = Uncertainty(2)
    parts = torch.ones(2, requires_grad=True)
    c, regulariser = balancing(Totals(torch.tensor([0.0, 5.0]), torch.tensor([0.0, 10.0])), parts, None)
    ((c * parts * torch.tensor([0.0, 0.5])).sum() + regulariser).backward()
    assert balancing.log_variances.grad is not None
    np.testing.assert_allclose(balancing.log_variances.grad, [0.0, 0.25])


@pytest.mark.parametrize("kind", ["pcgrad", "mgda", "upgrad", "aligned", "cagrad"])
def test_a_task_without_rows_leaves_the_others_alone(kind: str) -> None:
    pooled, weight, labels = batch()
    labels[:, 0] = 0  # nobody clicked, so the third task has no rows
    (_, pooled_grad, _), report = step(loss_with(weighting(kind)), pooled, weight, labels)
    assert report.rows.tolist() == [60, 60, 0]
    assert (report.coefficients[:2] > 0).all()
    assert np.isfinite(pooled_grad).all()
    assert pooled_grad.abs().sum() > 0


def test_a_loss_that_is_not_finite_is_left_to_the_trainer() -> None:
    balancing = GradientBalancing(lambda gram: pytest.fail("asked about a matrix that is not finite"))
    pooled, weight, labels = batch()
    pooled[3] = torch.nan
    _, report = step(loss_with(balancing), pooled, weight, labels)
    assert report.coefficients.tolist() == [1, 1, 1]
    assert not report.local_sums.isfinite().all()


def test_an_evaluation_neither_weighs_nor_counts() -> None:
    balancing = DynamicWeightAverage(TASKS, window=2)
    loss = loss_with(balancing).eval()
    _, report = step(loss, *batch())
    assert report.coefficients.tolist() == [1, 1, 1]
    assert balancing.steps == 0
    with pytest.raises(ValueError, match="pooled embeddings"):
        GradientBalancing(torch.diagonal)(Totals(torch.ones(2), torch.ones(2)), torch.ones(2), None)


def on_a_rank(kind: str) -> tuple[list[float], list[float]]:
    """Four ranks of 1, 9, 40 and 10 rows: coefficients, and the gradient of the weight as DDP would average it."""
    with process_group("cpu", 60) as ranks:
        pooled, weight, labels = batch()
        first, last = [(0, 1), (1, 10), (10, 50), (50, 60)][ranks.rank]
        (_, _, weight_grad), report = step(loss_with(weighting(kind)), pooled[first:last], weight, labels[first:last])
        dist.all_reduce(weight_grad)
        return report.coefficients.tolist(), (weight_grad / 4).flatten().tolist()


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["upgrad", "aligned", "cagrad"])
def test_four_uneven_ranks_weigh_as_one_process_does(kind: str) -> None:
    (_, _, weight_grad), report = step(loss_with(weighting(kind)), *batch())
    for coefficients, gradient in run_ranks(4, on_a_rank, kind):
        np.testing.assert_allclose(coefficients, report.coefficients, atol=1e-6)
        np.testing.assert_allclose(gradient, weight_grad.flatten(), atol=1e-6)


@pytest.mark.distributed
def test_ranks_agree_though_pcgrad_draws() -> None:
    coefficients = [one for one, _ in run_ranks(4, on_a_rank, "pcgrad")]
    assert coefficients[0] == coefficients[1] == coefficients[2] == coefficients[3]


@pytest.mark.parametrize("kind", ["pcgrad", "mgda", "upgrad", "aligned", "cagrad"])
def test_a_job_s_method_leaves_gradients_alone_that_do_not_conflict(kind: str) -> None:
    """Whether it speaks of the sum of the tasks or of their mean."""
    pytest.importorskip("torchjd", reason="TorchJD is not installed")
    pooled = torch.randn(4, 3, requires_grad=True)
    parts = pooled.sum(0)  # a column each: orthogonal, of equal length
    job = toy_job(loss={"weighting": {"kind": kind}})
    coefficients, _ = build_balancing(job.loss.weighting, 3)(Totals(parts.detach(), torch.ones(3)), parts, [pooled])
    np.testing.assert_allclose(coefficients, coefficients[0], rtol=1e-3)  # type: ignore[index]
    if kind != "cagrad":  # which goes beyond the mean
        np.testing.assert_allclose(coefficients, [1, 1, 1], rtol=1e-3)
