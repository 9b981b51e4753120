"""A trained run as one folder that needs no mtlrec to run, and the predictor that reads raw rows with it."""

from mtlrec.serving.files import score_files
from mtlrec.serving.predictor import Predictor, Scores

__all__ = ["Predictor", "Scores", "score_files"]
