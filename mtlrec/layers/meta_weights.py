"""Weights in and out of the form AdaTT's authors published theirs in: one `torch.nn.Linear` per expert layer and gate.

Ours are stacked (see experts.py), but expert e's weight is `weight[e]`, in the layout of `torch.nn.Linear`, so a name
of theirs is a parameter of ours and an index into it; `meta_slices` lists them and both directions copy through it.

    experts.L.E.mlp_net.K.{weight,bias}         level L, expert E; K = 0, 2, ..., the ReLUs between have the odd numbers
    gates.L.G.0.mlp_net.K.{weight,bias}         the MLP before gate G of MMoE
    gates.L.G.1.{weight,bias}                   gate G of MMoE
    gate_weights.L.G.0.{weight,bias}            gate G of PLE and AdaTT
    self_exp_weights.L                          AdaTT-sp's native residual, [T, m]; absent for m = 1
    bottom_projection.mlp_net.K.{weight,bias}   shared bottom
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import EllipsisType
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtlrec.layers.adatt import AdaTTSp
from mtlrec.layers.experts import ExpertBank
from mtlrec.layers.fusion import FusionLayer
from mtlrec.layers.gates import GateBank
from mtlrec.layers.mmoe import MMoE
from mtlrec.layers.ple import PLE
from mtlrec.layers.shared_bottom import SharedBottom

KINDS: dict[str, type[FusionLayer]] = {"shared_bottom": SharedBottom, "mmoe": MMoE, "ple": PLE, "adatt_sp": AdaTTSp}

Slice = tuple[str, nn.Parameter, int | slice | EllipsisType]


def from_meta(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> FusionLayer:
    """A layer of ours with the public reference's weights.

    Args:
        config: `kind` (shared_bottom, mmoe, ple, which with one level is CGC, or adatt_sp) and the constructor's
            arguments.
        state_dict: the reference's parameters under its own names, all of one dtype and on one device: the layer
            takes both.

    Raises:
        ValueError: for another kind, arguments the layer does not have, mixed dtypes or devices, or names or shapes
            that do not fit the config (all of them are listed).

    Example:
        >>> config = {"kind": "mmoe", "input_dim": 8, "num_tasks": 2, "num_experts": 3, "expert_hidden": [[4]]}
        >>> weights = to_meta(MMoE(8, 2, 3, [[4]]))
        >>> from_meta(config, weights)(torch.randn(5, 8)).shape
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
        for name, parameter, index in meta_slices(layer):
            parameter[index].copy_(state_dict[name])
    return layer


def to_meta(layer: nn.Module) -> dict[str, Tensor]:
    """The layer's weights under the public reference's names: the inverse of `from_meta`. Copies, detached.

    Raises:
        ValueError: for a layer the reference has no names for.

    Example:
        >>> sorted(to_meta(SharedBottom(8, 2, [[4]])))
        ['bottom_projection.mlp_net.0.bias', 'bottom_projection.mlp_net.0.weight']
    """
    return {name: parameter.detach()[index].clone() for name, parameter, index in meta_slices(layer)}


def meta_slices(layer: nn.Module) -> Iterator[Slice]:
    """Each name of the reference, with the parameter of ours that holds it and the index of its part.

    Also right for what has a parameter's shape: gradients (`parameter.grad[index]`), an optimizer's moments.

    Raises:
        ValueError: for a layer the reference has no names for.
    """
    match layer:
        case SharedBottom():
            yield from _mlp(layer)
        case MMoE():
            yield from _experts(layer)
            yield from _gates(layer, "gates.{level}.{gate}.1")
        case PLE():
            yield from _experts(layer)
            yield from _gates(layer, "gate_weights.{level}.{gate}.0")
        case AdaTTSp():
            yield from _experts(layer)
            yield from _gates(layer, "gate_weights.{level}.{gate}.0")
            yield from _residuals(layer)
        case _:
            raise ValueError(
                f"the public reference has no names for the weights of {type(layer).__name__}; "
                f"it has them for {', '.join(kind.__name__ for kind in KINDS.values())}"
            )


def _mlp(layer: SharedBottom) -> Iterator[Slice]:
    for name, parameter in layer.mlp.net.named_parameters():
        yield f"bottom_projection.mlp_net.{name}", parameter, ...


def _experts(layer: MMoE | PLE | AdaTTSp) -> Iterator[Slice]:
    for level, bank in enumerate(cast(Iterable[ExpertBank], layer.experts)):
        for expert in range(bank.num_experts):
            yield from _one_expert(f"experts.{level}.{expert}", bank, expert)


def _gates(layer: MMoE | PLE | AdaTTSp, name: str) -> Iterator[Slice]:
    for level, bank in enumerate(cast(Iterable[GateBank], layer.gates)):
        for gate in range(bank.num_gates):
            prefix = name.format(level=level, gate=gate)
            yield f"{prefix}.weight", bank.weight, bank.rows(gate)
            yield f"{prefix}.bias", bank.bias, bank.rows(gate)
            if bank.selector is not None:
                yield from _one_expert(f"gates.{level}.{gate}.0", bank.selector, gate)


def _residuals(layer: AdaTTSp) -> Iterator[Slice]:
    for level, residual in enumerate(layer.residuals):
        for _, parameter in residual.named_parameters():
            yield f"self_exp_weights.{level}", parameter, ...


def _one_expert(prefix: str, bank: ExpertBank, expert: int) -> Iterator[Slice]:
    for k, layer in enumerate(bank.layers):
        for name, parameter in layer.named_parameters():
            yield f"{prefix}.mlp_net.{2 * k}.{name}", parameter, expert


def _build(config: Mapping[str, Any]) -> FusionLayer:
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} has no public reference weights here; kinds that have: {', '.join(KINDS)}")
    try:
        inspect.signature(KINDS[kind]).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"the config of {kind} does not fit {KINDS[kind].__name__}: {error}") from None
    return KINDS[kind](**arguments)


def _check_fit(layer: FusionLayer, state_dict: Mapping[str, Tensor]) -> None:
    wanted = {name: list(parameter[index].shape) for name, parameter, index in meta_slices(layer)}
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
