"""How fast finished batches come, against bare pyarrow and a DataLoader, and how much memory a long stream takes.

    python benchmarks/data.py --root .demo/bench_data --json            # rows per second
    python benchmarks/data.py --root .demo/bench_stream --stream-gb 10  # resident memory, by itself in the process

The files have 26 id columns (integers of 10 to 1e7 values), 13 floats and 4 labels, made below --root where they are
not there; the second set has 6 list columns of 0 to 20 ids besides. What is timed is one epoch of one rank, batches of
4096 rows through the loader and its threads, for every kind of shuffle; beside it `ParquetFile.iter_batches` over the
same files, columns and threads, with batches of 4096 and of 65,536 rows (its default, which is faster).
`ratio_to_pyarrow` is that without a shuffle over pyarrow's default; all others stand beside it. Variants are
interleaved, the page cache is warm, figures are medians over the rounds. The DataLoader stands over a pandas frame that
is in memory already, with a collate function that makes the same tensors, as tutorials do it; it gets fewer rows.
"""

import argparse
import json
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.compat.quiet import quiet_libraries
from mtlrec.config import JobConfig
from mtlrec.data.features.columns import Columns
from mtlrec.data.loader import Loader
from mtlrec.data.sources.dataset import list_row_groups

BATCH = 4096
IDS, DENSE, LABELS, LISTS = 26, 13, 4, 6
CARDINALITY = [10 ** (1 + index % 7) for index in range(IDS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--row-group", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stream-gb", type=float, help="stream so much Parquet instead, and say the memory it takes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    quiet_libraries()
    result = stream(options) if options.stream_gb else rates(options)
    result["hardware"] = {"threads": pa.cpu_count(), "torch_threads": torch.get_num_threads()}
    text = json.dumps(result, indent=1)
    print(text if options.json else report(result))
    if options.output:
        options.output.write_text(text + "\n")


def rates(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"rows": options.rows, "batch_size": BATCH}
    for name, lists in (("scalar_ids", 0), ("list_ids", LISTS)):
        root = options.root / name
        write_files(root, options.rows, options.row_group, lists)
        loaders = {shuffle: loader(root, lists, shuffle) for shuffle in ("none", "row_group", "rows")}
        variants: dict[str, Callable[[], int]] = {
            f"loader_{shuffle}": partial(rows_of_epoch, one) for shuffle, one in loaders.items()
        }
        variants |= {f"pyarrow_{size}": partial(bare, root, lists, size) for size in (65_536, BATCH)}
        found = interleaved(variants, options.rounds)
        ratios = {
            f"{shuffle}_to_pyarrow_{size}": found[f"loader_{shuffle}"] / found[f"pyarrow_{size}"]
            for shuffle in loaders
            for size in (BATCH, 65_536)
        }
        result[name] = {"ratio_to_pyarrow": ratios["none_to_pyarrow_65536"], "ratios": ratios, "rows_per_s": found}
    result["dataloader"] = against_dataloader(options)
    return result


def interleaved(variants: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Rows per second, the median over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            rows = run()
            if round_:  # the first fills the page cache
                times[name].append(rows / (time.perf_counter() - started))
    return {name: statistics.median(rates) for name, rates in times.items()}


def rows_of_epoch(one: Loader) -> int:
    return sum(len(batch) for batch in one.epoch())


def bare(root: Path, lists: int, size: int) -> int:
    columns = names(lists)
    return sum(
        batch.num_rows
        for path in sorted(root.glob("*.parquet"))
        for batch in pq.ParquetFile(path).iter_batches(batch_size=size, columns=columns)
    )


# ---- the files and the job that reads them


def names(lists: int) -> list[str]:
    ids = [f"c{index}" for index in range(IDS)] + [f"l{index}" for index in range(lists)]
    return [*ids, *(f"d{index}" for index in range(DENSE)), *(f"y{index}" for index in range(LABELS))]


def write_files(root: Path, rows: int, row_group: int, lists: int, files: int = 4) -> None:
    if root.exists():
        return
    part = root.with_name(root.name + ".part")
    part.mkdir(parents=True)
    for index in range(files):
        table = make_table(np.random.default_rng(index), rows // files, lists)
        pq.write_table(table, part / f"{index:03d}.parquet", row_group_size=row_group)
    part.rename(root)


def make_table(rng: np.random.Generator, rows: int, lists: int) -> pa.Table:
    columns: dict[str, Any] = {}
    for index, cardinality in enumerate(CARDINALITY):
        columns[f"c{index}"] = (cardinality * rng.random(rows) ** 3).astype(np.int64)
    for index in range(lists):
        offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 21, rows))]).astype(np.int32)
        values = (100_000 * rng.random(offsets[-1]) ** 3).astype(np.int64)
        columns[f"l{index}"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    columns |= {f"d{index}": rng.exponential(10, rows).astype(np.float32) for index in range(DENSE)}
    columns |= {f"y{index}": (rng.random(rows) < 0.1).astype(np.int8) for index in range(LABELS)}
    return pa.table(columns)


def loader(root: Path, lists: int, shuffle: str) -> Loader:
    sparse = [{"name": f"c{index}", "table": f"t{index}"} for index in range(IDS)]
    sparse += [{"name": f"l{index}", "table": "lists"} for index in range(lists)]
    tables = {f"t{index}": {"rows": cardinality, "dim": 16} for index, cardinality in enumerate(CARDINALITY)}
    job = JobConfig.model_validate(
        {
            "name": "bench",
            "data": {"root": str(root), "train": ["*.parquet"], "batch_size": BATCH},
            "tables": tables | ({"lists": {"rows": 100_000, "dim": 16}} if lists else {}),
            "features": {"dense": [{"name": f"d{i}", "transform": "log1p"} for i in range(DENSE)], "sparse": sparse},
            "tasks": [{"name": f"y{index}", "label": f"y{index}"} for index in range(LABELS)],
            "model": {"fusion": {"kind": "shared_bottom", "expert_hidden": [[8]]}},
        }
    )
    columns = Columns.of(job)
    dataset = list_row_groups(job.data.root, job.data.train, columns.column_uses)
    return Loader(job.data, dataset, columns, shuffle=shuffle, seed=0)  # type: ignore[arg-type]


# ---- what tutorials do


ID_COLUMNS = [f"c{index}" for index in range(IDS)]
DENSE_COLUMNS = [f"d{index}" for index in range(DENSE)]
LABEL_COLUMNS = [f"y{index}" for index in range(LABELS)]
Row = tuple[np.ndarray, np.ndarray, np.ndarray]


class Frame(Dataset):  # type: ignore[type-arg]
    """A row of a pandas frame at a time."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, row: int) -> Row:
        one = self.frame.iloc[row]
        ids, dense, labels = (one[columns].to_numpy() for columns in (ID_COLUMNS, DENSE_COLUMNS, LABEL_COLUMNS))
        return ids.astype(np.int64), dense.astype(np.float32), labels


class Arrays(Dataset):  # type: ignore[type-arg]
    """The same for who has thought of taking NumPy arrays out of the frame first."""

    def __init__(self, frame: Any) -> None:
        self.parts = tuple(frame[columns].to_numpy() for columns in (ID_COLUMNS, DENSE_COLUMNS, LABEL_COLUMNS))

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, row: int) -> Row:
        ids, dense, labels = self.parts
        return ids[row], dense[row], labels[row]


def together(rows: list[Row]) -> tuple[Any, ...]:
    ids, dense, labels = (np.stack(part) for part in zip(*rows, strict=True))
    sparse = KeyedJaggedTensor(
        keys=ID_COLUMNS,
        values=torch.from_numpy(np.ascontiguousarray(ids.T)).reshape(-1),
        lengths=torch.ones(ids.size, dtype=torch.int32),
    )
    return torch.log1p(torch.from_numpy(dense)), sparse, torch.from_numpy(labels.astype(np.float32))


def against_dataloader(options: argparse.Namespace) -> dict[str, Any]:
    try:
        import pandas
    except ImportError:
        return {"skipped": "pandas is not installed: pip install 'mtlrec[bench]'"}
    root = options.root / "scalar_ids"
    frame = pandas.read_parquet(root / "000.parquet").head(20_000)
    ours = loader(root, 0, "rows")

    def epoch_of(data: Dataset) -> Callable[[], int]:  # type: ignore[type-arg]
        batches = DataLoader(data, BATCH, shuffle=True, collate_fn=together)
        return lambda: sum(len(labels) for _, _, labels in batches)

    found = interleaved(
        {
            "loader_rows": partial(rows_of_epoch, ours),
            "frame": epoch_of(Frame(frame.head(2 * BATCH))),
            "arrays": epoch_of(Arrays(frame)),
        },
        max(options.rounds // 2, 1),
    )
    return {
        "speedup": found["loader_rows"] / found["frame"],
        "speedup_over_arrays": found["loader_rows"] / found["arrays"],
        "rows_per_s": found,
    }


# ---- memory


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """Files are made one after another and kept until so many bytes are there; then one epoch is read."""
    root: Path = options.root
    root.mkdir(parents=True, exist_ok=True)
    for index in files_until(root, options.stream_gb * 1e9):
        table = make_table(np.random.default_rng(index), 1_000_000, LISTS)
        part = root / f".{index:05d}.part"
        pq.write_table(table, part, row_group_size=options.row_group)
        part.rename(root / f"{index:05d}.parquet")
        del table
    pa.default_memory_pool().release_unused()
    before, peak = resident(), Peak()
    started, rows = time.perf_counter(), 0
    for batch in loader(root, LISTS, "rows").epoch():
        rows += len(batch)
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in root.glob("*.parquet"))
    return {
        "stream": {
            "parquet_gb": size / 1e9,
            "rows": rows,
            "rows_per_s": rows / seconds,
            "resident_gb_before": before / 1e9,
            "resident_gb_peak": peak.stop() / 1e9,
            "maxrss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        }
    }


def files_until(root: Path, size: float) -> Iterator[int]:
    while sum(path.stat().st_size for path in root.glob("*.parquet")) < size:
        yield len(list(root.glob("*.parquet")))


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


class Peak(threading.Thread):
    """The largest resident memory from now on, looked at every 50 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._done = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._done.wait(0.05):
            self.most = max(self.most, resident())

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.most


def report(result: dict[str, Any]) -> str:
    lines = []
    for name in ("scalar_ids", "list_ids"):
        if name in result:
            rates = {variant: f"{rate:,.0f}" for variant, rate in result[name]["rows_per_s"].items()}
            lines.append(f"{name}: {result[name]['ratio_to_pyarrow']:.2f} of bare pyarrow, without a shuffle; {rates}")
    lines += [f"{name}: {result[name]}" for name in ("dataloader", "stream") if name in result]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
