"""What the launch components promise: the command that each rank runs, its environment, what is asked of a node, and
what TorchX's schedulers make of it. No cluster and no torch: a component returns data."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torchx import specs
from torchx.runner import get_runner
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import ComponentValidationException, get_component

from launch import components
from launch.resources import RESOURCES, find_resource

ROOT = Path(__file__).parents[3]


def torchrun_words(app: specs.AppDef) -> list[str]:
    """The words of the command that a node runs; the role itself is `bash -c COMMAND`."""
    [role] = app.roles
    assert role.entrypoint == "bash"
    option, command = role.args
    assert option == "-c"
    return shlex.split(command)


def mtlrec_words(app: specs.AppDef) -> list[str]:
    words = torchrun_words(app)
    return words[words.index("-m") + 1 :]


def option(app: specs.AppDef, name: str) -> str:
    words = torchrun_words(app)
    return words[words.index(name) + 1]


def from_command_line(*words: str, component: str = "train") -> specs.AppDef:
    """The way of the torchx command: the file loaded by its path, the words parsed by the component's signature."""
    return materialize_appdef(get_component(f"launch/components.py:{component}").fn, list(words))


@pytest.fixture
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_train_runs_the_command_once_per_rank() -> None:
    app = components.train(config="jobs/Feed_AdaTT.yaml", output="runs/a", procs_per_node=2, resource="cpu_medium")

    assert app.name == "train-feed-adatt"
    [role] = app.roles
    assert (role.name, role.num_replicas, role.resource) == ("trainer", 1, RESOURCES["cpu_medium"])
    assert torchrun_words(app)[0] == "torchrun"
    assert (option(app, "--nnodes"), option(app, "--nproc_per_node")) == ("1", "2")
    assert mtlrec_words(app) == ["mtlrec", "train", "jobs/Feed_AdaTT.yaml", "--output", "runs/a"]


def test_a_job_that_may_be_started_again_resumes() -> None:
    app = components.train(config="feed", output="runs/a", max_retries=2)
    assert "--resume" in mtlrec_words(app)
    assert "--resume" not in mtlrec_words(components.train(config="feed", output="runs/a", max_restarts=2))


def test_resume_and_init_from_become_options() -> None:
    app = components.train(config="feed", output="runs/a", resume=True, init_from="runs/old")
    assert mtlrec_words(app)[5:] == ["--resume", "--init-from", "runs/old"]


def test_overrides_come_in_the_order_given_and_options_last() -> None:
    app = components.train(
        "optim.dense.lr=1e-3", "--json", config="feed", output="o", set="data.root=my data; model.fusion.hidden=[64,32]"
    )
    assert mtlrec_words(app)[5:] == [
        *("--set", "data.root=my data"),
        *("--set", "model.fusion.hidden=[64,32]"),
        *("--set", "optim.dense.lr=1e-3"),
        "--json",
    ]


def test_evaluate_may_use_another_number_of_ranks() -> None:
    app = components.evaluate("data.root=d", run="runs/a/", nodes=2, procs_per_node=4, resource="cpu_large")
    assert app.name == "evaluate-a"
    assert (app.roles[0].name, app.roles[0].num_replicas) == ("evaluator", 2)
    assert mtlrec_words(app) == ["mtlrec", "evaluate", "runs/a/", "--checkpoint", "last", "--set", "data.root=d"]


def test_bench_takes_no_output() -> None:
    app = components.bench("data.root=d", "--", "--json", config="feed", steps=20, source="random", procs_per_node=2)
    assert (app.name, app.roles[0].name, option(app, "--nproc_per_node")) == ("bench-feed", "bench", "2")
    expected = ["mtlrec", "bench", "feed", "--steps", "20", "--source", "random"]
    assert mtlrec_words(app) == [*expected, "--set", "data.root=d", "--json"]
    with pytest.raises(ValueError, match="steps: must be at least 5"):
        components.bench(config="feed", steps=1)


def test_gpu_nodes_get_a_rank_per_gpu() -> None:
    app = components.train(config="feed", output="o", nodes=4, resource="gpu8_h100")
    assert (option(app, "--nnodes"), option(app, "--nproc_per_node")) == ("4", "8")
    assert (app.roles[0].num_replicas, app.roles[0].resource.gpu) == (4, 8)
    assert app.roles[0].env["OMP_NUM_THREADS"] == "24"  # 192 cores / 8 ranks


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [({"procs_per_node": 4}, "4"), ({"procs_per_node": 32}, "1"), ({"procs_per_node": 4, "threads": 3}, "3")],
)
def test_ranks_share_the_cores(arguments: dict[str, int], threads: str) -> None:
    app = components.train(config="feed", output="o", resource="cpu_medium", **arguments)
    assert app.roles[0].env["OMP_NUM_THREADS"] == threads


def test_one_node_meets_on_loopback_and_several_on_the_first() -> None:
    one = components.train(config="feed", output="o", procs_per_node=2)
    assert one.roles[0].env["PET_LOCAL_ADDR"] == "127.0.0.1"
    assert option(one, "--rdzv_endpoint") == "localhost:0"

    two = components.train(config="feed", output="o", nodes=2, rdzv_port=29600)
    assert "PET_LOCAL_ADDR" not in two.roles[0].env
    assert option(two, "--rdzv_endpoint").endswith(":29600")
    assert specs.macros.rank0_env in option(two, "--rdzv_endpoint")


def test_restarts_and_retries_reach_different_layers() -> None:
    role = components.train(config="feed", output="o", max_restarts=3, max_retries=2).roles[0]
    assert role.env["PET_MAX_RESTARTS"] == "3"  # of the ranks, by torchrun
    assert role.max_retries == 2  # of the job, by the scheduler


def test_shutdown_ends_before_torchx_kills_the_agent() -> None:
    assert int(components.train(config="feed", output="o").roles[0].env["PET_SHUTDOWN_TIMEOUT"]) < 10
    assert components.train(config="feed", output="o", grace_s=25).roles[0].env["PET_SHUTDOWN_TIMEOUT"] == "25"


def test_ranks_on_several_nodes_meet_on_a_new_store_after_every_restart() -> None:
    """On one node the agent's count tells the rounds apart; on several the counts differ."""
    several, one = (components.train(config="feed", output="o", nodes=nodes).roles[0].env for nodes in (2, 1))
    assert several["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in one


def test_given_environment_wins_and_is_left_alone() -> None:
    env = {"OMP_NUM_THREADS": "7", "NCCL_DEBUG": "INFO"}
    role = components.train(config="feed", output="o", env=env).roles[0]
    assert role.env["OMP_NUM_THREADS"] == "7"
    assert role.env["NCCL_DEBUG"] == "INFO"
    assert env == {"OMP_NUM_THREADS": "7", "NCCL_DEBUG": "INFO"}


def test_image_and_mounts() -> None:
    role = components.train(
        config="feed", output="o", image="registry/mtlrec:1", mounts=["type=volume", "src=claim", "dst=/data"]
    ).roles[0]
    assert role.image == "registry/mtlrec:1"
    assert role.mounts == [specs.VolumeMount(src="claim", dst_path="/data")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"procs_per_node": 0}, "procs_per_node: must be at least 1, not 0"),
        ({"nodes": 0}, "nodes: must be at least 1, not 0"),
        ({"threads": 0}, "threads: must be at least 1, not 0"),
        ({"max_restarts": -1}, "max_restarts: must be at least 0, not -1"),
        ({"resource": "gpu9"}, "resource: 'gpu9' is not known"),
        ({"resource": "gpu1", "procs_per_node": 2}, "more than the 1 GPUs of gpu1"),
        ({"set": "train.epochs"}, "'train.epochs' is not an override"),
        ({"set": "=2"}, "'=2' is not an override"),
    ],
)
def test_mistakes_are_value_errors_of_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        components.train(config="feed", output="o", **arguments)
    assert "\n" not in str(raised.value)
    # The only kind that the torchx command reports without a traceback.
    assert isinstance(raised.value, ComponentValidationException)


def test_a_word_that_is_no_override_is_refused() -> None:
    with pytest.raises(ValueError, match="'oops' is not an override"):
        components.evaluate("oops", run="runs/a")


@pytest.mark.parametrize("name", ["local", *RESOURCES, "aws_p4d.24xlarge"])
def test_resources_ask_for_something(name: str) -> None:
    resource = find_resource(name)
    assert resource.cpu >= 1
    assert resource.memMB > 1024


@pytest.mark.usefixtures("in_repository")
class TestThroughTorchX:
    """The component as the torchx command sees it."""

    @pytest.mark.parametrize("component", ["train", "evaluate", "bench"])
    def test_torchx_accepts_the_signature_and_prints_help(
        self, component: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as left:
            from_command_line("--help", component=component)
        assert left.value.code == 0
        printed = capsys.readouterr().out
        assert f"torchx run -s local_cwd launch/components.py:{component} --" in printed  # the example
        assert "overrides in one argument" in printed

    def test_arguments_arrive_with_their_types(self) -> None:
        app = from_command_line(
            *("--config", "feed", "--output", "o", "--resume", "True", "--nodes", "2", "--procs_per_node", "2"),
            *("--threads", "1", "--env", "A=1,B=2", "--set", "data.root=d", "train.epochs=2", "--", "--json"),
        )
        assert mtlrec_words(app)[5:] == [
            *("--resume", "--set", "data.root=d", "--set", "train.epochs=2", "--json"),
        ]
        role = app.roles[0]
        assert (role.num_replicas, option(app, "--nproc_per_node")) == (2, "2")
        assert (role.env["OMP_NUM_THREADS"], role.env["A"], role.env["B"]) == ("1", "1", "2")

    def test_local(self) -> None:
        with get_runner() as runner:
            app = from_command_line("--config", "feed", "--output", "o", "--procs_per_node", "2")
            [replica] = runner.dryrun(app, "local_cwd").request.role_params["trainer"]
        assert replica.args[:2] == ["bash", "-c"]
        assert replica.cwd == str(ROOT)
        assert replica.env["PET_LOCAL_ADDR"] == "127.0.0.1"

    def test_slurm(self) -> None:
        with get_runner() as runner:
            app = from_command_line("--config", "feed", "--output", "o", "--nodes", "2", "--resource", "gpu8_h100")
            script = str(runner.dryrun(app, "slurm", {"partition": "gpu"}))
        for node in ("trainer-0", "trainer-1"):
            assert f"#SBATCH --job-name={node} " in script
        assert script.count("--partition=gpu") == 2
        assert script.count("--cpus-per-task=192") == 2
        assert script.count("--gpus-per-task=8") == 2
        assert "PET_MAX_RESTARTS=0" in script

    def test_kubernetes(self) -> None:
        pytest.importorskip("kubernetes", reason="the extra `kubernetes` is not installed")
        with get_runner() as runner:
            app = from_command_line(
                *("--config", "feed", "--output", "/data/o", "--nodes", "2", "--resource", "gpu8_h100"),
                *("--image", "registry/mtlrec:1", "--mounts", "type=volume,src=claim,dst=/data"),
            )
            job = runner.dryrun(app, "kubernetes", {"queue": "default"}).request.resource
        tasks = job["spec"]["tasks"]
        assert [task["name"] for task in tasks] == ["trainer-0", "trainer-1"]
        [container] = tasks[1]["template"].spec.containers
        assert container.image == "registry/mtlrec:1"
        assert container.resources.limits["nvidia.com/gpu"] == "8"
        assert "VC_TRAINER_0_HOSTS" in container.command[-1]  # where the second node finds the first


def test_the_repository_root_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ComponentValidationException, match="root"):
        get_component(f"{ROOT / 'launch' / 'components.py'}:train")


def test_launch_imports_neither_torch_nor_mtlrec() -> None:
    """A login node with TorchX alone can submit jobs."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, launch.components; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"torch", "mtlrec"} & set(loaded)
