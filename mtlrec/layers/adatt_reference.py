"""Weights in and out of the form AdaTT's authors published theirs in: one `torch.nn.Linear` per expert layer and gate.

Ours are stacked (see experts.py), but expert e's weight is `weight[e]`, in the layout of `torch.nn.Linear`, so a name
of theirs is a parameter of ours and an index into it; `meta_slices` lists them and both directions copy through it.

    experts.L.E.mlp_net.K.{weight,bias}         level L, expert E; K = 0, 2, ..., the ReLUs between have the odd numbers
    gates.L.G.0.mlp_net.K.{weight,bias}         the MLP before gate G of MMoE
    gates.L.G.1.{weight,bias}                   gate G of MMoE
    gate_weights.L.G.0.{weight,bias}            gate G of PLE and AdaTT
    self_exp_weights.L                          AdaTT-sp's native residual, [T, m]; absent for m = 1
    self_exp_weights.M                          AdaTT's, of module M (a task or, last, the shared one): a row per level
                                                in which M has a gate; absent where every module has one expert
    stitchs.L.weight                            cross-stitch's matrix after level L
    bottom_projection.mlp_net.K.{weight,bias}   shared bottom
    taskN_mlp.mlp_net.K.{weight,bias}           asymmetric, N from 1
    taskN_proj.{weight,bias}                    asymmetric, N from 2
"""

from collections.abc import Callable, Iterator, Mapping
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.experts import ExpertBank
from mtlrec.layers.blocks.gates import GateBank
from mtlrec.layers.blocks.level import NativeResidual
from mtlrec.layers.fusions.adatt import AdaTT, AdaTTSp
from mtlrec.layers.fusions.asymmetric import AsymmetricBottom
from mtlrec.layers.fusions.cross_stitch import CrossStitch
from mtlrec.layers.fusions.fusion import FusionLayer
from mtlrec.layers.fusions.mmoe import MMoE
from mtlrec.layers.fusions.ple import PLE
from mtlrec.layers.fusions.shared_bottom import SharedBottom

KINDS: dict[str, type[FusionLayer]] = {
    "shared_bottom": SharedBottom,
    "asymmetric": AsymmetricBottom,
    "cross_stitch": CrossStitch,
    "mmoe": MMoE,
    "ple": PLE,
    "adatt_sp": AdaTTSp,
    "adatt": AdaTT,
}


class MetaSlice(NamedTuple):
    """Where a tensor of the reference, or a row of one, lies among our parameters."""

    name: str
    parameter: nn.Parameter
    part: int | slice | EllipsisType
    """Of the part of `parameter`."""
    row: int | None = None
    """Of the reference's tensor, where this is only a row of it; rows come in order."""


def from_adatt_reference(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> FusionLayer:
    """A layer of ours with the public reference's weights.

    Args:
        config: `kind` (shared_bottom, asymmetric, cross_stitch, mmoe, ple, which with one level is CGC, adatt_sp or
            adatt) and the constructor's arguments.
        state_dict: the reference's parameters under its own names, all of one dtype and on one device: the layer
            takes both.

    Raises:
        ValueError: for another kind, arguments the layer does not have, mixed dtypes or devices, or names or shapes
            that do not fit the config (all of them are listed).

    Example:
        >>> config = {"kind": "mmoe", "input_dim": 8, "num_tasks": 2, "num_experts": 3, "expert_hidden": [[4]]}
        >>> weights = to_adatt_reference(MMoE(8, 2, [[4]], 3))
        >>> from_adatt_reference(config, weights)(torch.randn(5, 8)).shape
        torch.Size([5, 2, 4])
    """
    layer = _build(config)
    dtypes_and_devices = {(tensor.dtype, tensor.device) for tensor in state_dict.values()}
    if len(dtypes_and_devices) > 1:
        raise ValueError(f"the state dict mixes dtypes or devices ({dtypes_and_devices}): convert it to one first")
    for dtype, device in dtypes_and_devices:
        layer = layer.to(device=device, dtype=dtype)
    _check_fit(layer, state_dict)
    with torch.no_grad():
        for name, parameter, part, row in meta_slices(layer):
            parameter[part].copy_(state_dict[name] if row is None else state_dict[name][row])
    return layer


def to_adatt_reference(layer: nn.Module) -> dict[str, Tensor]:
    """The layer's weights under the public reference's names: the inverse of `from_adatt_reference`. Copies, detached.

    Raises:
        ValueError: for a layer the reference has no names for.

    Example:
        >>> sorted(to_adatt_reference(SharedBottom(8, 2, [[4]])))
        ['bottom_projection.mlp_net.0.bias', 'bottom_projection.mlp_net.0.weight']
    """
    return reference_tensors(layer, lambda parameter: parameter)


def reference_tensors(layer: nn.Module, tensor_of: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """What belongs to the layer's parameters, under the reference's names: `tensor_of` gives a tensor of a parameter's
    shape, such as its gradient. Copies, detached.

    Raises:
        ValueError: for a layer the reference has no names for.

    Example:
        >>> layer = SharedBottom(8, 2, [[4]])
        >>> layer(torch.randn(5, 8)).sum().backward()
        >>> sorted(reference_tensors(layer, lambda parameter: parameter.grad))
        ['bottom_projection.mlp_net.0.bias', 'bottom_projection.mlp_net.0.weight']
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter, part, row in meta_slices(layer):
        tensor = tensor_of(parameter).detach()[part].clone()
        if row is None:
            tensors[name] = tensor
        else:
            rows_before = tensors.get(name, tensor.new_empty(0, *tensor.shape))
            tensors[name] = torch.cat([rows_before, tensor.unsqueeze(0)])
    if isinstance(layer, AdaTT) and len(layer.levels) == 1:
        tensors |= _residual_of_a_gateless_module(layer)
    return tensors


def _residual_of_a_gateless_module(layer: AdaTT) -> dict[str, Tensor]:
    """With one level the shared module has no gate, so no residual; the reference keeps a parameter without rows."""
    residual = next(layer.gated_levels()).residual
    if not isinstance(residual, NativeResidual) or residual.weight is None:
        return {}
    return {f"self_exp_weights.{layer.num_tasks}": residual.weight.detach().new_empty(0, layer.experts_per_slot[-1])}


def meta_slices(layer: nn.Module) -> Iterator[MetaSlice]:
    """Each name of the reference, with the parameter of ours that holds it and the index of its part.

    Raises:
        ValueError: for a layer the reference has no names for, or with options it does not have.
    """
    if any(isinstance(module, ExpertBank) and not _is_plain(module) for module in layer.modules()):
        raise ValueError("the public reference knows plain ReLU experts only: no norm, no other activation")
    match layer:
        case SharedBottom():
            yield from _one_expert("bottom_projection", layer.experts, 0)
        case AsymmetricBottom():
            yield from _asymmetric(layer)
        case CrossStitch():
            for index, (bank, stitch) in enumerate(layer.levels()):
                yield from _experts(index, bank)
                yield MetaSlice(f"stitchs.{index}.weight", stitch.weight, ...)
        case MMoE():
            for index, level in enumerate(layer.gated_levels()):
                yield from _experts(index, level.experts)
                yield from _gates(f"gates.{index}", level.gates, linear=1)
        case PLE():
            for index, level in enumerate(layer.gated_levels()):
                yield from _experts(index, level.experts)
                yield from _gates(f"gate_weights.{index}", level.gates, linear=0)
        case AdaTTSp() | AdaTT():
            for index, level in enumerate(layer.gated_levels()):
                yield from _experts(index, level.experts)
                yield from _gates(f"gate_weights.{index}", level.gates, linear=0)
            yield from _residuals(layer)
        case _:
            raise ValueError(
                f"the public reference has no names for the weights of {type(layer).__name__}; "
                f"it has them for {', '.join(kind.__name__ for kind in KINDS.values())}"
            )


def _is_plain(bank: ExpertBank) -> bool:
    return bank.activation == "relu" and bank.norms is None


def _asymmetric(layer: AsymmetricBottom) -> Iterator[MetaSlice]:
    for task in range(layer.num_tasks):
        yield from _one_expert(f"task{task + 1}_mlp", layer.experts, task)
    for task, projection in enumerate(layer.projections, start=2):
        for name, parameter in projection.named_parameters():
            yield MetaSlice(f"task{task}_proj.{name}", parameter, ...)


def _experts(level: int, bank: ExpertBank) -> Iterator[MetaSlice]:
    for expert in range(bank.num_experts):
        yield from _one_expert(f"experts.{level}.{expert}", bank, expert)


def _gates(prefix: str, bank: GateBank, linear: int) -> Iterator[MetaSlice]:
    """`linear` is the Linear's place in the reference's gate: after an MLP, or alone."""
    for gate in range(bank.num_gates):
        yield MetaSlice(f"{prefix}.{gate}.{linear}.weight", bank.weight, bank.rows(gate))
        yield MetaSlice(f"{prefix}.{gate}.{linear}.bias", bank.bias, bank.rows(gate))
        if bank.selector is not None:
            yield from _one_expert(f"{prefix}.{gate}.0", bank.selector, gate)


def _residuals(layer: AdaTTSp | AdaTT) -> Iterator[MetaSlice]:
    """AdaTT-sp's are a tensor per level with a row per task; AdaTT's are the other way round."""
    for level, residual in enumerate(level.residual for level in layer.gated_levels()):
        if isinstance(residual, NativeResidual) and residual.weight is not None:
            for module in range(len(residual.experts_per_gate)):
                tensor, row = (module, level) if isinstance(layer, AdaTT) else (level, module)
                yield MetaSlice(f"self_exp_weights.{tensor}", residual.weight, residual.rows(module), row)


def _one_expert(prefix: str, bank: ExpertBank, expert: int) -> Iterator[MetaSlice]:
    for k, layer in enumerate(bank.layers):
        for name, parameter in layer.named_parameters():
            yield MetaSlice(f"{prefix}.mlp_net.{2 * k}.{name}", parameter, expert)


def _build(config: Mapping[str, Any]) -> FusionLayer:
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} has no public reference weights here; kinds that have: {', '.join(KINDS)}")
    try:
        return KINDS[kind](**arguments)
    except TypeError as error:  # an option that ExpertOptions does not have
        raise ValueError(f"the config of {kind} does not fit {KINDS[kind].__name__}: {error}") from None


def _check_fit(layer: FusionLayer, state_dict: Mapping[str, Tensor]) -> None:
    wanted = {name: list(tensor.shape) for name, tensor in to_adatt_reference(layer).items()}
    given = {name: list(tensor.shape) for name, tensor in state_dict.items()}
    problems = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    problems += [f"{name} is not expected" for name in given.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {given[name]} instead of {wanted[name]}"
        for name in wanted.keys() & given.keys()
        if given[name] != wanted[name]
    ]
    if problems:
        raise ValueError("the state dict does not fit the config: " + "; ".join(sorted(problems)))
