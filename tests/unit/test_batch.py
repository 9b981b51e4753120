"""A batch moves as a whole, whatever its parts are held in."""

import torch

from tests.support.toy import collated, toy_job, toy_table, toy_tree


def test_all_parts_move_to_a_device() -> None:
    tree = toy_tree(metrics={"group_by": "item_id"})
    tree["features"]["sparse"][2]["weights"] = "recent_weights"
    batch = collated(toy_table(9), job=toy_job(features=tree["features"], metrics=tree["metrics"]))
    moved = batch.to(torch.device("meta"))
    assert list(moved.sparse) == ["bags", "weighted_bags"]
    for name, ids in moved.sparse.items():
        assert ids.keys() == batch.sparse[name].keys()
        assert {ids.values().device.type, ids.lengths().device.type} == {"meta"}
    assert moved.sparse["weighted_bags"].weights().device.type == "meta"
    tensors = {name: part for name, part in vars(moved).items() if isinstance(part, torch.Tensor)}
    assert set(vars(batch)) - set(tensors) == {"sparse", "origin"}
    assert {part.device.type for part in tensors.values()} == {"meta"}
    assert moved.origin == batch.origin


def test_ids_are_by_feature_whatever_their_collection() -> None:
    tree = toy_tree()
    tree["features"]["sparse"][2]["weights"] = "recent_weights"
    weighted, plain = (
        collated(toy_table(9), job=toy_job(**sections)) for sections in ({"features": tree["features"]}, {})
    )
    assert sorted(weighted.ids()) == sorted(plain.ids()) == ["item_id", "recent_items", "user_id"]
    for name, ids in plain.ids().items():
        assert torch.equal(weighted.ids()[name].values(), ids.values())
        assert torch.equal(weighted.ids()[name].lengths(), ids.lengths())
