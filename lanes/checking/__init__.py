"""Checks a placed model against the plain one: on this very mesh, in float64, number by number.

Successor of cuda-convnet2's ``--check-grads`` (finite differences through all GPUs, passed below a relative error of
2 %), and stronger: the plain model is the specification, and every lane device compares *its own part* of every tensor
with it, so that a failure names the layer, the lane device and the replica.
"""

from lanes.checking.against_plain import check
from lanes.checking.everyone import from_everyone
from lanes.checking.report import CheckReport, Finding

__all__ = ["CheckReport", "Finding", "check", "from_everyone"]
