"""Task heads: a tower per task, and how the towers' outputs become probabilities along the funnel. Torch only."""

from mtlrec.heads.aitm import AITM
from mtlrec.heads.dbmtl import DBMTL
from mtlrec.heads.escm2 import ESCM2, DoublyRobustESCM2
from mtlrec.heads.esmm import ESMM
from mtlrec.heads.funnel import HeadOutput
from mtlrec.heads.head import Head
from mtlrec.heads.independent import Independent

HEADS: dict[str, type[Head]] = {
    "independent": Independent,
    "esmm": ESMM,
    "aitm": AITM,
    "dbmtl": DBMTL,
    "escm2_ips": ESCM2,
    "escm2_dr": DoublyRobustESCM2,
}
"""The kinds of `model.heads`."""

__all__ = ["AITM", "DBMTL", "ESCM2", "ESMM", "HEADS", "DoublyRobustESCM2", "Head", "HeadOutput", "Independent"]
