"""TorchRec still hides its lookups from `modules()`, and FBGEMM still counts lookups without gradients."""

import torch

from mtlrec.compat.fbgemm.fused_lookups import fused_lookups, uncounted
from mtlrec.distributed.process_group import process_group
from mtlrec.training.sharded import build_sharded
from tests.support.toy import collated, toy_job, toy_table


def test_lookups_are_hidden_and_count_every_forward() -> None:
    with process_group("cpu") as ranks:
        model = build_sharded(toy_job(), ranks).module.eval()
        lookups = fused_lookups(model)
        assert lookups
        hidden = not any(part is lookup for part in model.modules() for lookup in lookups)
        assert hidden, "fused_lookups of compat/fbgemm/fused_lookups.py can be deleted"
        batch = collated(toy_table(8))
        with torch.no_grad(), uncounted(model):
            model(batch)
        assert [part.iter_cpu.item() for part in lookups] == [0] * len(lookups)
        with torch.no_grad():
            model(batch)
        counted = [part.iter_cpu.item() for part in lookups] == [1] * len(lookups)
        assert counted, "uncounted of compat/fbgemm/fused_lookups.py can be deleted"
