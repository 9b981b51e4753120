"""What each task is trained on, and how the losses add up. Torch only."""

from mtlrec.losses.multitask import LossReport, MultiTaskLoss
from mtlrec.losses.spaces import Populations, SampleSpaces
from mtlrec.losses.weighting import decayed_weights

__all__ = ["LossReport", "MultiTaskLoss", "Populations", "SampleSpaces", "decayed_weights"]
