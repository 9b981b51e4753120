"""The fusion layers as they are usually published: a `ModuleList` of expert MLPs and a Python loop over them.

What `fusion.py` measures against. Parameters are named as in AdaTT's public reference, so the weights that
`to_adatt_reference` gives for one of our layers load into the loop and both must give the same numbers. Two forms are
common:

- listed: a list of inputs, one per module, as in torch-rechub and TorchEasyRec: `expert(inputs[slot])`;
- indexed: one tensor for all modules, as in AdaTT's reference: `expert(x[:, slot])`. Its gradient fills a tensor of
  zeros for every expert, so it is the slower one.

Shapes: B batch, D input width, T tasks, S slots, E experts of a level.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

Read = Callable[[int], Tensor]
"""The input of a slot."""


class Expert(nn.Module):
    def __init__(self, input_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.mlp_net = nn.Sequential()
        for fan_in, fan_out in pairwise((input_dim, *hidden)):
            self.mlp_net.extend([nn.Linear(fan_in, fan_out), nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp_net(x)


class PlainLoop(nn.Module):
    """What the loops share: experts of every level, and how a slot is read."""

    def __init__(
        self, input_dim: int, expert_hidden: Sequence[Sequence[int]], experts_per_slot: Sequence[int], indexed: bool
    ) -> None:
        super().__init__()
        self.indexed = indexed
        self.num_slots = len(experts_per_slot)
        self.slot_of_expert = [slot for slot, count in enumerate(experts_per_slot) for _ in range(count)]
        self.dims = [input_dim, *(hidden[-1] for hidden in expert_hidden)]
        self.experts = nn.ModuleList(
            nn.ModuleList(Expert(dim, hidden) for _ in self.slot_of_expert)
            for dim, hidden in zip(self.dims, expert_hidden, strict=False)
        )

    def first_slots(self, x_BD: Tensor) -> Read:
        if self.indexed:
            return self.slots(x_BD.unsqueeze(1).expand(-1, self.num_slots, -1))
        return lambda slot: x_BD

    def slots(self, x_BSD: Tensor) -> Read:
        if self.indexed:
            return lambda slot: x_BSD[:, slot]
        return x_BSD.unbind(1).__getitem__

    def outputs(self, level: int, read: Read) -> Tensor:
        """`[B, E, H]`."""
        experts = zip(self.experts[level], self.slot_of_expert, strict=True)
        return torch.stack([expert(read(slot)) for expert, slot in experts], dim=1)


def gate(input_dim: int, num_experts: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(input_dim, num_experts), nn.Softmax(dim=-1))


class LoopMMoE(PlainLoop):
    def __init__(self, input_dim, num_tasks, num_experts, expert_hidden, indexed=False) -> None:
        super().__init__(input_dim, expert_hidden, [1] * num_experts, indexed)
        num_gates = [num_experts] * (len(expert_hidden) - 1) + [num_tasks]
        self.gates = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Identity(), *gate(input_dim, num_experts)) for _ in range(count))
            for count in num_gates
        )

    def forward(self, x: Tensor) -> Tensor:
        read = self.first_slots(x)
        for level, gates in enumerate(self.gates):
            mixed = torch.bmm(torch.stack([gate(x) for gate in gates], dim=1), self.outputs(level, read))
            read = self.slots(mixed)
        return mixed


class LoopPLE(PlainLoop):
    def __init__(
        self, input_dim, num_tasks, num_task_experts, num_shared_experts, expert_hidden, indexed=False
    ) -> None:
        counts = [num_task_experts] * num_tasks + [num_shared_experts]
        super().__init__(input_dim, expert_hidden, counts, indexed)
        self.ends = list(accumulate(counts))
        seen = [num_task_experts + num_shared_experts] * num_tasks + [sum(counts)]
        self.gate_weights = nn.ModuleList(
            nn.ModuleList(gate(dim, experts) for experts in (seen if level < len(expert_hidden) - 1 else seen[:-1]))
            for level, dim in enumerate(self.dims[:-1])
        )

    def forward(self, x: Tensor) -> Tensor:
        read = self.first_slots(x)
        for level, gates in enumerate(self.gate_weights):
            outputs = self.outputs(level, read)
            shared = outputs[:, self.ends[-2] :]
            mixed = []
            for slot, one_gate in enumerate(gates):
                seen = outputs
                if slot < self.num_slots - 1:
                    own = outputs[:, self.ends[slot - 1] if slot else 0 : self.ends[slot]]
                    seen = torch.cat([own, shared], dim=1)
                mixed.append(torch.bmm(one_gate(read(slot)).unsqueeze(1), seen))
            joined = torch.cat(mixed, dim=1)
            read = self.slots(joined)
        return joined


class LoopAdaTTSp(PlainLoop):
    def __init__(self, input_dim, num_tasks, num_task_experts, expert_hidden, indexed=False) -> None:
        super().__init__(input_dim, expert_hidden, [num_task_experts] * num_tasks, indexed)
        self.shape = (num_tasks, num_task_experts)
        self.gate_weights = nn.ModuleList(
            nn.ModuleList(gate(dim, num_tasks * num_task_experts) for _ in range(num_tasks)) for dim in self.dims[:-1]
        )
        is_learned = num_task_experts > 1
        self.self_exp_weights = nn.ParameterList(torch.empty(self.shape) for _ in expert_hidden if is_learned)

    def forward(self, x: Tensor) -> Tensor:
        read = self.first_slots(x)
        for level, gates in enumerate(self.gate_weights):
            outputs = self.outputs(level, read)
            mixed = torch.bmm(torch.stack([gate(read(slot)) for slot, gate in enumerate(gates)], dim=1), outputs)
            own = outputs
            if self.self_exp_weights:
                by_task = outputs.unflatten(1, self.shape)
                own = torch.einsum("te,bteh->bth", self.self_exp_weights[level], by_task)
            mixed = mixed + own
            read = self.slots(mixed)
        return mixed


class LoopAdaTT(PlainLoop):
    def __init__(
        self, input_dim, num_tasks, num_task_experts, num_shared_experts, expert_hidden, indexed=False
    ) -> None:
        counts = [num_task_experts] * num_tasks + [num_shared_experts]
        super().__init__(input_dim, expert_hidden, counts, indexed)
        self.ends = [0, *accumulate(counts)]
        levels = len(expert_hidden)
        self.gate_weights = nn.ModuleList(
            nn.ModuleList(gate(dim, sum(counts)) for _ in range(num_tasks + (level < levels - 1)))
            for level, dim in enumerate(self.dims[:-1])
        )
        rows = [levels] * num_tasks + [levels - 1]
        is_learned = max(counts) > 1
        self.self_exp_weights = nn.ParameterList(
            torch.empty(row, count) for row, count in zip(rows, counts, strict=True) if is_learned
        )

    def forward(self, x: Tensor) -> Tensor:
        read = self.first_slots(x)
        for level, gates in enumerate(self.gate_weights):
            weights = torch.stack([gate(read(slot)) for slot, gate in enumerate(gates)], dim=1)
            for slot, (start, end) in enumerate(pairwise(self.ends[: len(gates) + 1])):
                weights[:, slot, start:end] += self.self_exp_weights[slot][level] if self.self_exp_weights else 1
            mixed = torch.bmm(weights, self.outputs(level, read))
            read = self.slots(mixed)
        return mixed
