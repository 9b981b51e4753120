"""mtlrec against torch-rechub and against the loops of tutorials: the same model, tables, batch and rows.

    make bench-peers                       # installs torch-rechub beside the rest, and runs this
    python benchmarks/peers.py --json --output benchmarks/results/peers.json

The model is PLE (two tasks, one level, 2 + 2 + 2 experts of [256, 128]) or MMoE (six such experts) with towers of [64],
over 26 tables of 100,000 rows and 13 floats, batches of 4096. Everyone trains once over the same rows with both cores:

    mtlrec            mtlrec train from Parquet on one rank with all threads; FBGEMM's row-wise Adagrad and Adam
    mtlrec_two_ranks  the same on two ranks with half the threads and half the batch each
    mtlrec_bf16       as mtlrec with train.precision: bf16; left out where the CPU has no units for bfloat16
    torch-rechub      its model and MTLTrainer (Adam over everything, batch norm in its experts), its DataGenerator
    tutorial          nn.EmbeddingBag tables, a loop over experts, Adam over everything, a DataLoader of a TensorDataset
    tutorial_sparse   the same with sparse gradients: SparseAdam for the tables, Adam for the rest

Each run is a process of its own, so that nobody gets the other's allocator or threads; contenders take turns, figures
are medians over the rounds. Peers have their rows in memory before the clock starts, mtlrec reads them while it runs.
The first tenth of the steps is not counted. AUCs are of the test rows after that one pass, from the last round.
`limit` is what the products of one training step alone would allow at the speed of a large one, measured here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, also by itself under torchrun

from benchmarks import jobs
from benchmarks.plain_loops import LoopMMoE, LoopPLE
from benchmarks.report import processor
from mtlrec.benchmark.ceilings import seconds

ROWS, DIM, BATCH, TASKS = 100_000, 16, 4096, 2
HIDDEN = [256, 128]
OURS = {  # ranks and overrides
    "mtlrec": (1, []),
    "mtlrec_two_ranks": (2, []),
    "mtlrec_bf16": (1, ["train.precision=bf16"]),
}
CONTENDERS = (*OURS, "torch_rechub", "tutorial", "tutorial_sparse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(".demo/bench_peers"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fusions", nargs="+", choices=("ple", "mmoe"), default=["ple", "mmoe"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="all that this machine can run, by default")
    parser.add_argument("--set", action="append", default=[], help="key=value, for mtlrec's job")
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "FUSION"), help="run one and print its JSON")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    options.contenders = options.contenders or [c for c in CONTENDERS if c != "mtlrec_bf16" or has_bfloat16_units()]
    options.root = jobs.write_files(options.root, [ROWS] * jobs.TABLES, options.steps * BATCH, 16 * BATCH)
    if options.one:
        print(json.dumps(run(*options.one, options)))
        return
    rates: dict[str, dict[str, list[float]]] = {
        fusion: {one: [] for one in options.contenders} for fusion in options.fusions
    }
    aucs: dict[str, dict[str, list[float]]] = {fusion: {} for fusion in options.fusions}
    for round_ in range(options.rounds):
        for fusion in options.fusions:
            for contender in options.contenders:
                found = alone(contender, fusion, options)
                rates[fusion][contender].append(found["samples_per_s"])
                aucs[fusion][contender] = found["auc"]
                said = f"{found['samples_per_s']:,.0f} samples/s, AUC {found['auc']}"
                print(f"round {round_ + 1}, {fusion}, {contender}: {said}", file=sys.stderr, flush=True)
    result = {
        "command": f"python benchmarks/peers.py {' '.join(sys.argv[1:])}",
        "hardware": f"{processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "limit": {fusion: limit(fusion) for fusion in options.fusions},
        "samples": options.steps * BATCH,
        "fusions": {
            fusion: {
                name: {"samples_per_s": round(statistics.median(values)), "rounds": values, "auc": aucs[fusion][name]}
                for name, values in by_name.items()
            }
            for fusion, by_name in rates.items()
        },
    }
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if options.json else table(result))


def table(result: dict[str, Any]) -> str:
    lines = []
    for fusion, found in result["fusions"].items():
        slowest = min(one["samples_per_s"] for one in found.values())
        for name, one in found.items():
            auc = ", ".join(f"{value:.4f}" for value in one["auc"])
            ratio = one["samples_per_s"] / slowest
            lines.append(f"{fusion:5} {name:17} {one['samples_per_s']:8,} samples/s {ratio:5.2f}   AUC {auc}")
        lines.append(f"{fusion:5} {'limit':17} {result['limit'][fusion]:8,} samples/s")
    return "\n".join(lines)


def has_bfloat16_units() -> bool:
    """Or else a step would take minutes."""
    cpu, (a, b) = torch.device("cpu"), torch.randn(2, 256, 256)
    halves = a.bfloat16(), b.bfloat16()
    return seconds(lambda: halves[0] @ halves[1], cpu) < seconds(lambda: a @ b, cpu)


def limit(fusion: str) -> int:
    """Samples per second in float32, by the products of experts, gates and towers, thrice: forward and backward."""
    width = jobs.TABLES * DIM + jobs.DENSE
    experts = 6 * (width * HIDDEN[0] + HIDDEN[0] * HIDDEN[1])
    gates = TASKS * width * (4 if fusion == "ple" else 6)
    towers = TASKS * (HIDDEN[1] * 64 + 64)
    a, b = torch.randn(BATCH, 432), torch.randn(432, 1536)
    took = seconds(lambda: a @ b, torch.device("cpu"))
    return round(2 * BATCH * 432 * 1536 / took / (6 * (experts + gates + towers)))


def alone(contender: str, fusion: str, options: argparse.Namespace) -> dict[str, Any]:
    words = ["--one", contender, fusion, "--root", str(options.root.parent), "--steps", str(options.steps)]
    words += [word for one in options.set for word in ("--set", one)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(contender: str, fusion: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    match contender:
        case _ if contender in OURS:
            ranks, overrides = OURS[contender]
            return train_mtlrec(fusion, ranks, [*overrides, *options.set], options)
        case "torch_rechub":
            return train_rechub(fusion, options.root)
        case _:
            return train_tutorial(fusion, contender == "tutorial_sparse", options.root)


def result_of(seconds_at_step: list[float], auc: list[float]) -> dict[str, Any]:
    """From when each step ended."""
    first = len(seconds_at_step) // 10
    took = seconds_at_step[-1] - seconds_at_step[first]
    return {"samples_per_s": BATCH * (len(seconds_at_step) - 1 - first) / took, "auc": auc}


# ---- mtlrec


def train_mtlrec(fusion: str, ranks: int, overrides: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """The command that a user gives; its own log says how fast it was."""
    every = max(1, options.steps // 10)
    job = jobs.job(options.root, [ROWS] * jobs.TABLES, fusion, TASKS, BATCH // ranks, [HIDDEN], DIM, log_every=every)
    with tempfile.TemporaryDirectory() as folder:
        config, output = Path(folder) / "job.yaml", Path(folder) / "run"
        config.write_text(yaml.safe_dump(job.dump()), encoding="utf-8")
        words = ["-m", "mtlrec", "train", str(config), "-o", str(output), "--json"]
        words += [word for one in overrides for word in ("--set", one)]
        if ranks > 1:
            local = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
            words = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *local, *words]
        threads = str((os.cpu_count() or 1) // ranks)
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads(done.stdout)["test"]
    rates = [line["samples_per_s"] for line in lines if line["kind"] == "train"][1:]
    return {
        "samples_per_s": statistics.harmonic_mean(rates),
        "auc": [metrics[f"y{task}"]["auc"] for task in range(TASKS)],
    }


# ---- the peers


def columns(root: Path, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features by name, and labels [N, TASKS]."""
    rows = pq.read_table(root / f"{split}.parquet")
    features = {name: rows[name].to_numpy() for name in jobs.DENSE_NAMES + jobs.TABLE_NAMES}
    return features, np.stack([rows[f"y{task}"].to_numpy() for task in range(TASKS)], axis=1).astype(np.float32)


def aucs(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    from sklearn.metrics import roc_auc_score

    return [float(roc_auc_score(labels[:, task], scores[:, task])) for task in range(TASKS)]


def train_rechub(fusion: str, root: Path) -> dict[str, Any]:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE, PLE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    features = [DenseFeature(name) for name in jobs.DENSE_NAMES]
    features += [SparseFeature(name, ROWS, DIM) for name in jobs.TABLE_NAMES]
    kinds, experts = ["classification"] * TASKS, {"dims": HIDDEN, "activation": "relu"}
    towers = [{"dims": [64], "activation": "relu"}] * TASKS
    if fusion == "ple":
        model = PLE(features, kinds, 1, 2, 2, experts, towers)
    else:
        model = MMOE(features, kinds, 6, experts, towers)
    (x, y), (test_x, test_y) = columns(root, "train"), columns(root, "test")
    loaders = DataGenerator(x, y).generate_dataloader(
        x_val=test_x, y_val=test_y, x_test=test_x, y_test=test_y, batch_size=BATCH
    )
    ends = []
    trainer = MTLTrainer(model, kinds)
    trainer.optimizer.register_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    trainer.train_one_epoch(loaders[0])
    return result_of(ends, [float(auc) for auc in trainer.evaluate(model, loaders[2])])


class Tutorial(nn.Module):
    def __init__(self, fusion: str, sparse: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(ROWS, DIM, mode="sum", sparse=sparse) for _ in range(jobs.TABLES))
        width = jobs.TABLES * DIM + jobs.DENSE
        self.fusion = LoopPLE(width, TASKS, 2, 2, [HIDDEN]) if fusion == "ple" else LoopMMoE(width, TASKS, 6, [HIDDEN])
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(HIDDEN[-1], 64), nn.ReLU(), nn.Linear(64, 1)) for _ in range(TASKS)
        )

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        pooled = [table(ids[:, index : index + 1]) for index, table in enumerate(self.tables)]
        fused = self.fusion(torch.cat([dense, *pooled], dim=1))
        return torch.cat([tower(fused[:, task]) for task, tower in enumerate(self.towers)], dim=1)


def train_tutorial(fusion: str, sparse: bool, root: Path) -> dict[str, Any]:
    from torch.utils.data import DataLoader, TensorDataset

    def tensors(split: str) -> list[Tensor]:
        features, labels = columns(root, split)
        parts = [np.stack([features[name] for name in names], axis=1) for names in (jobs.DENSE_NAMES, jobs.TABLE_NAMES)]
        return [torch.from_numpy(part) for part in (*parts, labels)]

    model, loss = Tutorial(fusion, sparse), nn.BCEWithLogitsLoss()
    rest = [p for name, p in model.named_parameters() if not (sparse and name.startswith("tables."))]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rest)]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(list(model.tables.parameters())))
    ends = []
    for dense, ids, labels in DataLoader(TensorDataset(*tensors("train")), batch_size=BATCH, shuffle=True):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(model(dense, ids), labels).backward()
        for optimizer in optimizers:
            optimizer.step()
        ends.append(time.perf_counter())
    with torch.no_grad():
        test_dense, test_ids, test_labels = tensors("test")
        return result_of(ends, aucs(model(test_dense, test_ids).numpy(), test_labels.numpy()))


if __name__ == "__main__":
    main()
