"""Jobs written and launched, and what a run has left behind, read without the code under test."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.toy import toy_tree

REPO = Path(__file__).parents[2]


def write_job(path: Path, root: Path, **sections: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(toy_tree(root, **sections)))
    return path


def torchx(config: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """`torchx run -s local_cwd` from the repository's root, in a process group of its own."""
    binaries = Path(sys.executable).parent
    command = [str(binaries / "torchx"), "run", "-s", "local_cwd", "launch/components.py:train"]
    command += ["--config", str(config), "--output", str(run), "--procs_per_node", "2", *more]
    environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPO, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT)


def curve(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what is a time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("samples_per_s", "data_wait")} for record in records]


def final_tensors(run: Path) -> dict[str, Any]:
    """The last checkpoint's model, read without the code under test."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    tensors: dict[str, Any] = {}
    last = max((run / "checkpoints").glob("step_*"))
    _load_state_dict(tensors, FileSystemReader(last), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return flat(tensors)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def killed_after(run: Path, step: int) -> None:
    """What a run killed after that step's checkpoint leaves."""
    for path in (run / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
