"""The layers of multi-task recommenders: plain `torch.nn.Module`s that import nothing but torch.

They take flat arguments and tensors, so each drops into a model of your own. Three kinds of part, joined by their
widths (`output_dim` of one is `input_dim` of the next):

- bottoms (`Concat`, `Dot`, `Cross`): dense features and pooled embeddings -> `[B, D]`;
- fusion layers (`SingleTask`, `SharedBottom`, `MMoE`, `PLE`, `AdaTTSp`): `[B, D]` -> `[B, T, H]`, a vector per task.
  Those whose `num_slots` is not None also take `[B, num_slots, D]`, an input per module;
- what they are made of (`MLP`, `ExpertBank`, `GateBank`), and `from_meta`/`to_meta` for the public reference's weights.

Example: a DLRM with two tasks of your own, its top replaced by AdaTT.

    >>> import torch
    >>> from torch import nn
    >>> from mtlrec.layers import AdaTTSp, Dot
    >>>
    >>> class TwoTaskDLRM(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.tables = nn.ModuleList(nn.EmbeddingBag(100, 16) for _ in range(3))
    ...         self.bottom = Dot(dense_dim=4, embedding_dims=[16, 16, 16], hidden=[32])
    ...         self.fusion = AdaTTSp(self.bottom.output_dim, 2, num_task_experts=2, expert_hidden=[[32], [16]])
    ...         self.towers = nn.ModuleList(nn.Linear(self.fusion.output_dim, 1) for _ in range(2))
    ...
    ...     def forward(self, dense, ids):
    ...         embeddings = [table(column) for table, column in zip(self.tables, ids)]
    ...         fused = self.fusion(self.bottom(dense, embeddings))
    ...         return torch.cat([tower(fused[:, t]) for t, tower in enumerate(self.towers)], dim=1)
    >>>
    >>> model = TwoTaskDLRM()
    >>> logits = model(torch.randn(8, 4), [torch.randint(100, (8, 5)) for _ in range(3)])
    >>> logits.shape
    torch.Size([8, 2])

To see what the gates chose, hook them: a gate bank's output is its weights `[B, gates, experts]`.

    >>> seen = []
    >>> handle = model.fusion.gates[-1].register_forward_hook(lambda module, args, weights: seen.append(weights))
    >>> _ = model(torch.randn(8, 4), [torch.randint(100, (8, 5)) for _ in range(3)])
    >>> seen[0].shape
    torch.Size([8, 2, 4])
"""

from mtlrec.layers.adatt import AdaTTSp
from mtlrec.layers.experts import ExpertBank
from mtlrec.layers.fusion import FusionLayer
from mtlrec.layers.gates import GateBank
from mtlrec.layers.interaction import Bottom, Concat, Cross, Dot
from mtlrec.layers.meta_weights import from_meta, to_meta
from mtlrec.layers.mlp import MLP
from mtlrec.layers.mmoe import MMoE
from mtlrec.layers.ple import PLE
from mtlrec.layers.shared_bottom import SharedBottom
from mtlrec.layers.single_task import SingleTask

__all__ = [
    "MLP",
    "PLE",
    "AdaTTSp",
    "Bottom",
    "Concat",
    "Cross",
    "Dot",
    "ExpertBank",
    "FusionLayer",
    "GateBank",
    "MMoE",
    "SharedBottom",
    "SingleTask",
    "from_meta",
    "to_meta",
]
