"""`mtlrec plan`, `recipes` and `schema`: jobs without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from mtlrec import api
from mtlrec.cli.console import print_text_or_json, show
from mtlrec.cli.options import Config, Device, Json, Set
from mtlrec.config import JobConfig
from mtlrec.config.file import recipe_text
from mtlrec.config.file import recipes as recipe_names


def plan(
    config: Config,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Ranks on each node; with --device cpu too.")] = 8,
    hbm_gb: Annotated[float, typer.Option(min=0.001, help="Memory of each GPU.")] = 80.0,
    ddr_gb: Annotated[float, typer.Option(min=0.001, help="Host memory for each rank.")] = 128.0,
    device: Annotated[Device, typer.Option()] = Device.cuda,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan to this file, for sharding.plan.")
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """How the tables would lie on machines that need not be there: memory, step time by phase, balance, what does not
    fit. Needs neither GPUs nor data."""
    result = api.plan(
        config,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        hbm_gb=hbm_gb,
        ddr_gb=ddr_gb,
        device=device.value,
        output=output,
        overrides=set_ or [],
    )
    show(result, as_json)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None, as_json: Json = False
) -> None:
    """List the jobs that ship with the package, or print one."""
    if name is not None:
        text = recipe_text(name)
        print_text_or_json(yaml.safe_load(text), as_json, text.rstrip())
    else:
        print_text_or_json(recipe_names(), as_json, "\n".join(recipe_names()))


def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    print(json.dumps(JobConfig.model_json_schema(), indent=2))
