"""How fast are the fusion layers, against a per-expert loop and against the machine's arithmetic?

    python benchmarks/fusion.py --output benchmarks/results/fusion.json
    python benchmarks/fusion.py --quick
    python benchmarks/fusion.py --families ple --dtype bf16 --json

For every family and shape of a grid: our layer, the loop in its two published forms (`plain_loops.py`; same weights,
outputs and gradients compared in the run), and a plain matrix product of 2048 x 2048 x 2048 whose rate is the peak.
All are interleaved in one process, with one allocator and one number of threads; a figure is its median over rounds.

- speedup: the loop's time over ours.
- of peak: the experts' and gates' arithmetic (three products of forward's size for forward + backward, two floating
  point operations each) over our time, as a share of the peak. Mixing, ReLU and all else count as time only.
- limit: the loop's time over that arithmetic at the peak rate: the most that any layer could gain here.
- stolen (JSON): the share of the processors that the hypervisor gave to others meanwhile; over a hundredth, the cell
  is measured again.
- memory: the most that forward + backward hold at a time, gradients included, over what the loop holds.

`--allocator tuned` keeps glibc from giving freed memory back after every step (a process can do the same with
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in its environment); the loop gets it too.
"""

import argparse
import ctypes
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import plain_loops
import torch
from report import processor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtlrec import layers
from mtlrec.layers import FusionLayer, to_adatt_reference
from mtlrec.layers.adatt_reference import reference_tensors
from mtlrec.layers.blocks.experts import ExpertBank
from mtlrec.layers.blocks.gates import GateBank

PEAK_SIZE = 2048
PEAK_OPERATIONS = 2 * PEAK_SIZE**3
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


class Shape(NamedTuple):
    batch: int
    input_dim: int
    tasks: int
    experts: int
    levels: int

    @property
    def expert_hidden(self) -> list[list[int]]:
        return [[256, 128], [64]][: self.levels]


GRID = [
    Shape(256, 256, 2, 4, 1),
    Shape(256, 512, 4, 16, 2),
    Shape(256, 1024, 8, 32, 1),
    Shape(1024, 256, 4, 8, 2),
    Shape(2048, 256, 2, 4, 1),
    Shape(2048, 512, 4, 16, 1),
    Shape(2048, 256, 8, 32, 2),
    Shape(2048, 1024, 8, 32, 2),
    Shape(4096, 512, 4, 8, 2),
    Shape(4096, 512, 4, 16, 1),
    Shape(8192, 256, 2, 4, 2),
    Shape(8192, 256, 8, 16, 1),
    Shape(8192, 256, 8, 32, 1),
    Shape(8192, 1024, 4, 4, 1),
    Shape(8192, 1024, 4, 8, 1),
]
QUICK = [Shape(256, 256, 2, 4, 1), Shape(2048, 256, 4, 8, 2)]


def build(family: str, shape: Shape, **options: Any) -> tuple[FusionLayer, dict[bool, nn.Module]]:
    """Our layer, and the loop by whether it is the indexed one. Families with a shared module give it as many experts
    as a task has, so their total is near that of the shape."""
    first, hidden = (shape.input_dim, shape.tasks), shape.expert_hidden
    per_task = shape.experts // shape.tasks
    match family:
        case "mmoe":
            kind, loop, sizes = layers.MMoE, plain_loops.LoopMMoE, (shape.experts,)
        case "ple":
            kind, loop, sizes = layers.PLE, plain_loops.LoopPLE, (per_task, per_task)
        case "adatt_sp":
            kind, loop, sizes = layers.AdaTTSp, plain_loops.LoopAdaTTSp, (per_task,)
        case "adatt":
            kind, loop, sizes = layers.AdaTT, plain_loops.LoopAdaTT, (per_task, per_task)
    ours = kind(*first, *sizes, hidden, **options)
    loops = {indexed: loop(*first, *sizes, hidden, indexed=indexed) for indexed in (False, True)}
    for each in loops.values():
        each.load_state_dict(to_adatt_reference(ours))
    return ours, loops


FAMILIES = ["mmoe", "ple", "adatt_sp", "adatt"]


def main() -> None:
    options = parse_arguments()
    if options.allocator == "tuned":
        keep_freed_memory()
    torch.manual_seed(0)
    if options.device == "cuda":
        torch.set_default_device("cuda")  # not for the CPU: it taxes every call
    results: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/fusion.py", *sys.argv[1:]]),
        "hardware": hardware(options.device),
        "torch": torch.__version__,
        "allocator": options.allocator,
        "dtype": options.dtype,
        "cells": [],
    }
    if options.output and options.output.exists():
        results["cells"] = json.loads(options.output.read_text(encoding="utf-8"))["cells"]
    finished = {(cell["family"], *(cell[key] for key in Shape._fields)) for cell in results["cells"]}
    for shape in QUICK if options.quick else GRID:
        for family in options.families:
            if (family, *shape) in finished:
                continue
            results["cells"].append(measure_undisturbed(family, shape, options))
            print("\n".join(cell_lines(results["cells"][-1])), file=sys.stderr, flush=True)
            if options.output:
                options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results["summary"] = summary(results["cells"])
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results) if options.json else "\n".join(table(results)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda is written, and has not been run"
    )
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of ours; the loop stays in float32")
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    parser.add_argument("--rounds", type=int, default=5, help="at least; small shapes get more, for three seconds")
    parser.add_argument("--quick", action="store_true", help="two small shapes, to see it run")
    parser.add_argument("--output", type=Path, help="JSON, written after every cell; those in it are not run again")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    return parser.parse_args()


def measure_undisturbed(family: str, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """The cell; again, three times at most, while the hypervisor gave others over a hundredth of the processors."""
    tries = []
    while len(tries) < 3 and (not tries or tries[-1]["stolen"] > 0.01):
        before = processor_times()
        cell = measure(family, shape, options)
        stolen, total = (after - start for after, start in zip(processor_times(), before, strict=True))
        tries.append(cell | {"stolen": round(stolen / max(total, 1), 4)})
    return min(tries, key=lambda cell: cell["stolen"])


def processor_times() -> tuple[int, int]:
    """Ticks that the hypervisor gave to others, and all ticks, since the machine started."""
    first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    ticks = [int(field) for field in first.split()[1:9]]
    return ticks[7], sum(ticks)


def measure(family: str, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    ours, loops = build(family, shape)
    x = torch.randn(shape.batch, shape.input_dim, requires_grad=True)
    cotangent = torch.randn(shape.batch, shape.tasks, ours.output_dim)
    models = {"ours": ours, "loop": loops[False], "indexed": loops[True]}
    precision = {"ours": options.dtype, "loop": "fp32", "indexed": "fp32"}
    differences = check_equal(ours, loops, x, cotangent, options.dtype)

    def forward_backward(name: str) -> None:
        with autocast(precision[name]):
            y = models[name](x)
        y.backward(cotangent.to(y.dtype))

    def step(name: str) -> None:
        forget_gradients(models[name], x)
        forward_backward(name)

    def forward(name: str) -> None:
        with autocast(precision[name]), torch.no_grad():
            models[name](x)

    cell: dict[str, Any] = {"family": family, **shape._asdict(), "expert_hidden": shape.expert_hidden} | differences
    arithmetic = forward_operations(ours, shape.batch)
    for what, run, operations in [("forward", forward, arithmetic), ("step", step, 3 * arithmetic)]:
        rounds = interleaved(run, list(models), options.rounds, peak_dtype=options.dtype)
        cell[what] = {
            "rounds": len(rounds),
            "ms": {name: median(lambda r, name=name: 1e3 * r[name], rounds) for name in models},
            "peak_gflops": median(lambda r: PEAK_OPERATIONS / r["peak"] / 1e9, rounds),
            "of_peak": median(lambda r, n=operations: n / r["ours"] * r["peak"] / PEAK_OPERATIONS, rounds),
            "speedup": median(lambda r: r["loop"] / r["ours"], rounds),
            "speedup_indexed": median(lambda r: r["indexed"] / r["ours"], rounds),
            "limit": median(lambda r, n=operations: PEAK_OPERATIONS * r["loop"] / r["peak"] / n, rounds),
        }
    again, _ = build(family, shape, recompute=True)
    models["recompute"], precision["recompute"] = again, options.dtype
    for key, measured in [("peak_bytes", peak_bytes), ("operators", count_operators)]:
        cell[key] = {}
        for name, model in models.items():
            forget_gradients(model, x)
            cell[key][name] = measured(lambda name=name: forward_backward(name))
    return cell


def check_equal(
    ours: FusionLayer, loops: dict[bool, nn.Module], x: Tensor, cotangent: Tensor, dtype: str
) -> dict[str, float]:
    """Outputs and every gradient of ours against both loops'; returns the differences as shares of their norms.

    64 rows in float64 are to be equal. The whole batch in the run's own dtype is to be close by norm: where rounding
    opens one of millions of ReLUs on one side only, that row's gradients differ.
    """
    found = {}
    for name, rows, exact in [("float64", 64, True), (dtype, len(x), False)]:
        for model in (ours, *loops.values()):
            model.double() if exact else model.float()
        part = (x[:rows].detach().double() if exact else x[:rows].detach()).requires_grad_()
        precision = "fp32" if exact else dtype
        mine = output_and_gradients(ours, part, cotangent[:rows], precision)
        others = [output_and_gradients(loop, part, cotangent[:rows], "fp32") for loop in loops.values()]
        found[name] = max(
            ((mine[key].double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()
            for other in others
            for key, b in other.items()
        )
        limit = 1e-10 if exact else 1e-2 if dtype == "fp32" else 5e-2
        if not found[name] < limit:
            raise AssertionError(f"ours and the loop differ by {found[name]:.1e} of the norm in {name}")
    return {f"difference_{name}": difference for name, difference in found.items()}


def output_and_gradients(model: nn.Module, x: Tensor, cotangent: Tensor, precision: str) -> dict[str, Tensor]:
    forget_gradients(model, x)
    with autocast(precision):
        y = model(x)
    y.backward(cotangent.to(y.dtype))
    assert x.grad is not None
    gradients = (
        reference_tensors(model, lambda parameter: parameter.grad)
        if isinstance(model, FusionLayer)
        else {key: parameter.grad for key, parameter in model.named_parameters() if parameter.numel()}
    )
    return {"y": y.detach(), "x": x.grad} | gradients


def median(value: Callable[[dict[str, float]], float], rounds: list[dict[str, float]]) -> float:
    """Of a figure taken in every round: what is compared ran within seconds of each other."""
    return round(statistics.median(map(value, rounds)), 3)


def interleaved(run: Callable[[str], None], names: list[str], rounds: int, peak_dtype: str) -> list[dict[str, float]]:
    """Each round's seconds of every name, and of the product whose rate is the peak, after a round that warms up."""
    dtype = torch.float32 if peak_dtype == "fp32" else torch.bfloat16
    a, b, out = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(3))
    runs: dict[str, Callable[[], Any]] = {name: (lambda name=name: run(name)) for name in names}
    runs["peak"] = lambda: torch.mm(a, b, out=out)
    found: list[dict[str, float]] = []
    for function in runs.values():
        function()
    started = time.perf_counter()
    while len(found) < rounds or (time.perf_counter() - started < 3 and len(found) < 10 * rounds):
        # Another one first in every round: none always follows the same other.
        turn = len(found) % len(runs)
        seconds: dict[str, float] = {}
        for name, function in (*list(runs.items())[turn:], *list(runs.items())[:turn]):
            synchronize()
            begun = time.perf_counter()
            function()
            synchronize()
            seconds[name] = time.perf_counter() - begun
        found.append(seconds)
    return found


def forward_operations(layer: nn.Module, batch: int) -> int:
    """Floating point operations of forward's products with the experts' and gates' weights."""
    weights = [
        parameter
        for module in layer.modules()
        if isinstance(module, ExpertBank | GateBank)
        for name, parameter in module.named_parameters()
        if name.endswith("weight")
    ]
    return 2 * batch * sum(weight.numel() for weight in {id(weight): weight for weight in weights}.values())


def peak_bytes(step: Callable[[], None]) -> int:
    """The most the step holds at a time beside what was there before it, as the allocator counts."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


class CountOperators(TorchDispatchMode):
    """Counts what computes or copies; views are free."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not is_view
        return func(*args, **(kwargs or {}))


def count_operators(step: Callable[[], None]) -> int:
    with CountOperators() as counter:
        step()
    return counter.count


def synchronize() -> None:
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def forget_gradients(model: nn.Module, x: Tensor) -> None:
    x.grad = None
    model.zero_grad(set_to_none=True)


@contextmanager
def autocast(dtype: str) -> Iterator[None]:
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16, enabled=dtype == "bf16"):
        yield


def keep_freed_memory() -> None:
    """glibc's mallopt: what malloc(3) reads from the environment, for a process that has started."""
    libc = ctypes.CDLL(None)
    for option, value in [(M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)]:
        if libc.mallopt(option, value) != 1:
            raise RuntimeError(f"mallopt({option}, {value}) was refused: run with --allocator default")


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    def geometric_mean(values: list[float]) -> float:
        return round(math.exp(statistics.fmean(map(math.log, values))), 3)

    large = [cell["step"]["of_peak"] for cell in cells if cell["batch"] >= 2048]
    result: dict[str, Any] = {
        step: {
            key: geometric_mean([cell[step][key] for cell in cells]) for key in ("speedup", "speedup_indexed", "limit")
        }
        | {"slowest": min(cell[step]["speedup"] for cell in cells)}
        for step in ("step", "forward")
    }
    if large:
        result["of_peak_from_batch_2048"] = {"median": statistics.median(large), "best": max(large)}
    for name in ("ours", "recompute"):
        ratios = [cell["peak_bytes"][name] / cell["peak_bytes"]["loop"] for cell in cells]
        result[f"memory_{name}"] = {"median": round(statistics.median(ratios), 3), "largest": round(max(ratios), 3)}
    return result


HEADER = [
    "| B | D | T | E | levels | family | loop ms | ours ms | speedup | limit | over indexed | of peak | forward "
    "| memory | recompute | operators |",
    "|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
]


def cell_lines(cell: dict[str, Any]) -> list[str]:
    step, memory, operators = cell["step"], cell["peak_bytes"], cell["operators"]
    fields = [
        *(cell[key] for key in ("batch", "input_dim", "tasks", "experts", "levels", "family")),
        f"{step['ms']['loop']:.1f}",
        f"{step['ms']['ours']:.1f}",
        f"{step['speedup']:.2f}",
        f"{step['limit']:.2f}",
        f"{step['speedup_indexed']:.2f}",
        f"{step['of_peak']:.0%}",
        f"{cell['forward']['speedup']:.2f}",
        f"{memory['ours'] / memory['loop']:.2f}",
        f"{memory['recompute'] / memory['loop']:.2f}",
        f"{operators['ours']} / {operators['loop']}",
    ]
    return ["| " + " | ".join(map(str, fields)) + " |"]


def table(results: dict[str, Any]) -> list[str]:
    rows = [line for cell in results["cells"] for line in cell_lines(cell)]
    head = f"{results['hardware']}, torch {results['torch']}, allocator {results['allocator']}, {results['dtype']}"
    return [head, "", *HEADER, *rows, "", json.dumps(results["summary"], indent=1)]


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
