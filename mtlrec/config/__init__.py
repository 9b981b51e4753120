"""What a job may say. `file.py` reads it, `errors.py` words its mistakes, a file for every section beside them."""

from mtlrec.config.data import (
    DataConfig,
    DenseFeature,
    FeaturesConfig,
    MetricsConfig,
    SparseFeature,
    TableConfig,
)
from mtlrec.config.job import JobConfig, Judge
from mtlrec.config.kinds.family import Family, PartConfig
from mtlrec.config.kinds.optimizers import (
    DENSE_OPTIMIZERS,
    TABLE_OPTIMIZERS,
    DenseOptimizer,
    OptimConfig,
    Optimizer,
    TableOptimizer,
)
from mtlrec.config.kinds.weighting import (
    CAGradWeighting,
    DecayWeighting,
    DWAWeighting,
    GradientWeighting,
    LossConfig,
    StaticWeighting,
    UncertaintyWeighting,
    Weighting,
)
from mtlrec.config.model import (
    BOTTOM,
    FUSION,
    AITMHeads,
    Bottom,
    DBMTLHeads,
    ESCM2Heads,
    ESMMHeads,
    Fusion,
    Heads,
    IndependentHeads,
    ModelConfig,
)
from mtlrec.config.tasks import TASK, LabelColumn, Task
from mtlrec.config.training import (
    ShardingConfig,
    TableConstraint,
    TrainConfig,
)
from mtlrec.errors import LocatedError

__all__ = [
    "BOTTOM",
    "DENSE_OPTIMIZERS",
    "FUSION",
    "TABLE_OPTIMIZERS",
    "TASK",
    "AITMHeads",
    "Bottom",
    "CAGradWeighting",
    "DBMTLHeads",
    "DWAWeighting",
    "DataConfig",
    "DecayWeighting",
    "DenseFeature",
    "DenseOptimizer",
    "ESCM2Heads",
    "ESMMHeads",
    "Family",
    "FeaturesConfig",
    "Fusion",
    "GradientWeighting",
    "Heads",
    "IndependentHeads",
    "JobConfig",
    "Judge",
    "LabelColumn",
    "LocatedError",
    "LossConfig",
    "MetricsConfig",
    "ModelConfig",
    "OptimConfig",
    "Optimizer",
    "PartConfig",
    "ShardingConfig",
    "SparseFeature",
    "StaticWeighting",
    "TableConfig",
    "TableConstraint",
    "TableOptimizer",
    "Task",
    "TrainConfig",
    "UncertaintyWeighting",
    "Weighting",
]
