"""TorchRec's states of row-wise Adagrad still depend on the plan. tests/distributed/test_reshard.py loads ours."""

import torch
from torchrec.optim import RowWiseAdagrad

from mtlrec.compat.fbgemm.optimizer_states import columns_of, fused_states, replicated_states
from mtlrec.distributed.process_group import process_group
from mtlrec.training.optim import Optimizers
from mtlrec.training.sharded import build_sharded
from tests.support.toy import toy_job


def test_a_fused_state_has_another_name_and_shape_than_a_replicated_one() -> None:
    constraints = {"user": {"types": ["data_parallel"]}, "item": {"types": ["table_wise"]}}
    job = toy_job(sharding={"constraints": constraints}, optim={"sparse": {"kind": "rowwise_adagrad", "lr": 0.1}})
    with process_group("cpu") as ranks:
        optimizers = Optimizers(build_sharded(job, ranks).module, job, total_steps=1)
        optimizers.materialise()
        assert optimizers.replicated is not None
        ((parameter, fused),) = optimizers.fused.state_dict()["state"].items()
        ((other, replicated),) = optimizers.replicated.state_dict()["state"].items()
        rows = {"item": 40, "user": 50}
        same_name = {name.rpartition(".")[2] for name in fused} == set(replicated)
        assert not same_name, "the names of compat/fbgemm/optimizer_states.py can be deleted"
        assert [tuple(state.size()) for state in fused.values()] == [(rows["item"],)], (
            "split_pieces of compat/fbgemm/optimizer_states.py can be deleted"
        )
        assert tuple(replicated["sum"].size()) == (rows["user"], 1)
        states = fused_states(optimizers.fused) | replicated_states({str(other): replicated})
        assert columns_of(optimizers.fused.params[parameter]) == [(0, 8)]
    assert {name: {key: tuple(state.size()) for key, state in kept.items()} for name, kept in states.items()} == {
        parameter: {"momentum1": (rows["item"], 1)},
        other: {"momentum1": (rows["user"], 1)},
    }


def test_torchrecs_row_wise_adagrad_names_its_state_sum() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    assert set(RowWiseAdagrad([parameter], lr=0.1).state[parameter]) == {"step", "sum"}
