"""Weighted sums of the outputs of ReLU experts, computed and differentiated a few experts at a time.

What a level of a fusion layer computes is `out[b, g] = sum_e weights[b, g, e] * expert_e(x)[b]`. Left to autograd,
every product of the level is one tensor as large as all its experts' activations, and each of them is written, masked
and read again from main memory. Here the experts are taken in groups whose widest activation stays small: what one
product wrote is still in the cache when the next reads it, ReLU and its gradient work in place, the experts' output
gradients are never held together, and few allocations grow so large that a CPU's allocator returns them to the system
after every step.

`relu_mixture` is the same formula in three lines: what a second derivative gets.

Shapes: B batch, E experts, G weighted sums, S slots, k experts of a group, D input width, H width of an expert's layer.
Tensors of a group are `[k, B, H]` whatever their layout: `[B, k, H]` in memory after a product with a common input.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlrec.layers.blocks.expert_groups import Group, goes_to_onednn, plan_groups
from mtlrec.layers.blocks.linear import batched_linear

GROUP_BYTES = 16 * 2**20
"""The widest activation of a group. Smaller and larger ones were measured (docs/log.md)."""

RECOMPUTED_GROUP_BYTES = 2 * 2**20
"""The same where activations are recomputed: a group's are then nearly all there is."""

ALIGNED = 8
"""Of a product with this multiple of columns MKL has all of its speed, of one beside it five sixths."""


def mix_relu_experts(
    x: Tensor,
    weights_BGE: Tensor,
    experts_per_slot: Sequence[int],
    parameters: Sequence[Tensor],
    recompute: bool = False,
) -> Tensor:
    """Weighted sums of expert MLPs (Linear + ReLU, the last included), in groups of experts.

    Args:
        x: `[B, D]`, or `[B, S, D]` with `experts_per_slot` experts reading each slot.
        weights_BGE: the weight of every expert in every sum.
        experts_per_slot: adds up to E.
        parameters: of every layer its weight `[E, H, D]` and bias `[E, H]`, in order.
        recompute: keep no activation; backward computes each group's again.

    Shapes: -> `[B, G, H]`.

    Example:
        >>> x, weights = torch.randn(5, 8), torch.rand(5, 2, 3).softmax(dim=-1)
        >>> parameters = [torch.randn(3, 4, 8), torch.randn(3, 4)]
        >>> mix_relu_experts(x, weights, [2, 1], parameters).shape
        torch.Size([5, 2, 4])
    """
    if torch.compiler.is_exporting():
        return relu_mixture(x, weights_BGE, experts_per_slot, parameters)
    if x.device.type == "cpu" and x.shape[0] >= x.shape[-1] >= 16 * ALIGNED and x.shape[-1] % ALIGNED:
        x, parameters = _with_columns_of_zeros(x, parameters)
    tensors = (x, weights_BGE, *parameters)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        layers = _layers(parameters)
        outputs_EBH = _empty_outputs(x, experts_per_slot, layers)
        for group in plan_groups(x, experts_per_slot, _widest(layers), GROUP_BYTES):
            _run_group(group, x, layers, outputs_EBH[group.experts])
        return torch.bmm(weights_BGE, outputs_EBH.transpose(0, 1))
    out: Tensor = ExpertMixture.apply(x, weights_BGE, tuple(experts_per_slot), recompute, *parameters)  # type: ignore[no-untyped-call]
    return out


def _with_columns_of_zeros(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The first layer's input and weight, made as wide as `ALIGNED` wants."""
    missing = -x.shape[-1] % ALIGNED
    return F.pad(x, (0, missing)), [F.pad(parameters[0], (0, missing)), *parameters[1:]]


def relu_mixture(
    x: Tensor, weights_BGE: Tensor, experts_per_slot: Sequence[int], parameters: Sequence[Tensor]
) -> Tensor:
    """The same formula without groups, differentiable as often as one likes."""
    h = repeat_slots(x, experts_per_slot) if x.dim() == 3 else x
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        h = F.relu(batched_linear(h, weight, bias))
    return torch.bmm(weights_BGE, h)


def repeat_slots(x_BSD: Tensor, experts_per_slot: Sequence[int]) -> Tensor:
    """`[B, S, D] -> [B, E, D]`: a slot as often as it has experts; the input itself where every slot has one."""
    if len(experts_per_slot) == sum(experts_per_slot):
        return x_BSD
    # cat of expanded views, not index_select: its gradient is a sum, not an atomic index_add.
    slots = zip(x_BSD.unbind(1), experts_per_slot, strict=True)
    return torch.cat([x_BD.expand(count, -1, -1) for x_BD, count in slots]).transpose(0, 1)


class Layer:
    """A layer of all experts, and its gradients, made when the first group writes into them: until then the memory
    may be the activations'."""

    def __init__(self, weight_EHD: Tensor, bias_EH: Tensor) -> None:
        self.weight, self.bias = weight_EHD, bias_EH
        self.grads: tuple[Tensor, Tensor] | None = None

    def grads_of(self, experts: slice) -> tuple[Tensor, Tensor]:
        if self.grads is None:
            self.grads = _empty(self.weight), _empty(self.bias)
        return self.grads[0][experts], self.grads[1][experts]


class ExpertMixture(torch.autograd.Function):
    """`mix_relu_experts`, forward and backward by hand. See the top of this file."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weights_BGE: Tensor,
        experts_per_slot: tuple[int, ...],
        recompute: bool,
        *parameters: Tensor,
    ) -> Tensor:
        layers = _layers(parameters)
        limit = RECOMPUTED_GROUP_BYTES if recompute else GROUP_BYTES
        groups = plan_groups(x, experts_per_slot, _widest(layers), limit)
        ctx.groups, ctx.experts_per_slot, ctx.num_parameters = groups, experts_per_slot, len(parameters)
        if recompute:
            ctx.save_for_backward(x, weights_BGE, *parameters)
            return _mix_and_forget(x, weights_BGE, groups, layers)
        outputs_EBH = _empty_outputs(x, experts_per_slot, layers)
        hidden = [h for group in groups for h in _run_group(group, x, layers, outputs_EBH[group.experts])]
        ctx.save_for_backward(x, weights_BGE, *parameters, outputs_EBH, *hidden)
        return torch.bmm(weights_BGE, outputs_EBH.transpose(0, 1))

    @staticmethod
    def backward(ctx: Any, grad_BGH: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weights_BGE, *saved = ctx.saved_tensors
        parameters, activations = saved[: ctx.num_parameters], saved[ctx.num_parameters :]
        if torch.is_grad_enabled():  # somebody asked for create_graph
            # Views, lest the gradient also run down the history that the inputs may share (a gate is made from x).
            inputs = [tensor.view_as(tensor) for tensor in (x, weights_BGE, *parameters)]
            with torch.autocast(x.device.type, enabled=False):
                out = relu_mixture(inputs[0], inputs[1], ctx.experts_per_slot, inputs[2:])
            found = iter(torch.autograd.grad(out, [t for t in inputs if t.requires_grad], grad_BGH, create_graph=True))
            grads = [next(found) if tensor.requires_grad else None for tensor in inputs]
            return grads[0], grads[1], None, None, *grads[2:]
        del saved
        ctx.maybe_clear_saved_tensors()  # unless the graph is retained; each activation then goes when it was used
        with torch.autocast(x.device.type, enabled=False):  # forward has settled the dtype
            return _backward_by_groups(ctx, grad_BGH.contiguous(), x, weights_BGE, parameters, activations)


def _backward_by_groups(
    ctx: Any,
    grad_BGH: Tensor,
    x: Tensor,
    weights_BGE: Tensor,
    parameters: list[Tensor],
    activations: list[Tensor],
) -> tuple[Tensor | None, ...]:
    layers = _layers(parameters)
    grad_x = _empty(x) if ctx.needs_input_grad[0] else None
    outputs_EBH = activations.pop(0) if activations else None
    if outputs_EBH is not None:
        grad_weights = torch.bmm(grad_BGH, outputs_EBH.permute(1, 2, 0))
    else:
        grad_weights = _empty(weights_BGE)
    activations.reverse()
    for group in ctx.groups:
        if outputs_EBH is not None:
            hidden = [activations.pop() for _ in layers[1:]]
            hidden.append(outputs_EBH[group.experts])
            outputs_EBH = None if group is ctx.groups[-1] else outputs_EBH
        else:
            hidden = _run_group(group, x, layers)
            grad_weights[:, :, group.experts] = torch.bmm(grad_BGH, hidden[-1].permute(1, 2, 0))
        grad = torch.bmm(weights_BGE[:, :, group.experts].transpose(1, 2), grad_BGH).transpose(0, 1)
        grad = _relu_backward(grad, hidden.pop())
        for layer in layers[:0:-1]:
            grad = _layer_backward(layer, group.experts, grad, hidden.pop())
        _first_layer_backward(layers[0], group, grad, x, grad_x)
    every_expert = slice(None)
    return grad_x, grad_weights, None, None, *(grad for layer in layers for grad in layer.grads_of(every_expert))


def _layer_backward(layer: Layer, experts: slice, grad_kBH: Tensor, h: Tensor) -> Tensor:
    """From the gradient of a layer's products to that of the products before; `h` is the activation between."""
    grad_weight, grad_bias = layer.grads_of(experts)
    _multiply(grad_kBH.transpose(1, 2), h, out=grad_weight)
    torch.sum(grad_kBH, 1, out=grad_bias)
    grad = torch.empty_like(h)
    _multiply(grad_kBH, layer.weight[experts], out=grad)
    return _relu_backward(grad, h)


def _multiply(a_kMN: Tensor, b_kNP: Tensor, out: Tensor) -> None:
    if len(out) == 1:
        torch.mm(a_kMN[0], b_kNP[0], out=out[0])
    else:
        torch.bmm(a_kMN, b_kNP, out=out)


def _relu_backward(grad: Tensor, h: Tensor) -> Tensor:
    """In place: zero where `h`, ReLU's output, is zero.

    On a CPU torch turns each 16-bit number into a float and back. Read as an integer it has the same sign, and passing
    it on takes an eighth of the time.
    """
    view = (grad.view(torch.int16), h.view(torch.int16)) if goes_to_onednn(h) else (grad, h)
    torch.ops.aten.threshold_backward.grad_input(*view, 0, grad_input=view[0])
    return grad


def _first_layer_backward(layer: Layer, group: Group, grad_kBH: Tensor, x: Tensor, grad_x: Tensor | None) -> None:
    """Write a group's last gradients where they belong; a common input's adds up over its groups."""
    grad_weight, grad_bias = layer.grads_of(group.experts)
    weight, read = layer.weight[group.experts], group.input(x)
    torch.sum(grad_kBH, 1, out=grad_bias)
    if read.dim() == 3:
        torch.bmm(grad_kBH.transpose(1, 2), read, out=grad_weight)
        if grad_x is not None:
            torch.bmm(grad_kBH, weight, out=group.input(grad_x))
        return
    grad = grad_kBH.transpose(0, 1).flatten(1)
    torch.mm(grad.t(), read, out=grad_weight.flatten(0, 1))
    if grad_x is not None:
        grad_read = group.input(grad_x)
        torch.addmm(grad_read, grad, weight.flatten(0, 1), beta=0 if group.is_first_of_slot else 1, out=grad_read)


def _run_group(group: Group, x: Tensor, layers: list[Layer], outputs: Tensor | None = None) -> list[Tensor]:
    """Every layer's activation of a group; the last goes into `outputs` where given, and is then left out."""
    h = group.input(x)
    activations = []
    for layer in layers:
        into = outputs if layer is layers[-1] else None
        h = _linear_relu(h, layer.weight[group.experts], layer.bias[group.experts], into)
        activations.append(h)
    return activations if outputs is None else activations[:-1]


def _linear_relu(x: Tensor, weight_kHD: Tensor, bias_kH: Tensor, into: Tensor | None) -> Tensor:
    """`x` is `[B, D]` or `[k, B, D]` -> `[k, B, H]`."""
    k, width = bias_kH.shape
    if x.dim() == 3 and k > 1:
        return torch.baddbmm(bias_kH.unsqueeze(1), x, weight_kHD.transpose(1, 2), out=into).relu_()
    x = x.squeeze(0) if x.dim() == 3 else x
    # Of one expert, or of several whose results lie side by side in every row.
    into = None if into is None else into.transpose(0, 1).view(x.shape[0], k * width)
    y = torch.addmm(bias_kH.flatten(), x, weight_kHD.flatten(0, 1).t(), out=into).relu_()
    return y.view(y.shape[0], k, width).transpose(0, 1)


def _empty_outputs(x: Tensor, experts_per_slot: Sequence[int], layers: list[Layer]) -> Tensor:
    """`[E, B, H]` for all experts' outputs, laid out as the product that fills it would."""
    num_experts, width = layers[-1].bias.shape
    have_slots_of_their_own = x.dim() == 3 and len(experts_per_slot) == num_experts
    if len(layers) == 1 and not have_slots_of_their_own:
        return x.new_empty(x.shape[0], num_experts, width).transpose(0, 1)
    return x.new_empty(num_experts, x.shape[0], width)


def _layers(parameters: Sequence[Tensor]) -> list[Layer]:
    return [Layer(weight, bias) for weight, bias in zip(parameters[::2], parameters[1::2], strict=True)]


def _widest(layers: list[Layer]) -> int:
    return max(layer.bias.shape[1] for layer in layers)


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _mix_and_forget(x: Tensor, weights_BGE: Tensor, groups: list[Group], layers: list[Layer]) -> Tensor:
    """The weighted sums, no group's activations outliving it."""
    out = x.new_empty(x.shape[0], weights_BGE.shape[1], layers[-1].bias.shape[1])
    for group in groups:
        outputs = _run_group(group, x, layers)[-1].transpose(0, 1)
        torch.baddbmm(out, weights_BGE[:, :, group.experts], outputs, beta=0 if group is groups[0] else 1, out=out)
    return out
