"""How many operators a training step dispatches, and where its host would wait for a GPU.

    python benchmarks/operators.py --output benchmarks/results/operators.json
    python benchmarks/operators.py kuairand/ple --detail       # operators by part of the model and by name

A step on a GPU is bound by its launches, 5 to 8 us each. So the number of operators is a speed that a CPU can count,
and it is the same on every machine. One rank takes whole training steps from random batches (`TrainingStep`: TorchRec's
pipeline, sharded tables of FBGEMM, optimizers, the checks after the step) under a `TorchDispatchMode`, which sees each
operator as a backend would get it: a composite operator as its parts. Counts are of one step, after two others.

- `total` is forward, loss and backward. A backward operator belongs to the part of the model whose forward made it.
- Beside it stand `gradients` (DDP's copies of each parameter's gradient), the pipeline, the optimizer, and the checks.
- `views` (a slice, a transpose) launch nothing and are counted apart from all of these.

Where code branches on the device, the branch of a GPU is taken: experts are mixed by a formula, tables are FBGEMM's,
and a step's losses are looked at one step later.
`host_syncs` are counted in forward, loss, backward and checks, but not in tables, c10d and DDP: their counters lie on
the host.
- `_local_scalar_dense` (`.item()`, `bool()`, `.tolist()`), `equal`, and operators whose result's shape depends on data
  (`nonzero`, `masked_select`, `unique`, indexing by a mask).
- Copies from fresh host memory: `lift_fresh` (`torch.tensor`), and an operand that no operator, parameter, buffer or
  batch has made (an index given as a list). On a GPU it would be copied from memory that is not pinned, and waited for.
- `where` with a number: torch makes a tensor of it on the host and copies that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import report
from benchmarks.jobs import recipe
from mtlrec.batch import Batch
from mtlrec.benchmark.random_batches import random_batches
from mtlrec.compat.quiet import quiet_libraries
from mtlrec.config import JobConfig
from mtlrec.distributed import sharding
from mtlrec.distributed.process_group import process_group
from mtlrec.layers.blocks.experts import ExpertBank
from mtlrec.training.step import TrainingStep

RESULTS = Path(__file__).parent / "results" / "operators.json"
RECIPES = ("kuairand/ple", "kuairand/adatt_sp", "census/ple", "census/mmoe", "feed/adatt", "ali_ccp/ple")
HEADS = ("independent", "aitm", "dbmtl", "escm2_dr")
"""Other heads than the recipe's, of the feed's PLE; so are the weightings and the features of a task."""
WEIGHTINGS = ("uncertainty", "dwa", "decay")
WARM_UP = 2
COUNTED = ("forward", "loss", "backward")
STAGES = (*COUNTED, "gradients", "pipeline", "optimizer", "checks")
WAITED_FOR = (*COUNTED, "checks")
SYNCS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_dim", "_unique2", "lift_fresh"}
Place = tuple[str, str, str]
"""Stage, part of the model, operator."""
Counts = dict[str, int]


class OperatorCounter(TorchDispatchMode):
    """Counts by place; whoever uses it sets `stage` and `part`."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.stage, self.part = "pipeline", "pipeline"
        self._made = {_memory(tensor): tensor for tensor in known}
        self.restart()

    def restart(self) -> None:
        """Count from 0 again, and remember which tensors operators have made."""
        self.operators: Counter[Place] = Counter()
        self.views: Counter[Place] = Counter()
        self.syncs: Counter[Place] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        library, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        if library == "profiler":
            return result
        place = (self.stage, self.part, name if library == "aten" else f"{library}::{name}")
        (self.views if _is_view(func) else self.operators)[place] += 1
        given = _tensors_in((args, kwargs))
        is_watched = library == "aten" and self.stage in WAITED_FOR and self.part != "tables"
        if is_watched and self._waits(name, given):
            self.syncs[place] += 1
        for tensor in [*given, *_tensors_in(result)]:
            self._made[_memory(tensor)] = tensor
        return result

    def _waits(self, name: str, given: list[Tensor]) -> bool:
        if name in SYNCS:
            return True
        if name in ("index", "index_put", "index_put_") and any(one.dtype == torch.bool for one in given[1:]):
            return True
        if name == "where" and any(one.dim() == 0 for one in given[1:]):
            return True
        return any(_memory(one) not in self._made for one in given)


def _is_view(func: Any) -> bool:
    """Whether the result lies in an argument's memory and nothing is written."""
    aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
    return func.name() in ("aten::_unsafe_view", "aten::detach") or any(not alias.is_write for alias in aliases)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.numel() else 0


def _tensors_in(values: Any) -> list[Tensor]:
    """Pooled embeddings too, which may still be on their way."""
    leaves = [leaf.values() if hasattr(leaf, "length_per_key") else leaf for leaf in tree_leaves(values)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def measure(job: JobConfig) -> OperatorCounter:
    """One step of the job. Its tables are made small: their rows change no operator."""
    tables = {name: table.model_copy(update={"rows": min(table.rows, 1000)}) for name, table in job.tables.items()}
    job = job.model_copy(update={"tables": tables})
    batches = random_batches(job, WARM_UP + 4, seed=0)
    with process_group("cpu") as ranks, as_on_a_gpu():
        take_step = TrainingStep(job, ranks, total_steps=1000, steps_per_epoch=100, lag=1)
        module = take_step.model.module
        module.train()
        held = [part for batch in batches for part in _parts(batch)]
        counter = OperatorCounter([*module.parameters(), *module.buffers(), *held])
        with stages_told(counter, take_step), counter:
            for step in range(WARM_UP + 1):
                counter.restart()
                counter.stage = counter.part = "pipeline"
                take_step(iter(batches[step:]) if step == 0 else iter(batches[step + 2 :]), step)
    return counter


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Where code asks for the device, it gets a GPU's answer."""
    by_groups, halved = ExpertBank._go_by_groups, sharding.halved_lookups
    ExpertBank._go_by_groups = lambda bank, x: bank.recompute and by_groups(bank, x)  # type: ignore[method-assign]
    sharding.halved_lookups = nullcontext  # type: ignore[assignment]
    try:
        yield
    finally:
        ExpertBank._go_by_groups, sharding.halved_lookups = by_groups, halved  # type: ignore[method-assign]


def _parts(batch: Batch) -> list[Tensor]:
    parts: list[Tensor] = []
    for value in vars(batch).values():
        if isinstance(value, dict):
            for ids in value.values():
                parts += [ids.values(), ids.lengths(), ids.offsets()]
                parts += [ids.weights()] if ids.weights_or_none() is not None else []
        elif isinstance(value, Tensor):
            parts.append(value)
    return parts


# ---- which stage and part an operator belongs to


@contextmanager
def stages_told(counter: OperatorCounter, take_step: TrainingStep) -> Iterator[None]:
    model, loss = take_step.model.network, take_step.model.module.module.loss
    over_arch = model.over_arch
    parts: dict[str, nn.Module] = {"features": model.sparse_arch.vectors, "bottom": over_arch.inputs}
    parts |= {"fusion": over_arch.fusion, "heads": over_arch.heads, "loss": loss}
    labeled: set[Any] = set()
    undo: list[Callable[[], None]] = []

    def enter(part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            label_nodes(args, "tables")
            counter.stage, counter.part = ("loss" if part == "loss" else "forward"), part

        return hook

    def leave(part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            label_nodes(output, part)
            if part == "loss":  # the pipeline may send the next batch's ids before it goes backward
                counter.stage = counter.part = "pipeline"

        return hook

    def label_nodes(output: Any, part: str) -> None:
        waiting = [tensor.grad_fn for tensor in _tensors_in(output) if tensor.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if node in labeled:
                continue
            labeled.add(node)
            is_leaf = node.name().endswith("AccumulateGrad")
            undo.append(node.register_prehook(backward_of("gradients" if is_leaf else part)).remove)
            waiting += [before for before, _ in node.next_functions if before is not None]

    def backward_of(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counter.stage, counter.part = ("gradients" if part == "gradients" else "backward"), part

        return hook

    def optimizer_starts(*_: Any) -> None:
        counter.stage = counter.part = "optimizer"

    def optimizer_ends(*_: Any) -> None:
        counter.stage = counter.part = "checks"

    def tables_start(*_: Any) -> None:
        counter.stage, counter.part = "forward", "tables"

    undo.append(model.sparse_arch.register_forward_pre_hook(tables_start).remove)
    for part, module in parts.items():
        undo.append(module.register_forward_pre_hook(enter(part), prepend=True).remove)
        undo.append(module.register_forward_hook(leave(part)).remove)
    undo.append(register_optimizer_step_pre_hook(optimizer_starts).remove)
    undo.append(register_optimizer_step_post_hook(optimizer_ends).remove)
    try:
        yield
    finally:
        for remove in undo:
            remove()


# ---- results


def summary(counter: OperatorCounter) -> Counts:
    by_stage = Counter(dict.fromkeys(STAGES, 0))
    for (stage, _, _), number in counter.operators.items():
        by_stage[stage] += number
    total = sum(by_stage[stage] for stage in COUNTED)
    return {"total": total, **by_stage, "views": counter.views.total(), "host_syncs": counter.syncs.total()}


def default_jobs() -> dict[str, JobConfig]:
    changes = {head: f"model.heads.kind={head}" for head in HEADS}
    changes |= {kind: f"loss.weighting.kind={kind}" for kind in WEIGHTINGS}
    changes["features of a task"] = "tasks.share.features=[user_id, item_id, duration_s]"
    changed = {f"feed/ple, {name}": recipe("feed/ple", [change]) for name, change in changes.items()}
    return {name: recipe(name) for name in RECIPES} | changed


def count_all() -> dict[str, Counts]:
    return {name: summary(measure(job)) for name, job in default_jobs().items()}


def committed() -> dict[str, Counts]:
    counts: dict[str, Counts] = json.loads(RESULTS.read_text(encoding="utf-8"))["operators"]
    return counts


def risen(committed: dict[str, Counts], now: dict[str, Counts]) -> list[str]:
    """A line for every count that is above the committed one. Raises KeyError where a job is no longer counted."""
    return [
        f"{name}: {now[name][what]} {what.replace('_', ' ')}, was {before}   ROSE"
        for name, counts in committed.items()
        for what, before in counts.items()
        if now[name][what] > before
    ]


def detail(counter: OperatorCounter) -> list[str]:
    """Operators of every part in forward and in backward, the most frequent first."""
    lines = []
    by_place: dict[tuple[str, str], Counter[str]] = {}
    for (stage, part, name), number in counter.operators.items():
        by_place.setdefault((stage, part), Counter())[name] += number
    for (stage, part), names in sorted(by_place.items(), key=lambda item: STAGES.index(item[0][0])):
        some = ", ".join(f"{name} {number}" for name, number in names.most_common())
        lines.append(f"  {stage}, {part}: {names.total()} ({some})")
    return lines + [f"  waits in {stage}, {part}: {name} {n}" for (stage, part, name), n in counter.syncs.items()]


def table(results: dict[str, Counts]) -> list[str]:
    columns = ["total", *STAGES, "views", "host_syncs"]
    width = max(map(len, results))
    lines = [f"{'':{width}}  " + "  ".join(f"{column:>10}" for column in columns)]
    return lines + [
        f"{name:{width}}  " + "  ".join(f"{counts[column]:>10}" for column in columns)
        for name, counts in results.items()
    ]


def write(results: dict[str, Counts], output: Path) -> None:
    report.write({"command": "python benchmarks/operators.py", "operators": results}, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="by default some of every data set, and heads on the feed's PLE")
    parser.add_argument("--detail", action="store_true", help="operators by part and name")
    parser.add_argument("--output", type=Path, help="write the JSON here")
    options = parser.parse_args()
    quiet_libraries()
    results: dict[str, Counts] = {}
    jobs = {name: recipe(name) for name in options.recipes} or default_jobs()
    for name, job in jobs.items():
        counter = measure(job)
        results[name] = summary(counter)
        if options.detail:
            print("\n".join([name, *detail(counter)]))
    print("\n".join(table(results)))
    if options.output:
        write(results, options.output)


if __name__ == "__main__":
    main()
