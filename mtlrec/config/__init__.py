"""What a job may say. `file.py` reads it, `explain.py` words its mistakes, a file for every section beside them."""

from mtlrec.config.data import (
    Collection,
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
    HEAD,
    Bottom,
    Fusion,
    Heads,
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
    "HEAD",
    "TABLE_OPTIMIZERS",
    "TASK",
    "Bottom",
    "CAGradWeighting",
    "Collection",
    "DWAWeighting",
    "DataConfig",
    "DecayWeighting",
    "DenseFeature",
    "DenseOptimizer",
    "Family",
    "FeaturesConfig",
    "Fusion",
    "GradientWeighting",
    "Heads",
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
