"""What TorchX would submit to Kubernetes, held against the schemas. No cluster.

The pods' schema is Kubernetes' own, strictly, as kubernetes-validate ships it; the job around them is Volcano's, its
fields written down from the definition (volcano-sh/volcano, config/crd/volcano/bases/batch.volcano.sh_jobs.yaml).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, StringConstraints, ValidationError
from torchx.runner import get_runner
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import get_component

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
pytest.importorskip("kubernetes", reason="the extra `kubernetes` is not installed")

REPO = Path(__file__).parents[3]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Event = Literal[
    "*", "PodPending", "PodRunning", "PodFailed", "PodEvicted", "Unknown", "TaskCompleted", "OutOfSync",
    "CommandIssued", "JobUpdated", "TaskFailed",
]  # fmt: skip


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Policy(Closed):
    action: str
    event: Event | None = None
    events: list[Event] = []
    exitCode: int | None = None
    timeout: str | None = None


class Task(Closed):
    name: Label
    replicas: NonNegativeInt
    minAvailable: NonNegativeInt | None = None
    maxRetry: NonNegativeInt | None = None
    policies: list[Policy] = []
    template: dict[str, Any]


class Spec(Closed):
    schedulerName: Annotated[str, Field(max_length=63)]
    queue: Label
    maxRetry: NonNegativeInt | None = None
    minAvailable: NonNegativeInt | None = None
    plugins: dict[str, list[str]] = {}
    priorityClassName: Label | None = None
    tasks: list[Task]


class Metadata(Closed):
    name: Label


class VolcanoJob(Closed):
    apiVersion: Literal["batch.volcano.sh/v1alpha1"]
    kind: Literal["Job"]
    metadata: Metadata
    spec: Spec


def manifest(*words: str, monkeypatch: pytest.MonkeyPatch, component: str = "train") -> dict[str, Any]:
    """What `torchx run --dryrun -s kubernetes` prints."""
    monkeypatch.chdir(REPO)
    app = materialize_appdef(get_component(f"launch/components.py:{component}").fn, list(words))
    with get_runner() as runner:
        loaded: dict[str, Any] = yaml.safe_load(str(runner.dryrun(app, "kubernetes", {"queue": "default"})))
    return loaded


TRAIN = ("--config", "feed", "--output", "/data/o", "--image", "registry/mtlrec:1")
JOBS = {
    "one node": TRAIN,
    "eight GPUs on two nodes": (*TRAIN, "--nodes", "2", "--resource", "gpu8_h100", "--max_restarts", "3"),
    "a claim and an environment": (*TRAIN, "--mounts", "type=volume,src=claim,dst=/data", "--env", "A=1,B=x"),
    "a host's folder": (*TRAIN, "--mounts", "type=bind,src=/mnt,dst=/data,readonly"),
    "overrides": (*TRAIN, "data.root=/data/feed", "train.epochs=2"),
}


@pytest.mark.filterwarnings("ignore:.*Volcano:UserWarning")
@pytest.mark.parametrize("words", [*JOBS.values(), (*TRAIN, "--max_retries", "2")], ids=[*JOBS, "retried"])
def test_a_training_is_what_kubernetes_and_volcano_accept(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(manifest(*words, monkeypatch=monkeypatch))


def test_an_evaluation_is_too(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--run", "/data/o", "--image", "registry/mtlrec:1", "--procs_per_node", "2")
    check(manifest(*words, monkeypatch=monkeypatch, component="evaluate"))


def check(job: dict[str, Any]) -> None:
    for task in VolcanoJob.model_validate(job).spec.tasks:
        pod = {"apiVersion": "v1", "kind": "Pod", **task.template}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("path", "value"), [(("restartPolicy",), 3), (("container",), []), (("volumes", 0, "emptydir"), {})]
)
def test_the_check_can_fail(path: tuple[str | int, ...], value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = manifest(*TRAIN, monkeypatch=monkeypatch)
    part = job["spec"]["tasks"][0]["template"]["spec"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        check(job)
    with pytest.raises(ValidationError):
        VolcanoJob.model_validate(job | {"spec": job["spec"] | {"replicas": 2}})
