"""A bank of experts: E MLPs of one shape, stacked, which is what every fusion layer is made of.

Shapes: B batch, E experts, G weighted sums of them, S slots (inputs the experts read), D input width, H output width.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Literal, TypedDict, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtlrec.layers.blocks.arguments import Dropout, NonEmptyWidths, Size
from mtlrec.layers.blocks.axes import Axes, Labels, units
from mtlrec.layers.blocks.expert_groups import plan_groups
from mtlrec.layers.blocks.linear import BatchedLinear, batched_linear
from mtlrec.layers.blocks.mixture import RECOMPUTED_GROUP_BYTES, mix_relu_experts, repeat_slots
from mtlrec.layers.blocks.mlp import check_hidden, check_input, check_positive, check_probability

Activation = Literal["relu", "silu", "gelu"]
Norm = Literal["layer", "batch"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


class ExpertOptions(TypedDict, total=False):
    """What every layer of experts takes beside its sizes. A layer of an expert is Linear, norm, activation, dropout.

    Keys:
        activation: relu (the default), silu or gelu (exact).
        norm: None (the default); layer, over each expert's width; batch, over the rows a rank sees.
        dropout: the share of each layer's outputs that training sets to zero; 0 by default.
        recompute: keep no expert's activations for backward but compute them again there: memory for a third more
            arithmetic. False by default; not with batch norm, whose running statistics would count every row twice.
    """

    activation: Activation
    norm: Norm | None
    dropout: Dropout
    recompute: bool


class ExpertNorm(nn.Module):
    """Layer or batch norm of every expert's outputs, each expert with weights of its own.

    Args:
        kind: layer or batch.
        num_experts: E.
        width: H.

    In training, batch norm takes a batch of one row by what it has seen so far.

    Shapes: `[B, E, H]` -> the same.

    Example:
        >>> import torch
        >>> ExpertNorm("layer", 3, 4)(torch.randn(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    no_decay = ("weight",)

    def __init__(self, kind: Norm, num_experts: int, width: int) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(num_experts * width, affine=False) if kind == "batch" else None
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        self.bias = nn.Parameter(torch.empty(num_experts, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x_BEH: Tensor, experts: slice = slice(None)) -> Tensor:
        """`experts`: which of them `x` is of; batch norm wants all."""
        if self.batch_norm is None:
            normed = F.layer_norm(x_BEH, x_BEH.shape[-1:])
        else:
            normed = self._normalize_batch(x_BEH.flatten(1), self.batch_norm).view(x_BEH.shape)
        return normed * self.weight[experts] + self.bias[experts]

    def _normalize_batch(self, x: Tensor, batch_norm: nn.BatchNorm1d) -> Tensor:
        if self.training and x.shape[0] == 1:  # an epoch's last batch may be one row, which has no variance
            return F.batch_norm(x, batch_norm.running_mean, batch_norm.running_var, eps=batch_norm.eps)
        normed: Tensor = batch_norm(x)
        return normed


class ExpertBank(nn.Module):
    """E expert MLPs (Linear, norm, activation, dropout for every width, the last included) as batched products.

    Args:
        num_experts: E.
        input_dim: D, the width every expert reads.
        hidden: widths of every expert's layers; at least one.
        experts_per_slot: for an input of slots, how many experts read slot 0, slot 1, ...: experts are ordered by
            slot and the counts add up to E. By default a slot per expert.
        activation, norm, dropout, recompute: see `ExpertOptions`.

    Attributes:
        output_dim: H, the last width of `hidden`.
        num_slots: S.
        layers: `BatchedLinear`s that hold the weights; they are not called, so hooks on them see nothing.

    Shapes: `[B, D]` (all experts read the same) or `[B, S, D]` -> `[B, E, H]` (not necessarily contiguous); `mix` takes
    weights `[B, G, E]` too and gives `[B, G, H]`.

    Raises:
        ValueError: for a size below 1, an empty `hidden`, counts that do not add up to E, an unknown option, or an
            input of another shape.

    Example:
        >>> import torch
        >>> bank = ExpertBank(3, 8, [16, 4], experts_per_slot=[2, 1])
        >>> bank(torch.randn(5, 8)).shape, bank(torch.randn(5, 2, 8)).shape
        (torch.Size([5, 3, 4]), torch.Size([5, 3, 4]))
    """

    def __init__(
        self,
        num_experts: Size,
        input_dim: Size,
        hidden: NonEmptyWidths,
        experts_per_slot: Sequence[Size] | None = None,
        activation: Activation = "relu",
        norm: Norm | None = None,
        dropout: Dropout = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_positive(num_experts=num_experts, input_dim=input_dim)
        widths = (input_dim, *check_hidden(hidden))
        if len(widths) == 1:
            raise ValueError("hidden must have at least one width: an expert without a layer has nothing to learn")
        _check_options(activation, norm, dropout, recompute)
        self.num_experts = num_experts
        self.input_dim = input_dim
        self.output_dim = widths[-1]
        self.experts_per_slot = tuple(experts_per_slot) if experts_per_slot is not None else (1,) * num_experts
        if min(self.experts_per_slot, default=0) < 1 or sum(self.experts_per_slot) != num_experts:
            raise ValueError(
                f"experts_per_slot must be counts of at least 1 that add up to num_experts={num_experts}, "
                f"got {list(self.experts_per_slot)}"
            )
        self.num_slots = len(self.experts_per_slot)
        self.activation = activation
        self.dropout = dropout
        self.recompute = recompute
        self.layers = nn.ModuleList(BatchedLinear(num_experts, fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.norms = nn.ModuleList(ExpertNorm(norm, num_experts, width) for width in widths[1:]) if norm else None

    def axes(self, experts: Sequence[Hashable], columns: Labels) -> Axes:
        """Args: labels of the experts, and of what they read."""
        axes: Axes = {}
        for i in range(len(self.layers)):
            axes[f"layers.{i}.weight"] = (experts, None, None if i else columns)
            axes[f"layers.{i}.bias"] = (experts, None)
        for i, norm in enumerate(cast(Iterable[ExpertNorm], self.norms or ())):
            axes |= {f"norms.{i}.weight": (experts, None), f"norms.{i}.bias": (experts, None)}
            if norm.batch_norm is not None:
                outputs = units(experts, norm.weight.shape[1])
                axes |= {f"norms.{i}.batch_norm.running_{name}": (outputs,) for name in ("mean", "var")}
        return axes

    def extra_repr(self) -> str:
        return f"activation={self.activation}, dropout={self.dropout}, recompute={self.recompute}"

    def forward(self, x: Tensor) -> Tensor:
        check_input("ExpertBank", x, self.input_dim, self.num_slots)
        parts = [self._again_in_backward(self._experts, x, experts) for experts in self._pieces(x)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def mix(self, x: Tensor, weights_BGE: Tensor) -> Tensor:
        """Weighted sums of the experts' outputs, `sum_e weights[b, g, e] * expert_e(x)[b]`: `[B, G, H]`.

        Plain ReLU experts on a CPU, and wherever they are recomputed, take the way of `mixture.py`. This is not
        `forward`: hooks on the bank do not see it.
        """
        check_input("ExpertBank", x, self.input_dim, self.num_slots)
        if self._go_by_groups(x):
            parameters: list[Tensor] = [p for layer in self._layers() for p in (layer.weight, layer.bias)]
            x, weights_BGE, *parameters = _autocast(x, weights_BGE, *parameters)
            return mix_relu_experts(x, weights_BGE, self.experts_per_slot, parameters, self.recompute)
        out = None
        for experts in self._pieces(x):
            part = self._again_in_backward(self._mix_some, x, weights_BGE, experts)
            out = part if out is None else out + part
        assert out is not None
        return out

    def _mix_some(self, x: Tensor, weights_BGE: Tensor, experts: slice) -> Tensor:
        return torch.bmm(weights_BGE[:, :, experts], self._experts(x, experts))

    def _experts(self, x: Tensor, experts: slice) -> Tensor:
        """`[B, k, H]`: the outputs of some experts, or with `slice(None)` of all."""
        h = repeat_slots(x, self.experts_per_slot)[:, experts] if x.dim() == 3 else x
        for i, layer in enumerate(self._layers()):
            h = batched_linear(h, layer.weight[experts], layer.bias[experts])
            h = h if self.norms is None else self.norms[i](h, experts)
            h = F.dropout(ACTIVATIONS[self.activation](h), self.dropout, self.training)
        return h

    def _layers(self) -> Iterable[BatchedLinear]:
        return cast(Iterable[BatchedLinear], self.layers)

    def _go_by_groups(self, x: Tensor) -> bool:
        is_plain = self.activation == "relu" and self.norms is None and not (self.training and self.dropout)
        # A compiler makes its own groups, and the number of ours depends on the batch size.
        return is_plain and (x.device.type == "cpu" or self.recompute) and not torch.compiler.is_compiling()

    def _pieces(self, x: Tensor) -> list[slice]:
        """The experts to compute together: all of them, unless little is to be held at a time."""
        if not self._forgets() or torch.compiler.is_compiling():
            return [slice(None)]
        width = max(layer.bias.shape[1] for layer in self._layers())
        return [group.experts for group in plan_groups(x, self.experts_per_slot, width, RECOMPUTED_GROUP_BYTES)]

    def _again_in_backward(self, function: Callable[..., Tensor], *args: Tensor | slice) -> Tensor:
        """`function(*args)`; with `recompute`, its activations are not kept for backward."""
        if not self._forgets():
            return function(*args)
        again: Tensor = checkpoint(function, *args, use_reentrant=False)
        return again

    def _forgets(self) -> bool:
        return self.recompute and torch.is_grad_enabled() and not torch.compiler.is_exporting()


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """What autocast would do at the door of a product: float32 to its dtype, where it is on."""
    kind = tensors[0].device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return list(tensors)
    return [t.to(torch.get_autocast_dtype(kind)) if t.dtype == torch.float32 else t for t in tensors]


def _check_options(activation: str, norm: str | None, dropout: float, recompute: bool) -> None:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if norm is not None and norm not in get_args(Norm):
        raise ValueError(f"norm must be None, {' or '.join(get_args(Norm))}, got {norm!r}")
    check_probability(dropout=dropout)
    if not isinstance(recompute, bool):
        raise ValueError(f"recompute must be True or False, got {recompute!r}")
    if recompute and norm == "batch":
        raise ValueError(
            "recompute does not go with norm='batch': its running statistics would count every row twice; "
            "use norm='layer', or leave recompute out"
        )
