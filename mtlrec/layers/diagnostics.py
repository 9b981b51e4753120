"""A look inside the gated levels of a model on one batch, at no cost to any other batch.

Shapes: B batch, G gates, E experts.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.level import GatedLevel


class LevelDiagnostics(NamedTuple):
    """What one level did with a batch."""

    gates: Tensor
    """`[B, G, E]`: the gates' weights, which add up to 1 over E."""
    weights: Tensor
    """`[B, G, E]`: what the experts were weighed with, the level's residual included."""
    norms: Tensor
    """`[B, E]`: the Euclidean norm of every expert's output."""
    zeros: Tensor
    """`[B, E]`: the share of every expert's outputs that are exactly zero."""


def diagnose(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, LevelDiagnostics]:
    """Run `model(*args, **kwargs)` without gradients, in evaluation mode, and look into each of its gated levels.

    Works on a fusion layer or on any model that holds one, and leaves it as it was. Experts stand in the
    layer's order: the tasks' in turn, the shared ones last. A sharded model is run on every rank, outside its pipeline.

    Returns:
        For every `GatedLevel`, by its name in the model and in the order they ran, what it did. A layer without gates
        (single_task, shared_bottom, asymmetric, cross_stitch, customized) has none.

    Example:
        >>> from mtlrec.layers import MMoE
        >>> seen = diagnose(MMoE(8, num_tasks=2, num_experts=3, expert_hidden=[[16], [6]]), torch.randn(5, 8))
        >>> {name: (tuple(level.gates.shape), tuple(level.norms.shape)) for name, level in seen.items()}
        {'levels.0': ((5, 3, 3), (5, 3)), 'levels.1': ((5, 2, 3), (5, 3))}
    """
    seen: dict[str, LevelDiagnostics] = {}
    names = {module: name for name, module in model.named_modules() if isinstance(module, GatedLevel)}
    gates: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep_gates(bank: nn.Module, args: tuple[Tensor], weights: Tensor) -> None:
        gates[bank] = (weights, *args)

    def look(level: GatedLevel, args: tuple[Tensor, ...], _: Any) -> None:
        chosen, selector = gates.pop(level.gates)
        outputs = level.experts(args[0])
        zeros = (outputs == 0).to(outputs.dtype).mean(dim=-1)
        seen[names[level]] = LevelDiagnostics(chosen, level.weigh(chosen, selector), outputs.norm(dim=-1), zeros)

    hooks = [level.gates.register_forward_hook(keep_gates) for level in names]
    hooks += [level.register_forward_hook(look) for level in names]
    in_training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for module in in_training:
            module.training = True
        for hook in hooks:
            hook.remove()
    return seen
