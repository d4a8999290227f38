"""Plain single-device models; they import torch and einops, and nothing of ours outside this folder."""

from lanes.models.alexnet import AlexNet as AlexNet
from lanes.models.alexnet import SmallAlexNet as SmallAlexNet
from lanes.models.grouped_linear import GroupedLinear as GroupedLinear
from lanes.models.local_response_norm import LocalResponseNorm as LocalResponseNorm

__all__ = ["AlexNet", "GroupedLinear", "LocalResponseNorm", "SmallAlexNet"]
