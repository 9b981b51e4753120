"""The layers of multi-task recommenders: plain `torch.nn.Module`s that import nothing but torch.

They take flat arguments and tensors, so each drops into a model of your own. Three kinds of part, joined by their
widths (`output_dim` of one is `input_dim` of the next):

- bottoms (`Concat`, `Dot`, `Cross`, `MaskNet`): dense features and pooled embeddings -> `[B, D]`;
- fusion layers (`SingleTask`, `SharedBottom`, `AsymmetricBottom`, `CrossStitch`, `CustomizedSharing`, `MMoE`, `PLE`,
  `AdaTTSp`, `AdaTT`, `HoME`): `[B, D]` -> `[B, T, H]`, a vector per task. Those whose `num_slots` is not None also
  take `[B, num_slots, D]`, an input per module;
- what they are made of (`MLP`, `BatchedLinear`, `ExpertBank`, `GateBank`, `GatedLevel`), `from_adatt_reference` and
  `to_adatt_reference` for the public reference's weights, and `diagnose`.

Example: a two-task model in the manner of DLRM, with AdaTT on top (`docs/dlrm.md` does it to TorchRec's own).

    >>> import torch
    >>> from torch import nn
    >>> from mtlrec.layers import AdaTTSp, Dot, diagnose
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

To see what the gates chose and how large each expert's output was:

    >>> seen = diagnose(model, torch.randn(8, 4), [torch.randint(100, (8, 5)) for _ in range(3)])
    >>> list(seen), seen["fusion.levels.1"].gates.shape, seen["fusion.levels.1"].norms.shape
    (['fusion.levels.0', 'fusion.levels.1'], torch.Size([8, 2, 4]), torch.Size([8, 4]))

On a CPU, a layer of plain ReLU experts is computed by groups with gradients of its own (`mixture.py`): they can be
differentiated again, but not batched (`torch.func`, `vmap`, `is_grads_batched`); `torch.compile` and `torch.export` see
plain operations.
"""

from mtlrec.layers.adatt_reference import from_adatt_reference, to_adatt_reference
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions
from mtlrec.layers.blocks.gates import GateBank
from mtlrec.layers.blocks.level import GatedLevel
from mtlrec.layers.blocks.linear import BatchedLinear
from mtlrec.layers.blocks.mlp import MLP
from mtlrec.layers.bottoms.bottom import Bottom
from mtlrec.layers.bottoms.concat import Concat
from mtlrec.layers.bottoms.cross import Cross
from mtlrec.layers.bottoms.dot import Dot
from mtlrec.layers.bottoms.masknet import MaskNet
from mtlrec.layers.diagnostics import LevelDiagnostics, diagnose
from mtlrec.layers.fusions.adatt import AdaTT, AdaTTSp
from mtlrec.layers.fusions.asymmetric import AsymmetricBottom
from mtlrec.layers.fusions.cross_stitch import CrossStitch
from mtlrec.layers.fusions.customized import CustomizedSharing
from mtlrec.layers.fusions.fusion import ExpertFusion, FusionLayer
from mtlrec.layers.fusions.gated import GatedFusion
from mtlrec.layers.fusions.home import HoME
from mtlrec.layers.fusions.mmoe import MMoE
from mtlrec.layers.fusions.ple import PLE
from mtlrec.layers.fusions.shared_bottom import SharedBottom
from mtlrec.layers.fusions.single_task import SingleTask

BOTTOMS: dict[str, type[Bottom]] = {"concat": Concat, "dot": Dot, "cross": Cross, "masknet": MaskNet}
"""The kinds of `model.bottom`."""
FUSIONS: dict[str, type[FusionLayer]] = {
    "single_task": SingleTask,
    "shared_bottom": SharedBottom,
    "asymmetric": AsymmetricBottom,
    "cross_stitch": CrossStitch,
    "customized": CustomizedSharing,
    "mmoe": MMoE,
    "ple": PLE,
    "adatt_sp": AdaTTSp,
    "adatt": AdaTT,
    "home": HoME,
}
"""The kinds of `model.fusion`."""

__all__ = [
    "BOTTOMS",
    "FUSIONS",
    "MLP",
    "PLE",
    "AdaTT",
    "AdaTTSp",
    "AsymmetricBottom",
    "BatchedLinear",
    "Bottom",
    "Concat",
    "Cross",
    "CrossStitch",
    "CustomizedSharing",
    "Dot",
    "ExpertBank",
    "ExpertFusion",
    "ExpertOptions",
    "FusionLayer",
    "GateBank",
    "GatedFusion",
    "GatedLevel",
    "HoME",
    "LevelDiagnostics",
    "MMoE",
    "MaskNet",
    "SharedBottom",
    "SingleTask",
    "diagnose",
    "from_adatt_reference",
    "to_adatt_reference",
]
