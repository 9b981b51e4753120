"""The plain MLP every other part is made of: Linear then ReLU, the last Linear included.

Shapes: `...` any leading dimensions, D input width, H output width (the last entry of `hidden`).
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def check_positive(**sizes: int) -> None:
    """Raise ValueError for the first size that is no whole number or below 1, by its keyword."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise ValueError(f"{name} must be a whole number, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_probability(**probabilities: object) -> None:
    """Raise ValueError for the first that is not in [0, 1), by its keyword."""
    for name, probability in probabilities.items():
        if isinstance(probability, bool) or not isinstance(probability, int | float):
            raise ValueError(f"{name} must be a number, got {probability!r}")
        if not 0 <= probability < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {probability}")


def is_list(value: object) -> bool:
    """Whether it is a sequence of things, which a string is not meant to be."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_hidden(hidden: Sequence[int], name: str = "hidden") -> tuple[int, ...]:
    """A copy of the layer widths, so that nobody's list is shared; ValueError if one is below 1 or it is no list."""
    if not is_list(hidden):
        raise ValueError(f"{name} must be a list of layer widths such as [256, 64], got {hidden!r}")
    for width in hidden:
        check_positive(**{f"every width in {name}": width})
    return tuple(hidden)


def check_input(owner: str, x: Tensor, input_dim: int, num_slots: int | None) -> None:
    """Raise ValueError unless `x` is `[B, input_dim]` or, where there are slots, `[B, num_slots, input_dim]`."""
    is_shared = x.dim() == 2 and x.shape[1] == input_dim
    is_slotted = x.dim() == 3 and x.shape[1] == num_slots and x.shape[2] == input_dim
    if not (is_shared or is_slotted):
        wanted = f"[B, {input_dim}]" + (f" or [B, {num_slots}, {input_dim}]" if num_slots is not None else "")
        raise ValueError(f"{owner} takes an input of shape {wanted}, got {list(x.shape)}")


class MLP(nn.Module):
    """Linear + ReLU for every width in `hidden`; with an empty `hidden`, the identity.

    Args:
        input_dim: D, the width of the input.
        hidden: output width of each Linear, in order.

    Attributes:
        output_dim: H, the last width of `hidden`, or D when `hidden` is empty.

    Shapes: `[..., D] -> [..., H]`, any leading dimensions.

    Raises:
        ValueError: for a width below 1, or an input whose last dimension is not D.

    Example:
        >>> import torch
        >>> mlp = MLP(8, [16, 4])
        >>> mlp(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, input_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        check_positive(input_dim=input_dim)
        widths = (input_dim, *check_hidden(hidden))
        self.input_dim = input_dim
        self.output_dim = widths[-1]
        self.net = nn.Sequential()
        for fan_in, fan_out in pairwise(widths):
            self.net.append(nn.Linear(fan_in, fan_out))
            self.net.append(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.input_dim:
            raise ValueError(f"MLP takes an input of shape [..., {self.input_dim}], got {list(x.shape)}")
        y: Tensor = self.net(x)
        return y
