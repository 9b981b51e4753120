"""A benchmark as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from mtlrec.benchmark.benchmark import Benchmark


def benchmark_parts(found: Benchmark) -> Iterator[Table | str]:
    ranks = f"{found.world_size} {'rank' if found.world_size == 1 else 'ranks'} of {found.threads} threads"
    speed = Table("", "", title=f"{found.job}, {found.device}, {ranks}, batches of {found.batch_size} ({found.source})")
    for name, value in {
        "samples/s": f"{found.samples_per_s:,.0f}",
        "samples/s of computation alone": f"{found.compute_samples_per_s:,.0f}",
        "step, median and 99th percentile": f"{found.step_p50_ms:.1f} ms, {found.step_p99_ms:.1f} ms",
        "products in a step": f"{found.flops_per_step / 1e9:,.1f} GFLOP, {found.mfu:.0%} of the ceiling",
        "embedding rows moved": f"{found.embedding_gb_s:.2f} GB/s while exposed",
        "handed to collectives in a step": _megabytes(found.communicated_mb),
        "ceilings: product": f"{found.ceilings.tflops:.2f} TFLOP/s",
        "ceilings: rows gathered, copy": f"{found.ceilings.gather_gb_s:.1f} GB/s, {found.ceilings.copy_gb_s:.1f} GB/s",
    }.items():
        speed.add_row(name, value)
    yield speed
    split = Table("exposed per step", "ms", "share", title="what rank 0 does or waits for")
    total = sum(found.split_ms.values())
    for stage, ms in found.split_ms.items():
        split.add_row(stage, f"{ms:.2f}", f"{ms / total:.1%}")
    yield split
    yield (
        f"All stages: {found.split_to_step:.1%} of a step; a step under the profiler takes "
        f"{found.profiled_to_step:.1%} of one without, by their medians."
    )
    memory = Table("memory of rank 0", "GB", title="after the first steps")
    for part, gigabytes in found.memory_gb.items():
        memory.add_row(part, f"{gigabytes:.3f}")
    yield memory


def _megabytes(by_kind: dict[str, float]) -> str:
    return ", ".join(f"{kind} {size:.2f} MB" for kind, size in by_kind.items()) or "nothing"
