"""Optimizers of the tables and of everything else, with their schedules: a class per kind.

`training/optim.py` has the torch class of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import Discriminator, Field, Tag

from mtlrec.config.base import Fraction, NonNegative, Positive, Strict

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Eps = Annotated[Positive, Field(description="added to the root of the second moment")]
WeightDecay = Annotated[NonNegative, Field(description="pulls weights to 0; biases and norms are left alone")]


class Optimizer(Strict):
    """Linear warm-up, then constant, or down to `min_lr_ratio` of lr at the last step of the job."""

    kind: str
    lr: Positive
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "constant"
    min_lr_ratio: Fraction = 0.0


class DenseOptimizer(Optimizer):
    lr: Positive = 1e-3
    weight_decay: WeightDecay = 0.0
    clip_norm: Positive | None = Field(None, description="global gradient norm of the dense parameters")


class DenseAdam(DenseOptimizer):
    """Adam (Kingma and Ba 2015); weight decay is added to the gradient."""

    kind: Literal["adam"] = "adam"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Eps = 1e-8


class DenseAdamW(DenseOptimizer):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"]
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Eps = 1e-8


class DenseSGD(DenseOptimizer):
    """Stochastic gradient descent."""

    kind: Literal["sgd"]
    momentum: Beta = 0.0


class TableOptimizer(Optimizer):
    """Fused into FBGEMM's backward; states follow FBGEMM's definitions.

    fused_on: the devices that FBGEMM has it on. decays_on: those where it has weight decay.
    """

    fused_on: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    decays_on: ClassVar[tuple[str, ...]] = ()

    lr: Positive = 0.05
    clip_value: Positive | None = Field(
        None, description="largest size of each entry of the gradient on one row's pooled vector, as FBGEMM clips it"
    )


class TableRowwiseAdagrad(TableOptimizer):
    """Adagrad with one state per row: the mean of its gradient's squares."""

    decays_on: ClassVar[tuple[str, ...]] = ("cuda",)

    kind: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    eps: Eps = 1e-8
    weight_decay: NonNegative = Field(0.0, description="times a row's weights, added to its gradient where it has one")


class TableAdagrad(TableOptimizer):
    """Adagrad with a state per weight (Duchi, Hazan and Singer 2011)."""

    kind: Literal["adagrad"]
    eps: Eps = 1e-8


class TableAdam(TableOptimizer):
    """Adam over the rows of a batch."""

    fused_on: ClassVar[tuple[str, ...]] = ("cuda",)
    decays_on: ClassVar[tuple[str, ...]] = ("cuda",)

    kind: Literal["adam"]
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: NonNegative = Field(0.0, description="times lr and a row's weights, taken from a row of the batch")


class TableSGD(TableOptimizer):
    """Stochastic gradient descent."""

    kind: Literal["sgd"]


TABLE_OPTIMIZERS: dict[str, type[TableOptimizer]] = {
    "rowwise_adagrad": TableRowwiseAdagrad,
    "adagrad": TableAdagrad,
    "adam": TableAdam,
    "sgd": TableSGD,
}
DENSE_OPTIMIZERS: dict[str, type[DenseOptimizer]] = {"adam": DenseAdam, "adamw": DenseAdamW, "sgd": DenseSGD}


def one_of(kinds: Mapping[str, type[Optimizer]], default: str) -> Any:
    """The type of a section that is one of `kinds`; without a kind it is the default."""

    def kind_of(section: Any) -> Any:
        return section.get("kind", default) if isinstance(section, dict) else getattr(section, "kind", None)

    tagged = tuple(Annotated[section, Tag(kind)] for kind, section in kinds.items())
    return Annotated[Union[tagged], Discriminator(kind_of)]  # noqa: UP007


if TYPE_CHECKING:
    SparseOptim = TableOptimizer
    DenseOptim = DenseOptimizer
else:
    SparseOptim = one_of(TABLE_OPTIMIZERS, "rowwise_adagrad")
    DenseOptim = one_of(DENSE_OPTIMIZERS, "adam")


class OptimConfig(Strict):
    sparse: SparseOptim = TableRowwiseAdagrad()
    dense: DenseOptim = DenseAdam()
