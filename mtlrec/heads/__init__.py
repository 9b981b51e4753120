"""Task heads: a tower per task, and how the towers' outputs become probabilities along the funnel. Torch only."""

from mtlrec.heads.esmm import ESMM
from mtlrec.heads.funnel import HeadOutput
from mtlrec.heads.independent import Independent

__all__ = ["ESMM", "HeadOutput", "Independent"]
