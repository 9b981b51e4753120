"""A few steps on GPUs: NCCL, sharded tables, TorchRec's pipeline, fused Adam, bf16, a checkpoint and its evaluation.

    torchrun --nproc_per_node 1 tests/gpu/smoke.py      # or as many as there are GPUs

Not run by pytest (it wants its own processes) and never yet run: there was no machine with both a GPU and TorchRec at
hand when it was written. It makes its own small data set and prints one line when everything held.
"""

import math
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist

from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import process_group
from mtlrec.evaluation.callback import Evaluation
from mtlrec.evaluation.evaluate import evaluate
from mtlrec.training.loading import loader_of
from mtlrec.training.saving import Saving
from mtlrec.training.sharded import load_run
from mtlrec.training.telemetry import Telemetry
from mtlrec.training.trainer import Trainer
from tests.support.toy import toy_tree, write_toy


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("smoke.py wants a CUDA device; torch sees none")
    with process_group("cuda", timeout_s=120) as ranks:
        folder = [tempfile.mkdtemp() if ranks.is_first else None]
        dist.broadcast_object_list(folder)
        root = Path(str(folder[0]))
        if ranks.is_first:
            write_toy(root / "data", train=(3000, 2570))
        dist.barrier()
        tree = toy_tree(root / "data", optim={"sparse": {"kind": "adam", "lr": 0.01}})
        tree["train"] |= {"device": "cuda", "precision": "bf16", "log_every": 10}
        job, run = JobConfig.model_validate(tree), root / "run"
        run.mkdir(exist_ok=True)
        loader = loader_of(job, "train", ranks, training=True)
        telemetry, saving = Telemetry(run, ranks), Saving(job, run, ranks)
        evaluation = Evaluation(job, ranks, loader, telemetry)
        Trainer(job, ranks, loader, [telemetry, saving, evaluation]).fit()
        model = load_run(job, run, ranks)
        evaluated = evaluate(model.module, loader_of(job, "test", ranks), job, ranks)
        for task, metrics in evaluation.final["test"].items():
            name = "log_loss" if "log_loss" in metrics else "mse"
            assert math.isclose(metrics[name], evaluated[task][name], rel_tol=2e-2), (task, metrics, evaluated[task])
        if ranks.is_first:
            device = torch.cuda.get_device_name(ranks.device)
            print(f"held on {os.environ.get('WORLD_SIZE', 1)} x {device}: {evaluation.final['test']}")


if __name__ == "__main__":
    main()
