"""Plain single-device models; they import torch, and nothing of ours outside this folder."""

from lanes.models.alexnet import AlexNet as AlexNet
from lanes.models.alexnet import SmallAlexNet as SmallAlexNet
from lanes.models.bottleneck import Bottleneck as Bottleneck
from lanes.models.bottleneck import carry_weights as carry_weights
from lanes.models.channel_layer_norm import ChannelLayerNorm as ChannelLayerNorm
from lanes.models.concat import Concat as Concat
from lanes.models.cuda_convnet2 import CudaConvnet2AlexNet as CudaConvnet2AlexNet
from lanes.models.drop_path import DropPath as DropPath
from lanes.models.grouped_linear import GroupedLinear as GroupedLinear
from lanes.models.grouped_nd import SignalNet as SignalNet
from lanes.models.grouped_nd import VolumeNet as VolumeNet
from lanes.models.layer_scale import LayerScale as LayerScale
from lanes.models.local_response_norm import LocalResponseNorm as LocalResponseNorm
from lanes.models.map_response_norm import MapResponseNorm as MapResponseNorm
from lanes.models.mobilenet import MobileNetV1 as MobileNetV1
from lanes.models.mobilenet import MobileNetV2 as MobileNetV2
from lanes.models.named import Named as Named
from lanes.models.nin import NetworkInNetwork as NetworkInNetwork
from lanes.models.registry import build as build
from lanes.models.registry import names as names
from lanes.models.resnet import CifarResNeXt as CifarResNeXt
from lanes.models.resnet import ResNet as ResNet
from lanes.models.shufflenet import ShuffleNetV1 as ShuffleNetV1
from lanes.models.squeeze_excitation import SqueezeExcitation as SqueezeExcitation

__all__ = [
    "AlexNet",
    "Bottleneck",
    "ChannelLayerNorm",
    "CifarResNeXt",
    "Concat",
    "CudaConvnet2AlexNet",
    "DropPath",
    "GroupedLinear",
    "LayerScale",
    "LocalResponseNorm",
    "MapResponseNorm",
    "MobileNetV1",
    "MobileNetV2",
    "Named",
    "NetworkInNetwork",
    "ResNet",
    "ShuffleNetV1",
    "SignalNet",
    "SmallAlexNet",
    "SqueezeExcitation",
    "VolumeNet",
    "build",
    "carry_weights",
    "names",
]
