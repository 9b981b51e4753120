"""A package that is no part of mtlrec, with a fusion layer, a head, a bottom, a task loss and a metric of its own."""

from pathlib import Path
from typing import Any

PARTS = '''
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn.functional import softplus

from mtlrec.heads import Head, HeadOutput
from mtlrec.layers import MLP, Bottom, FusionLayer
from mtlrec.losses import TaskLoss
from mtlrec.metrics import Metric
from mtlrec.metrics.errors import ErrorSums


class Sum(Bottom):
    """Embeddings are added up, dense features stand beside them.

    Args:
        scale: what the sum is multiplied with
    """

    def __init__(self, dense_dim: int, embedding_dims: Sequence[int], scale: Annotated[float, Gt(0)] = 1.0) -> None:
        super().__init__(dense_dim, embedding_dims)
        self.scale, self.output_dim = scale, dense_dim + embedding_dims[0]

    def forward(self, dense: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
        return torch.cat([dense, self.scale * sum(embeddings)], dim=1)


class Attention(FusionLayer):
    """A vector for each task asks which of a few shared MLPs to listen to."""

    def __init__(self, input_dim: int, num_tasks: int, expert_hidden: list[list[int]], num_experts: int = 2) -> None:
        super().__init__(input_dim, num_tasks, output_dim=expert_hidden[-1][-1])
        hidden = [width for level in expert_hidden for width in level]
        self.experts = nn.ModuleList(MLP(input_dim, hidden) for _ in range(num_experts))
        self.queries = nn.Parameter(torch.randn(num_tasks, self.output_dim))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        scores = torch.einsum("beh,th->bte", outputs, self.queries).softmax(dim=2)
        return scores @ outputs


class Plain(Head):
    """A linear map to each task, and a small penalty on large logits in training."""

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        sampling_rates: Sequence[float] | None = None,
        penalty: float = 0.01,
    ) -> None:
        super().__init__(tasks, parents, sampling_rates)
        self.penalty, self.weight = penalty, nn.Parameter(torch.zeros(len(tasks), input_dim))
        self.bias = nn.Parameter(torch.zeros(len(tasks)))

    def forward(self, fused: Tensor) -> HeadOutput:
        return self.over_impressions(((fused * self.weight).sum(2) + self.bias).float())

    def add_terms(self, rows: Tensor, outputs: HeadOutput, targets: Tensor, row_losses) -> Tensor:
        return rows + self.penalty * outputs.value.square()


@dataclass(frozen=True)
class LogCosh(TaskLoss):
    """log(cosh(error / scale)), quadratic near 0 and linear far off.

    Args:
        scale: the error where it turns
    """

    scale: Annotated[float, Gt(0)] = 1.0
    label_rule: ClassVar[str] = "number"

    def row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        error = (outputs.value - targets) / self.scale
        return error + softplus(-2 * error)

    def predictions(self, outputs: HeadOutput) -> Tensor:
        return outputs.value

    def initial_value(self, mean: float) -> float:
        return mean


class Bias(Metric):
    """How far predictions are off on average."""

    name, description, sums, of = "bias", "mean prediction less mean label", ErrorSums, "numbers"

    @staticmethod
    def value(sums: ErrorSums) -> float:
        return sums.mean(4) - sums.mean(3)
'''


def write_package(folder: Path) -> Path:
    """`their_parts` in `folder`, which belongs on the path."""
    (folder / "their_parts").mkdir(parents=True)
    (folder / "their_parts" / "__init__.py").write_text(PARTS)
    return folder


def own_sections() -> dict[str, Any]:
    """Sections of the toy job that use all of the parts."""
    return {
        "model": {
            "bottom": {"kind": "their_parts:Sum", "scale": 0.5},
            "fusion": {"kind": "their_parts:Attention", "expert_hidden": [[16], [8]], "num_experts": 3},
            "heads": {"kind": "their_parts:Plain", "penalty": 0.001},
        },
        "tasks": [
            {"name": "click", "label": "is_click"},
            {"name": "buy", "label": "is_buy", "given": "click"},
            {"name": "ratio", "kind": "their_parts:LogCosh", "label": "watch_ratio", "space": "click", "scale": 0.5},
        ],
        "metrics": {"extra": ["their_parts:Bias"]},
    }
