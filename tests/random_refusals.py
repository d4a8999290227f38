"""Why random networks are refused: what the planner says, and whether it is so."""

import re
from collections.abc import Callable, Mapping

from torch import nn

from lanes.rules.kinds import LAYERS, MIXING
from tests.random_networks import RandomNetwork
from tests.random_operations import CATS, UNSAFE


def _layer(net: RandomNetwork, found: re.Match[str]) -> nn.Module:
    return net.get_submodule(found[1])


def _runs(net: RandomNetwork, operations: Mapping[str, object]) -> bool:
    return any(line.operation in operations for line in net.program)


LAYER, GLUE = r"^(layers\.[\w.]+): ", r"^(?:the model's forward|layers\.[\w.]+): "
# Reason -> what the planner says, and whether it is so.
REASONS: dict[str, tuple[str, Callable[[RandomNetwork, re.Match[str]], bool]]] = {
    "channels that do not divide": (
        LAYER + r"(\d+) channels do not divide over (\d+) lane devices",
        lambda net, found: len(_layer(net, found).weight) == int(found[2]) and int(found[2]) % int(found[3]) > 0,
    ),
    "groups that do not divide": (
        LAYER + r"\d+ channels in (\d+) groups do not divide over (\d+) lane devices",
        lambda net, found: _layer(net, found).groups == int(found[2]) and int(found[2]) % int(found[3]) > 0,
    ),
    "lanes of a response norm that do not divide": (
        LAYER + r"response norm in (\d+) lanes of \d+ channels does not divide over (\d+) lane devices",
        lambda net, found: _layer(net, found).lanes == int(found[2]) and int(found[2]) % int(found[3]) > 0,
    ),
    "a response norm over all channels": (
        LAYER + r"torch.nn.LocalResponseNorm mixes neighbours",
        lambda net, found: type(_layer(net, found)) is nn.LocalResponseNorm,
    ),
    "a layer norm over columns": (
        LAYER + r"LayerNorm over \[\d+\] of \[.*\] does not start at the channels",
        lambda net, found: isinstance(_layer(net, found), nn.LayerNorm),
    ),
    "a layer that is not known": (
        LAYER + r"InstanceNorm\dd cannot be placed",
        lambda net, found: type(_layer(net, found)) not in LAYERS,
    ),
    "a layer that runs twice, differently": (
        LAYER + r"runs more than once, and would have to be placed as",
        lambda net, found: sum(f"layers.{line.operation}" == found[1] for line in net.program) > 1,
    ),
    "an operation over channels": (
        GLUE + r"(?:does|uses the) ([ \w]+) on .*, of which each lane device holds its own channels",
        lambda net, found: _runs(net, {found[1].replace("cumsum", "local_response_norm")} & UNSAFE.keys()),
    ),
    "channels in another order": (
        GLUE + r"does \w+ on .*, whose channels lie in the orders",
        lambda net, found: _runs(net, CATS),
    ),
    "an output that stays laned": (
        r"^the model's output is laned and no layer before it can make it whole",
        lambda net, found: sum(isinstance(layer, MIXING) for layer in net.layers.values()) == 1,
    ),
}
