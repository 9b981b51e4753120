"""How the tasks' losses are weighed against each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mtlrec.config.base import Name, NonNegative, Positive, Strict


class StaticWeighting(Strict):
    """Every task's loss times its `weight`. The weights of the tasks hold under every other kind too."""

    kind: Literal["static"] = "static"


class DecayWeighting(Strict):
    """w_k(t) = w_k0 * rate_k ** t (PLE, Tang et al. 2020), t the epoch or the step."""

    kind: Literal["decay"]
    initial: dict[Name, NonNegative] = Field({}, description="w_k0 by task; the task's weight where not given")
    rate: dict[Name, Annotated[float, Field(gt=0.0, le=1.0)]] = {}
    unit: Literal["epoch", "step"] = "epoch"


class UncertaintyWeighting(Strict):
    """sum L_k / (2 exp s_k) + s_k / 2 with learned s_k (Kendall et al. 2018)."""

    kind: Literal["uncertainty"]


class DWAWeighting(Strict):
    """Dynamic weight average (Liu et al. 2019): a task whose loss falls slowly weighs more."""

    kind: Literal["dwa"]
    temperature: Positive = Field(2.0, description="large: equal weights")
    every: PositiveInt | None = Field(None, description="steps over which a loss is averaged; by default an epoch")


class GradientWeighting(Strict):
    """Weights from the tasks' gradients with respect to the pooled embeddings; tables are still updated once."""

    kind: Literal["pcgrad", "mgda", "upgrad", "aligned"]


class CAGradWeighting(Strict):
    """Conflict-averse gradients (Liu et al. 2021)."""

    kind: Literal["cagrad"]
    c: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.4, description="how far from the mean; 0: the mean itself")


Weighting = Annotated[
    StaticWeighting | DecayWeighting | UncertaintyWeighting | DWAWeighting | GradientWeighting | CAGradWeighting,
    Field(discriminator="kind"),
]


class LossConfig(Strict):
    weighting: Weighting = StaticWeighting()
