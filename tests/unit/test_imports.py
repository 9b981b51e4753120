"""The arrows of the architecture: who may import whom. Read from the source, so that a lazy import counts too.

Within mtlrec a file imports from its own room (a folder, or a module beside them) or from a room to the left of it:

    layers, heads, losses, metrics <- config, batch <- data, models <- distributed <- training <- serving <- api <- cli

datasets imports errors, io and config only, and only api and cli import it. No files import each other.
The files of cli/ that hold verbs do not import each other. mtlrec/__init__.py names mtlrec.api, which it loads when a
verb is used.

layers, heads and losses run wherever torch runs: of other packages they import torch and annotated_types (bounds of
arguments), metrics torch and NumPy, and of mtlrec only each other, leftward. launch/ describes jobs to TorchX, on
machines that may be unable to run them: neither torch nor mtlrec.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
ROOMS = (
    ("layers", "heads", "losses", "metrics"),
    ("errors", "io", "display", "run_folder", "config", "recipes", "batch"),
    ("data", "models"),
    ("compat", "distributed"),
    ("checkpoints",),
    ("training",),
    ("evaluation", "diagnosis", "benchmark"),
    ("serving", "comparison"),
    ("datasets",),
    ("api",),
    ("cli", "__main__"),
)
DATASETS_MAY_IMPORT = {"datasets", "config", "io", "errors"}
ORDER = [room for rooms in ROOMS for room in rooms]
TORCH_ONLY = {
    **{room: {"torch", "annotated_types"} for room in ("layers", "heads", "losses")},
    "metrics": {"torch", "numpy"},
}
SHARED_IN_CLI = {"options", "console"}
"""The files of cli/ that verbs may import; main.py imports every verb."""
NOT_IN_LAUNCH = {"torch", "torchrec", "fbgemm_gpu", "mtlrec"}


def problems(root: Path) -> list[str]:
    """Every import under `root` (the folder that holds mtlrec/ and launch/) that goes against an arrow."""
    found = []
    for path in sorted([*root.glob("mtlrec/**/*.py"), *root.glob("launch/**/*.py")]):
        file = path.relative_to(root)
        for line, module in imported_modules(root, file):
            found += [f"{file}:{line}: {complaint}" for complaint in complaints(file, module)]
    return found


def complaints(file: Path, module: str) -> Iterator[str]:
    """What is wrong with `file` importing `module` (`a.b.c`), if anything."""
    package = module.split(".")[0]
    if file.parts[0] == "launch":
        if package in NOT_IN_LAUNCH:
            yield f"launch/ must not import {package}, it imports {module}"
        return
    own = room_of(file)
    if own == "__init__":
        if package not in sys.stdlib_module_names and module != "mtlrec.api":
            yield f"`import mtlrec` must stay light, it imports {module}"
        return
    if own not in ORDER:
        yield f"the room {own!r} has no place among the arrows: give it one in ROOMS of this test"
    elif package == "mtlrec":
        yield from complaints_within(file, module)
    elif own in TORCH_ONLY and package not in TORCH_ONLY[own] | sys.stdlib_module_names:
        yield f"{own} may import {' and '.join(sorted(TORCH_ONLY[own], reverse=True))} only, it imports {module}"


def complaints_within(file: Path, module: str) -> Iterator[str]:
    """What is wrong with `file` importing `module` of mtlrec."""
    own = room_of(file)
    if module == "mtlrec":  # for its version, say: the package itself imports nothing
        return
    other = module.split(".")[1]
    if other not in ORDER:
        yield f"the room {other!r} has no place among the arrows: give it one in ROOMS of this test"
    elif own in TORCH_ONLY and other not in TORCH_ONLY:
        yield f"{own} takes flat arguments and must not import {other}: it imports {module}"
    elif ORDER.index(other) > ORDER.index(own):
        yield f"{own} must not import {other}, which is to the right of it: it imports {module}"
    elif own == "datasets" and other not in DATASETS_MAY_IMPORT:
        yield f"datasets may import {', '.join(sorted(DATASETS_MAY_IMPORT))} only, it imports {module}"
    elif own == other == "cli" and file.stem != "main" and not {*module.split(".")[2:3]} <= SHARED_IN_CLI:
        yield f"a verb must not import another, it imports {module}"


def room_of(file: Path) -> str:
    """mtlrec/layers/blocks/mlp.py -> layers; mtlrec/batch.py -> batch."""
    return file.parts[1].removesuffix(".py")


def imported_modules(root: Path, file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import anywhere in the file, relative ones resolved."""
    for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            here = list(file.parts[: len(file.parts) - node.level]) if node.level else []
            base = ".".join([*here, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}" if is_submodule(root, base, alias.name) else base


def circle(root: Path) -> list[str]:
    """The modules of a circle of imports, lazy ones included, the first repeated at the end; [] if there is none."""
    modules = {module_of(path.relative_to(root)): path.relative_to(root) for path in root.glob("mtlrec/**/*.py")}
    imports = {
        module: {other for _, other in imported_modules(root, file) if other in modules and other != module}
        for module, file in modules.items()
    }
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        modules_of_circle: list[str] = error.args[1]
        return modules_of_circle[::-1]
    return []


def module_of(file: Path) -> str:
    """mtlrec/layers/blocks/mlp.py -> mtlrec.layers.blocks.mlp; mtlrec/layers/__init__.py -> mtlrec.layers."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_submodule(root: Path, package: str, name: str) -> bool:
    """Whether `from package import name` imports a module of ours rather than a name of its __init__."""
    folder = root.joinpath(*package.split("."))
    return (folder / name).is_dir() or (folder / f"{name}.py").is_file()


def test_the_arrows_hold() -> None:
    assert not problems(REPO), "\n" + "\n".join(problems(REPO))


def test_no_files_import_each_other() -> None:
    assert not circle(REPO), " imports ".join(circle(REPO))


@pytest.mark.parametrize("again", ["from mtlrec.layers.a import A", "def f():\n    from .a import A"])
def test_a_circle_is_found(tmp_path: Path, again: str) -> None:
    plant(
        tmp_path,
        {
            "mtlrec/layers/__init__.py": "from mtlrec.layers.a import A",
            "mtlrec/layers/a.py": "import mtlrec.layers.b",
            "mtlrec/layers/b.py": "from . import c",
            "mtlrec/layers/c.py": again,
        },
    )
    modules = circle(tmp_path)
    assert modules[0] == modules[-1]
    assert set(modules) == {"mtlrec.layers.a", "mtlrec.layers.b", "mtlrec.layers.c"}
    plant(tmp_path, {"mtlrec/layers/c.py": "import torch"})
    assert circle(tmp_path) == []


def test_files_are_short_and_folders_are_small() -> None:
    """A file is one thing to know, a folder can be taken in at a glance."""
    files = [path for path in (REPO / "mtlrec").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files if path.suffix == ".py"}
    assert {path: count for path, count in lines.items() if count > 300} == {}
    assert {folder: count for folder, count in Counter(path.parent for path in files).items() if count > 14} == {}


def test_importing_mtlrec_is_light() -> None:
    script = "import sys, mtlrec; print(*sorted({'torch', 'torchrec', 'fbgemm_gpu'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("room", sorted(TORCH_ONLY))
def test_rooms_of_torch_only_load_without_torchrec(room: str) -> None:
    if not (REPO / "mtlrec" / room / "__init__.py").is_file():
        pytest.skip(f"there is no mtlrec/{room} yet")
    script = f"import sys, mtlrec.{room}; print(*sorted({{'torchrec', 'fbgemm_gpu'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("mtlrec/layers/blocks/mlp.py", "from mtlrec.config import Config", "layers takes flat arguments"),
        ("mtlrec/layers/blocks/mlp.py", "from ...config import Config", "layers takes flat arguments"),
        ("mtlrec/layers/blocks/mlp.py", "from mtlrec import config", "layers takes flat arguments"),
        ("mtlrec/layers/blocks/mlp.py", "from ... import config", "layers takes flat arguments"),
        ("mtlrec/layers/blocks/mlp.py", "import mtlrec.config", "layers takes flat arguments"),
        ("mtlrec/layers/blocks/mlp.py", "import torchrec", "layers may import torch and annotated_types only"),
        (
            "mtlrec/layers/blocks/mlp.py",
            "def f():\n    from torchrec.modules import mlp",
            "layers may import torch and annotated_types only",
        ),
        ("mtlrec/layers/blocks/mlp.py", "import numpy as np", "layers may import torch and annotated_types only"),
        ("mtlrec/layers/blocks/mlp.py", "from mtlrec.heads.towers import Towers", "layers must not import heads"),
        ("mtlrec/heads/esmm.py", "import mtlrec.losses", "heads must not import losses"),
        ("mtlrec/losses/deep/er.py", "from ...models import build", "must not import models"),
        ("mtlrec/models/build.py", "from mtlrec.distributed import sharding", "models must not import distributed"),
        ("mtlrec/batch.py", "from .data.collate import collate", "batch must not import data"),
        ("mtlrec/training/trainer.py", "from mtlrec.serving import export", "training must not import serving"),
        ("mtlrec/datasets/kuairand.py", "from mtlrec.batch import Batch", "datasets may import config, datasets, err"),
        ("mtlrec/data/loader.py", "from mtlrec.datasets import kuairand", "data must not import datasets"),
        ("mtlrec/comparison/comparison.py", "import mtlrec.datasets.writing", "comparison must not import datasets"),
        ("mtlrec/utils.py", "import os", "the room 'utils' has no place"),
        ("mtlrec/cli/main.py", "import mtlrec.common", "the room 'common' has no place"),
        ("mtlrec/cli/train.py", "from mtlrec.cli.evaluate import report", "a verb must not import another"),
        ("mtlrec/cli/train.py", "import mtlrec.cli.evaluate", "a verb must not import another"),
        ("mtlrec/__init__.py", "import torchrec", "`import mtlrec` must stay light"),
        ("mtlrec/__init__.py", "from mtlrec.layers import MLP", "`import mtlrec` must stay light"),
        ("launch/components.py", "import torch.distributed", "launch/ must not import torch"),
        ("launch/components.py", "from mtlrec.config import Config", "launch/ must not import mtlrec"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    plant(tmp_path, {"mtlrec/config.py": "", file: source})
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{file}:")
    assert complaint in problem


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "mtlrec/__init__.py": "from importlib.metadata import version\nfrom mtlrec.api import train",
            "mtlrec/config.py": "import pydantic",
            "mtlrec/layers/__init__.py": "from mtlrec.layers.blocks.mlp import MLP",
            "mtlrec/layers/blocks/mlp.py": "import math\nfrom collections.abc import Sequence\nfrom torch import nn",
            "mtlrec/heads/towers.py": "from mtlrec.layers import MLP\nfrom . import esmm",
            "mtlrec/heads/esmm.py": "import torch",
            "mtlrec/models/build.py": "import torchrec\nfrom mtlrec import config, layers, __version__",
            "mtlrec/data/prepare/census.py": "from ..parquet import read\nfrom ...config import Config",
            "mtlrec/datasets/census_income.py": "import pyarrow\nfrom mtlrec.datasets import writing",
            "mtlrec/datasets/writing.py": "from mtlrec.config.tasks import Task\nfrom mtlrec import errors, io",
            "mtlrec/cli/main.py": "from mtlrec.cli import train\nfrom mtlrec.datasets import census_income",
            "mtlrec/cli/train.py": "from mtlrec import api\nfrom mtlrec.cli.options import Set",
            "launch/components.py": "import torchx.specs as specs\nfrom launch.resources import h200",
        },
    )
    assert problems(tmp_path) == []


def plant(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
