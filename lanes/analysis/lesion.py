"""What a lane is for, by taking it away: accuracy with one lane silenced, on colour images and on grey ones.

If one lane became colour and the other shape, as the paper of 2012 says, then without the colour lane grey images
suffer less than colour ones. Lesions of streams: Tamura 2024 (Scientific Reports 14:9097).

Kept out: data, and how images are normalised; both are given.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from lanes.analysis.recording import check_layers, evaluating, merging, replicas
from lanes.layers.placed import per_channel
from lanes.mesh import LANE_AXIS, DeviceMesh, axis
from lanes.ordering import PLAIN
from lanes.plans import Plan
from lanes.tables import table
from lanes.ways import LANED

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luminance: ITU-R Recommendation BT.601, section 2.5.1."""


@dataclass(frozen=True)
class Accuracies:
    """The share of images classified right, 0 to 1: in colour, and with the colour taken out."""

    colour: float
    grey: float


@dataclass(frozen=True)
class LesionTable:
    """Accuracy of a network whole and without each of its lanes.

    Attributes:
        layer: at which lanes were silenced.
        images: how many were classified.
        intact: the whole network.
        without: the network without lane 0, without lane 1, ...
    """

    layer: str
    images: int
    intact: Accuracies
    without: tuple[Accuracies, ...]

    def __str__(self) -> str:
        rows = [("nothing", self.intact), *((f"lane {lane}", found) for lane, found in enumerate(self.without))]
        cells = [(f"silenced at {self.layer}", "colour", "grey")]
        cells += [(name, f"{100 * found.colour:.2f} %", f"{100 * found.grey:.2f} %") for name, found in rows]
        return table(cells, "<>>")


def lesion_table(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    layer: str,
    *,
    num_classes: int,
    lanes: int | None = None,
    normalise: Callable[[Tensor], Tensor] | None = None,
    plan: Plan | None = None,
    mesh: DeviceMesh | None = None,
) -> LesionTable:
    """Measure a network in evaluation mode whole and without each lane, every batch 2 (lanes + 1) times.

    Args:
        net: plain, or placed: then all processes must call this, the lane devices of a replica with the same batches
            and replicas with their own; all get the table of all replicas' images.
        batches: images [N, 3, H, W] before they are normalised (colour is taken out of light, not of statistics), and
            labels [N].
        layer: whose output channels of a lane are silenced.
        num_classes: number of logits.
        lanes: how many; by default the network's attribute ``lanes``.
        normalise: turns images into what the network reads; by default it reads them as they are.
        plan: of a placed network.
        mesh: of a placed network.

    Raises:
        ValueError: no images, or as `silenced` and `grey`.
    """
    lanes = number_of_lanes(net) if lanes is None else lanes
    device = next(net.parameters()).device
    cases = list(product((None, *range(lanes)), (False, True)))
    right = {
        case: MulticlassAccuracy(num_classes, average="micro", **merging(replicas(mesh))).to(device) for case in cases
    }
    count = SumMetric(**merging(replicas(mesh))).to(device)
    count.update(0)  # a replica may have no images; torchmetrics would warn
    with evaluating(net), torch.no_grad():
        for batch in batches:
            images, labels = (tensor.to(device) for tensor in batch)
            count.update(len(labels))
            looks = [x if normalise is None else normalise(x) for x in (images, grey(images))]
            for lane in (None, *range(lanes)):
                with silenced(net, layer, lane, lanes=lanes, plan=plan, mesh=mesh):
                    for is_grey, look in enumerate(looks):
                        right[lane, bool(is_grey)].update(net(look), labels)
    if not (images_seen := int(count.compute())):
        raise ValueError("no images: give at least one batch")
    share = {case: float(metric.compute()) for case, metric in right.items()}
    found = [Accuracies(share[lane, False], share[lane, True]) for lane in (None, *range(lanes))]
    return LesionTable(layer, images_seen, found[0], tuple(found[1:]))


def grey(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] with the colour taken out: all three channels are the luminance; the data type stays.

    Raises:
        ValueError: they have no three channels.
    """
    if images.dim() != 4 or images.shape[1] != len(LUMA):
        raise ValueError(f"images {tuple(images.shape)} have no colour to take out; give [N, 3, H, W]")
    light = images if images.is_floating_point() else images.double()
    luminance = torch.einsum("nchw,c->nhw", light, light.new_tensor(LUMA))
    luminance = luminance if images.is_floating_point() else luminance.round()
    return luminance.to(images.dtype).unsqueeze(1).expand_as(images).contiguous()


def number_of_lanes(net: nn.Module) -> int:
    """What the network says.

    Raises:
        ValueError: it does not say.
    """
    lanes = getattr(net, "lanes", None)
    if not isinstance(lanes, int):
        raise ValueError(f"{type(net).__name__} has no attribute lanes; say how many there are (lanes=2)")
    return lanes


@contextmanager
def silenced(
    net: nn.Module,
    layer: str,
    lane: int | None,
    *,
    lanes: int,
    plan: Plan | None = None,
    mesh: DeviceMesh | None = None,
) -> Iterator[None]:
    """While it lasts, the output channels of one lane at one layer are 0.

    Hooks that others have put on the layer see the silenced output, as the layers behind it do. It is a new tensor, the
    same for all of these: dense layers that share one gathering of it (`layers.mixing.Gathering`) still do.

    Args:
        net: plain, or placed: then every process silences those of its own channels that are of the lane.
        layer: its name.
        lane: which of ``lanes`` equal blocks of channels, in the plain order; None: nothing is silenced.
        lanes: how many there are.
        plan: of a placed network.
        mesh: of a placed network.

    Raises:
        ValueError: there is no such layer or lane; when it runs, that its channels do not divide over the lanes.
    """
    check_layers(net, [layer], plan=plan, mesh=mesh)
    if lane is not None and not 0 <= lane < lanes:
        raise ValueError(f"lane {lane} of lanes={lanes} does not exist; lanes are counted from 0")

    def silence(module: nn.Module, args: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() < 2:
            raise ValueError(f"{layer} makes no tensor [N, C, ...]; silence a lane at a layer that does")
        held, total = _held(output.shape[1], layer, plan, mesh)
        if total % lanes:
            raise ValueError(f"{layer}: {total} channels do not divide over {lanes} lanes; silence them elsewhere")
        mute = torch.tensor([channel * lanes // total == lane for channel in held], device=output.device)
        return output.masked_fill(per_channel(mute, output), 0)

    module = net.get_submodule(layer)
    hook = None if lane is None else module.register_forward_hook(silence, prepend=True)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _held(here: int, layer: str, plan: Plan | None, mesh: DeviceMesh | None) -> tuple[Sequence[int], int]:
    """The plain channels of a tensor of which ``here`` channels are on this device, and how many there are in all."""
    if plan is None or mesh is None or plan.layers[layer].output != LANED:
        return range(here), here
    lane, order = axis(mesh, LANE_AXIS), plan.output_order(layer)
    total = here * lane.size
    held = range(total) if order == PLAIN else order.held(lane.size)
    return held[lane.own(total)], total
