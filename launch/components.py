"""TorchX components: `mtlrec train` and `mtlrec evaluate` on a workstation, Slurm or Kubernetes.

    torchx run -s local_cwd launch/components.py:train --help

A component turns typed arguments into an AppDef, which is data; the scheduler named by `-s` runs it. All are TorchX's own
`dist.ddp` (one torchrun per node) with what this project has learned about it put on top. Run torchx from the repository
root with the environment active: torchrun is taken from PATH, there and in the image.

The components' annotations keep to `typing`'s spelling (`Optional`, `Dict`), the only one that TorchX 0.7 reads, and their
docstrings are their help.
"""

import os
import re
import sys
from pathlib import PurePath
from typing import Dict, List, Optional

from torchx import specs
from torchx.components.dist import ddp
from torchx.specs.finder import ComponentValidationException

# The torchx command executes the text of this file inside a module of its own: no __file__ of ours to find the neighbor
# by, and no repository root on the path. The folder it was started in is the one it reads .torchxconfig from, too.
if __name__ != "launch.components":
    if not os.path.isfile(os.path.join("launch", "resources.py")):
        raise ComponentValidationException("no launch/resources.py here: run torchx from the repository's root")
    sys.path.insert(0, os.getcwd())

from launch.resources import LaunchError, find_resource

DEFAULT_IMAGE = "mtlrec:latest"


def train(
    *words: str,
    config: str,
    output: str,
    set: Optional[str] = None,
    resume: bool = False,
    init_from: Optional[str] = None,
    nodes: int = 1,
    procs_per_node: Optional[int] = None,
    threads: Optional[int] = None,
    resource: str = "local",
    image: str = DEFAULT_IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_restarts: int = 0,
    max_retries: int = 0,
    grace_s: int = 8,
    rdzv_port: int = 29500,
    name: Optional[str] = None,
) -> specs.AppDef:
    """Train a job on one or more nodes: torchrun, one process per GPU or per share of the cores.

    Example, two ranks on this machine:

      torchx run -s local_cwd launch/components.py:train --config feed --output runs/a --procs_per_node 2 data.root=data/feed train.epochs=2

    Words at the end of the line override keys of the config, as --set does, without quotes around a semicolon.
    From the first word that begins with a dash (write -- before it) the rest is passed to mtlrec as it stands.

    Args:
        words: any number of overrides, key=value; then options for mtlrec
        config: a recipe's name (mtlrec recipes lists them) or the path of a YAML job
        output: the run's folder; on several nodes it must be on a file system that all of them see
        set: overrides in one argument, key=value with ; between them
        resume: True to go on from the last checkpoint in output, if there is one
        init_from: a run whose weights to start from, with a fresh optimizer
        nodes: number of nodes
        procs_per_node: ranks on each node; by default one per GPU of the resource, or one
        threads: CPU threads of each rank; by default the resource's cores divided by the ranks
        resource: what each node must have: local (this machine's cores), a name in launch/resources.py or one of TorchX's
        image: container image with mtlrec in it; local_cwd and slurm take no notice of it
        env: environment variables, A=1,B=2; they win over what this component sets
        mounts: volumes for containers, type=volume,src=CLAIM,dst=/data
        max_restarts: how often torchrun restarts the ranks after one of them died
        max_retries: how often the scheduler starts the whole job again; implies resume
        grace_s: seconds that the ranks have to save and end after SIGTERM; local_cwd kills after 10, Slurm by default after 30
        rdzv_port: port on the first node through which several nodes meet
        name: the job's name; by default train- and the config's
    """
    command = ["train", config, "--output", output]
    if resume or max_retries:  # a job that is started again finds its own run in output
        command.append("--resume")
    if init_from:
        command += ["--init-from", init_from]
    return launch_mtlrec(
        [*command, *override_options(set, words)],
        role_name="trainer",
        app_name=name or f"train-{PurePath(config).stem}",
        nodes=nodes,
        procs_per_node=procs_per_node,
        threads=threads,
        resource=resource,
        image=image,
        env=env,
        mounts=mounts,
        max_restarts=max_restarts,
        max_retries=max_retries,
        grace_s=grace_s,
        rdzv_port=rdzv_port,
    )


def evaluate(
    *words: str,
    run: str,
    checkpoint: str = "last",
    set: Optional[str] = None,
    nodes: int = 1,
    procs_per_node: Optional[int] = None,
    threads: Optional[int] = None,
    resource: str = "local",
    image: str = DEFAULT_IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    name: Optional[str] = None,
) -> specs.AppDef:
    """Evaluate a trained run, on as many ranks as its tables need: the number of ranks need not be that of the training.

    Example, on two ranks of this machine:

      torchx run -s local_cwd launch/components.py:evaluate --run runs/a --procs_per_node 2 data.root=data/feed -- --json

    Args:
        words: any number of overrides, key=value; then options for mtlrec
        run: the run's folder
        checkpoint: last, best or the number of a step
        set: overrides in one argument, key=value with ; between them
        nodes: number of nodes
        procs_per_node: ranks on each node; by default one per GPU of the resource, or one
        threads: CPU threads of each rank; by default the resource's cores divided by the ranks
        resource: what each node must have: local (this machine's cores), a name in launch/resources.py or one of TorchX's
        image: container image with mtlrec in it; local_cwd and slurm take no notice of it
        env: environment variables, A=1,B=2; they win over what this component sets
        mounts: volumes for containers, type=volume,src=CLAIM,dst=/data
        max_retries: how often the scheduler starts the whole job again
        rdzv_port: port on the first node through which several nodes meet
        name: the job's name; by default evaluate- and the run's
    """
    return launch_mtlrec(
        ["evaluate", run, "--checkpoint", checkpoint, *override_options(set, words)],
        role_name="evaluator",
        app_name=name or f"evaluate-{PurePath(run).name}",
        nodes=nodes,
        procs_per_node=procs_per_node,
        threads=threads,
        resource=resource,
        image=image,
        env=env,
        mounts=mounts,
        max_restarts=0,
        max_retries=max_retries,
        grace_s=8,
        rdzv_port=rdzv_port,
    )


def bench(
    *words: str,
    config: str,
    steps: int = 100,
    source: str = "train",
    set: Optional[str] = None,
    nodes: int = 1,
    procs_per_node: Optional[int] = None,
    threads: Optional[int] = None,
    resource: str = "local",
    image: str = DEFAULT_IMAGE,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    name: Optional[str] = None,
) -> specs.AppDef:
    """Say how fast a job trains on one or more nodes and what its steps are spent on; keeps nothing of the model.

    Example, on two ranks of this machine, without data:

      torchx run -s local_cwd launch/components.py:bench --config feed --source random --procs_per_node 2 -- --json

    Args:
        words: any number of overrides, key=value; then options for mtlrec
        config: a recipe's name (mtlrec recipes lists them) or the path of a YAML job
        steps: how many to time
        source: train reads the job's files, memory takes batches of them made beforehand, random needs no files
        set: overrides in one argument, key=value with ; between them
        nodes: number of nodes
        procs_per_node: ranks on each node; by default one per GPU of the resource, or one
        threads: CPU threads of each rank; by default the resource's cores divided by the ranks
        resource: what each node must have: local (this machine's cores), a name in launch/resources.py or one of TorchX's
        image: container image with mtlrec in it; local_cwd and slurm take no notice of it
        env: environment variables, A=1,B=2; they win over what this component sets
        mounts: volumes for containers, type=volume,src=CLAIM,dst=/data
        rdzv_port: port on the first node through which several nodes meet
        name: the job's name; by default bench- and the config's
    """
    check_at_least(5, steps=steps)
    return launch_mtlrec(
        ["bench", config, "--steps", str(steps), "--source", source, *override_options(set, words)],
        role_name="bench",
        app_name=name or f"bench-{PurePath(config).stem}",
        nodes=nodes,
        procs_per_node=procs_per_node,
        threads=threads,
        resource=resource,
        image=image,
        env=env,
        mounts=mounts,
        max_restarts=0,
        max_retries=0,
        grace_s=8,
        rdzv_port=rdzv_port,
    )


def launch_mtlrec(
    command: list[str],
    *,
    role_name: str,
    app_name: str,
    nodes: int,
    procs_per_node: int | None,
    threads: int | None,
    resource: str,
    image: str,
    env: dict[str, str] | None,
    mounts: list[str] | None,
    max_restarts: int,
    max_retries: int,
    grace_s: int,
    rdzv_port: int,
) -> specs.AppDef:
    """An AppDef with one role, which runs `mtlrec COMMAND` under torchrun on every node.

    Raises:
        LaunchError: a number out of range, or a resource that does not exist or is too small.
    """
    node = find_resource(resource)
    check_at_least(1, nodes=nodes, grace_s=grace_s, rdzv_port=rdzv_port)
    check_at_least(0, max_restarts=max_restarts, max_retries=max_retries)
    procs = max(node.gpu, 1) if procs_per_node is None else whole_number("procs_per_node", procs_per_node)
    # Left to itself torchrun gives every rank a single thread.
    threads = max(node.cpu // procs, 1) if threads is None else whole_number("threads", threads)
    if 0 < node.gpu < procs:
        raise LaunchError(
            f"procs_per_node: {procs} is more than the {node.gpu} GPUs of {resource}; give each process a GPU of its own"
        )
    app = ddp(
        *command,
        m="mtlrec",
        name=f"mtlrec/{job_name(app_name)}",
        image=image,
        j=f"{nodes}x{procs}",
        env={**torchrun_environment(nodes, threads, max_restarts, grace_s), **(env or {})},
        mounts=mounts,
        max_retries=max_retries,
        rdzv_port=rdzv_port,
    )
    role = app.roles[0]
    role.name = role_name
    role.resource = node  # ddp's `h` knows only the names that TorchX has registered
    return app


def torchrun_environment(nodes: int, threads: int, max_restarts: int, grace_s: int) -> dict[str, str]:
    """What torchrun is told through its environment: `dist.ddp` writes its command line and leaves no room in it.

    torchrun reads PET_NAME wherever --name is not given.
    """
    environment = {
        "OMP_NUM_THREADS": str(threads),
        # TorchX's max_retries starts the job again; the restart of a dead rank within a job is torchrun's.
        "PET_MAX_RESTARTS": str(max_restarts),
        # TorchX kills a cancelled local job after 10 s. An agent that still waits for its ranks then (30 s by default)
        # dies without them and leaves them running.
        "PET_SHUTDOWN_TIMEOUT": str(grace_s),
    }
    if nodes > 1:
        # A store of its own for every round of ranks. The agents of several nodes count restarts differently (one that
        # joins another's does not count it), so their count cannot tell the rounds apart in a store that they share.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if nodes == 1:
        # The ranks of one node meet on loopback: its full name may not resolve (laptops, containers) or may be filtered.
        environment["PET_LOCAL_ADDR"] = "127.0.0.1"
    return environment


def override_options(joined: str | None, words: tuple[str, ...]) -> list[str]:
    """`a=1;b=2` and the words `c=3` as `--set a=1 --set b=2 --set c=3`, then the options among the words, untouched.

    Raises:
        LaunchError: a word that is neither key=value nor an option.
    """
    first_option = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    options = [word for word in words[first_option:] if word != "--"]
    overrides = [part.strip() for part in (joined or "").split(";") if part.strip()] + list(words[:first_option])
    for override in overrides:
        if not re.match(r"[^=\s]+=", override):
            raise LaunchError(f"{override!r} is not an override: write key=value, as in train.epochs=2")
    return [text for override in overrides for text in ("--set", override)] + options


def job_name(text: str) -> str:
    """`text` in the letters that every scheduler accepts: lower case, digits, single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "job"


def whole_number(argument: str, value: int | str) -> int:
    """`value` as a positive int: TorchX 0.7 hands an `Optional[int]` of its command line over as text."""
    try:
        number = int(value)
    except ValueError:
        raise LaunchError(f"{argument}: {value!r} is not a whole number") from None
    check_at_least(1, **{argument: number})
    return number


def check_at_least(least: int, **numbers: int) -> None:
    for argument, number in numbers.items():
        if number < least:
            raise LaunchError(f"{argument}: must be at least {least}, not {number}")
