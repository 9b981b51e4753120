"""The README's Python example runs, and its job is a job."""

import re
from pathlib import Path

from mtlrec.config.file import parse_config

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs() -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 1
    exec(examples[0], {})


def test_the_job_is_a_job() -> None:
    block = README.split("\n    name: feed\n")[1].split("\n\n")[0]
    text = "name: feed\n" + "\n".join(line.removeprefix("    ") for line in block.splitlines())
    assert parse_config(text).model.fusion.kind == "adatt_sp"
