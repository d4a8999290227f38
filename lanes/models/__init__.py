"""Plain single-device models; they import torch and einops, and nothing of ours outside this folder."""

from lanes.models.alexnet import AlexNet as AlexNet
from lanes.models.alexnet import SmallAlexNet as SmallAlexNet
from lanes.models.cuda_convnet2 import CudaConvnet2AlexNet as CudaConvnet2AlexNet
from lanes.models.grouped_linear import GroupedLinear as GroupedLinear
from lanes.models.local_response_norm import LocalResponseNorm as LocalResponseNorm
from lanes.models.map_response_norm import MapResponseNorm as MapResponseNorm

__all__ = ["AlexNet", "CudaConvnet2AlexNet", "GroupedLinear", "LocalResponseNorm", "MapResponseNorm", "SmallAlexNet"]
