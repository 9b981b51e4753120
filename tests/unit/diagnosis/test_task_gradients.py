"""Norms and cosines of the tasks' gradients against NumPy."""

import numpy as np
import pytest
import torch

from mtlrec.diagnosis.task_gradients import TaskGradients
from mtlrec.losses.balancing import Totals


@pytest.mark.parametrize("batches", [1, 3])
def test_norms_are_means_over_batches(batches: int) -> None:
    """Of equal batches as of one."""
    gradients = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = TaskGradients(2, torch.device("cpu"))
    for _ in range(batches):
        pooled = torch.zeros(7, dtype=torch.float64, requires_grad=True)
        parts = gradients @ pooled
        coefficients, added = found(Totals(parts.detach(), torch.ones(2)), parts, pooled)
        assert (coefficients.tolist(), added) == ([1.0, 1.0], 0.0)
    norms, cosines = found.compute()
    expected = np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(norms, expected)
    np.testing.assert_allclose(cosines, (gradients @ gradients.T).numpy() / np.outer(expected, expected))
