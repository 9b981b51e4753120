"""Task heads: a tower per task, and how the towers' outputs become probabilities along the funnel. Torch only."""

from mtlrec.heads.aitm import AITM
from mtlrec.heads.dbmtl import DBMTL
from mtlrec.heads.escm2 import ESCM2
from mtlrec.heads.esmm import ESMM
from mtlrec.heads.funnel import HeadOutput
from mtlrec.heads.independent import Independent

__all__ = ["AITM", "DBMTL", "ESCM2", "ESMM", "HeadOutput", "Independent"]
