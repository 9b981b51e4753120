"""The names of torch's, TorchRec's and FBGEMM's events in a profile, and which stage of a step they belong to.

Upstream: events are told apart by their names alone, which are no API and may change with any release. The arguments of
a collective are found by their position, their types by C++ names. Seen in torch 2.13, TorchRec 1.8 and FBGEMM 1.8.
Delete when: the profiler marks events by the part of the step that they belong to.
"""

from __future__ import annotations

import math
import re
from typing import Any

AUTOGRAD_NODE = "autograd::engine::evaluate_function"
BACKWARD = "## backward"

STAGES_OF_EVENTS = [
    (re.compile(pattern), stage)
    for pattern, stage in (
        ("^c10d::allreduce_|^nccl.*AllReduce", "all-reduce"),
        ("^## copy_batch_to_gpu|^Memcpy HtoD", "host to device"),
        (r"^\[output_dist|All2All|ReduceScatter|AllGather|SendRecv|^## all2all_data|Awaitable wait\(\)", "all-to-all"),
        ("^c10d::(alltoall|reduce_scatter|allgather|_?reduce_scatter)", "all-to-all"),
        (r"^## (start|wait)_sparse_data_dist|^\[(lookup|splits_dist|input_dist)", "sparse forward"),
        ("CppNode<Split|split_embedding.*backward|IndexSelectDim0.*Backward", "sparse update"),
        ("^## forward", "dense forward"),
        (f"^{BACKWARD}|^{AUTOGRAD_NODE}", "backward"),
        ("^## optimizer|^## zero_grad|^Optimizer\\.(step|zero_grad)", "dense optimizer"),
    )
]  # fmt: skip

BYTES = {
    "long int": 8,
    "double": 8,
    "c10::Half": 2,
    "c10::BFloat16": 2,
    "unsigned char": 1,
    "signed char": 1,
    "bool": 1,
}
INPUT = {  # which argument of a collective goes in
    "allreduce_": 0,
    "broadcast_": 0,
    "alltoall_base_": 1,
    "_allgather_base_": 1,
    "allgather_": 1,
    "_reduce_scatter_base_": 1,
    "reduce_scatter_": 1,
}


def stage_of_event(name: str) -> str | None:
    """The stage of an event of these libraries; None where its name does not tell."""
    return next((stage for pattern, stage in STAGES_OF_EVENTS if pattern.search(name)), None)


def bytes_handed_over(name: str, arguments: dict[str, Any]) -> int:
    """How much a collective was given: the tensor that goes in; of a list of tensors, which are floats, all."""
    place = INPUT.get(name.removeprefix("c10d::"))
    if place is None or "Input Dims" not in arguments:
        return 0
    shapes, kind = arguments["Input Dims"][place], arguments["Input type"][place]
    tensors = shapes if kind == "TensorList" else [shapes]
    return sum(math.prod(shape) for shape in tensors) * BYTES.get(kind, 4)


def collective_of_event(name: str) -> str:
    """`c10d::_allgather_base_` -> `allgather`."""
    return name.removeprefix("c10d::").strip("_").removesuffix("_base")
