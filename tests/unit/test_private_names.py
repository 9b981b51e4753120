"""Private names of the libraries that mtlrec stands on are used in mtlrec/compat/ and nowhere else."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
LIBRARIES = {"torch", "torchrec", "fbgemm_gpu", "torchx", "torchmetrics", "torchjd", "pyarrow", "pydantic", "numpy"}
LIBRARIES |= {"fsspec", "rich", "typer"}
PRIVATE_ATTRIBUTES = {
    "_dmp_wrapped_module",
    "_emb_modules",
    "_in_backward_optimizers",
    "_init_from_local_shards_and_global_metadata",
    "_lookups",
    "_optimizer_classes",
    "_optimizer_kwargs",
    "_process_group",
}
"""Of objects that these libraries make."""


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name of a library that the source imports, reaches through a module, or asks an
    object of a library for."""
    tree = ast.parse(source)
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in LIBRARIES:
                    modules.add((alias.asname or alias.name).split(".")[0])
                    if is_private(alias.name):
                        yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES:
            for alias in node.names:
                modules.add(alias.asname or alias.name)
                if is_private(f"{node.module}.{alias.name}"):
                    yield node.lineno, f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            reached = root_of(node) in modules
            if reached or (node.attr in PRIVATE_ATTRIBUTES and not is_own):
                yield node.lineno, ast.unparse(node)


def is_private(dotted: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))


def root_of(node: ast.expr) -> str | None:
    """`torch` of `torch._inductor.config`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def test_they_are_in_compat_alone() -> None:
    files = [path for path in sorted(REPO.glob("mtlrec/**/*.py")) if REPO / "mtlrec" / "compat" not in path.parents]
    found = [
        f"{path.relative_to(REPO)}:{line}: {name} belongs into a file of mtlrec/compat/"
        for path in [*files, *sorted(REPO.glob("launch/*.py"))]
        for line, name in private_names(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "from torch.distributed._shard.sharded_tensor import ShardedTensor",
        "from torch.distributed.optim import _apply_optimizer_in_backward as apply",
        "import torch._inductor",
        "def f():\n    import torch._dynamo as dynamo",
        "import torch\ntorch._C._cuda_init()",
        "import torch.distributed as dist\ndist._get_default_group()",
        "from torch import nn\nnn.modules._functions",
        "def f(tables):\n    return tables._lookups",
        "def f(tensor):\n    return type(tensor)._init_from_local_shards_and_global_metadata([])",
    ],
)
def test_a_planted_private_name_is_found(source: str) -> None:
    assert len({line for line, _ in private_names(source)}) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from collections import namedtuple\nnamedtuple('A', 'b')(1)._replace(b=2)",
        "import sys\nsys._current_frames()",
        "class A:\n    def f(self):\n        return self._lookups",
        "import torch\ntorch.__version__",
        "from mtlrec._private import name",
    ],
)
def test_other_names_are_not_found(source: str) -> None:
    assert not list(private_names(source))
