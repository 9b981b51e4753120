"""What each fusion layer asks for beside its widths."""

from mtlrec.layers import (
    PLE,
    AdaTT,
    AdaTTSp,
    AsymmetricBottom,
    CrossStitch,
    CustomizedSharing,
    FusionLayer,
    MMoE,
    SharedBottom,
    SingleTask,
)

EXTRA_ARGUMENTS: dict[type[FusionLayer], dict[str, int]] = {
    SingleTask: {},
    SharedBottom: {},
    AsymmetricBottom: {},
    CrossStitch: {},
    CustomizedSharing: {},
    MMoE: {"num_experts": 3},
    PLE: {"num_task_experts": 2, "num_shared_experts": 1},
    AdaTTSp: {"num_task_experts": 2},
    AdaTT: {"num_task_experts": 2, "num_shared_experts": 1},
}
