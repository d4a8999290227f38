"""All measures on images at once, in one pass: of channels, of pairs of layers, and of the network without its lanes.

On a plain network, or on a placed one: lane devices measure their own channels, replicas their own images.

Kept out: the measures themselves, tests of lanes (lane_tests.py), files and words.

Legend: N images, C channels of the image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lanes.analysis.channel_measures import ChannelMeasures, ChannelMeter, by_frequency
from lanes.analysis.covariance import LayerCovariance, Squares
from lanes.analysis.gratings import Gratings
from lanes.analysis.lesion_counts import LesionCount, LesionCounter
from lanes.analysis.recording import check_layers, evaluating, merging, recorded, replicas, whole_layer
from lanes.analysis.responses import turned_grey
from lanes.mesh import LANE_AXIS, DeviceMesh, axis
from lanes.plans import Plan


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        layers: names of layers that run once, in the order in which they run.
        num_classes: number of logits.
        lanes: how many there are.
        silenced: those of the layers at which lanes are silenced.
        gratings: to which orientation and frequency are measured.
        normal: (mean, std) by which images of three channels are normalised; None: images have no colour.
    """

    layers: tuple[str, ...]
    num_classes: int
    lanes: int
    silenced: tuple[str, ...]
    gratings: Gratings
    normal: tuple[Sequence[float], Sequence[float]] | None


@dataclass(frozen=True)
class PairMeasures:
    """How two layers go together.

    Attributes:
        first, second: their names.
        samples: pixels of all images.
        squares: as `covariance.LayerCovariance.compute` returns them, on the CPU; None where they cannot be measured.
        remark: why not, else "".
    """

    first: str
    second: str
    samples: int
    squares: Squares | None
    remark: str


@dataclass(frozen=True)
class Measured:
    """What `NetworkMeasures` has found.

    Attributes:
        channels: of each layer, its channels in the plain model's order.
        pairs: of layers that follow one another.
        lesions: the whole network first, then each layer without each lane.
    """

    channels: dict[str, ChannelMeasures]
    pairs: list[PairMeasures]
    lesions: list[LesionCount]

    @property
    def images(self) -> int:
        """How many images there were."""
        return self.lesions[0].count


class NetworkMeasures:
    """Measures a network in evaluation mode; its weights and its mode stay as they are.

    Of a placed network all processes take part, the lane devices of a replica with the same images, replicas with their
    own, at least one each; nothing passes between replicas before :meth:`compute`.

    Args:
        net: plain, or placed.
        asked: what is to be measured.
        forward: images [N, C, H, W] -> logits [N, classes]; runs ``net``; by default ``net`` itself.
        plan: of a placed network.
        mesh: of a placed network.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(
        self,
        net: nn.Module,
        asked: Asked,
        *,
        forward: Callable[[Tensor], Tensor] | None = None,
        plan: Plan | None = None,
        mesh: DeviceMesh | None = None,
    ) -> None:
        check_layers(net, asked.layers, plan=plan, mesh=mesh)
        self.net, self.asked, self.plan, self.mesh = net, asked, plan, mesh
        self.forward: Callable[[Tensor], Tensor] = net if forward is None else forward
        self._channels: dict[str, ChannelMeter] = {}
        self._pairs: dict[tuple[str, str], LayerCovariance] = {}
        self._lesions = LesionCounter(
            net, self.forward, asked.silenced, lanes=asked.lanes, normal=asked.normal, plan=plan, mesh=mesh
        )

    def see_images(self, images: Tensor, labels: Tensor) -> None:
        """Look at a batch: images [N, C, H, W] as the network reads them, and labels [N]."""
        seen = self._responses(images)
        grey: dict[str, Tensor] = {}
        if self.asked.normal is not None:
            mean, std = self.asked.normal
            grey = self._responses(turned_grey(images, mean=mean, std=std))
        for layer, responses in seen.items():
            self._meter(layer, responses).see_images(responses, labels, grey=grey.get(layer))
        self._see_pairs(seen)
        self._lesions.update(images, labels)

    def _see_pairs(self, seen: dict[str, Tensor]) -> None:
        pairs = list(pairwise(self.asked.layers))
        whole = {layer: self._whole(layer, seen[layer]) for layer in self.asked.layers} if pairs else {}
        for pair in pairs:
            first, second = (whole[layer] for layer in pair)
            if pair not in self._pairs:
                metric = LayerCovariance((first.shape[1], second.shape[1]), **merging(replicas(self.mesh)))
                self._pairs[pair] = metric.to(first.device)
            self._pairs[pair].update(first, second)

    def see_gratings(self, batch_size: int, *, device: torch.device) -> None:
        """Look at all gratings; replicas look at some of them each. After the images.

        Args:
            batch_size: at a time.
            device: of the network.
        """
        data = replicas(self.mesh)
        index, size = (0, 1) if data is None else (data.index, data.size)
        for number, (frequency, images, orientation) in enumerate(
            by_frequency(self.asked.gratings, batch_size, device=device)
        ):
            if number % size == index:
                for layer, responses in self._responses(images).items():
                    self._meter(layer, responses).see_gratings(responses, orientation, frequency)

    def compute(self) -> Measured:
        """What was found, alike on all processes; all of them must call it.

        Raises:
            NotFiniteError: a layer's responses are not finite.
        """
        channels = {layer: self._channels[layer].compute() for layer in self.asked.layers}
        pairs = [_pair(first, second, metric) for (first, second), metric in self._pairs.items()]
        return Measured(channels, pairs, self._lesions.compute())

    def _responses(self, images: Tensor) -> dict[str, Tensor]:
        with evaluating(self.net), torch.no_grad(), recorded(self.net, self.asked.layers) as made:
            self.forward(images)
            return dict(made)

    def _meter(self, layer: str, responses: Tensor) -> ChannelMeter:
        if layer not in self._channels:
            self._channels[layer] = ChannelMeter(
                layer,
                responses.shape[1],
                num_classes=self.asked.num_classes,
                gratings=self.asked.gratings,
                plan=self.plan,
                mesh=self.mesh,
                device=responses.device,
            )
        return self._channels[layer]

    def _whole(self, layer: str, responses: Tensor) -> Tensor:
        if self.plan is None or self.mesh is None:
            return responses
        return whole_layer(responses, layer, self.plan, axis(self.mesh, LANE_AXIS))


def _pair(first: str, second: str, metric: LayerCovariance) -> PairMeasures:
    with metric.sync_context(should_sync=bool(metric.sync_on_compute)):
        samples = int(metric.moments[0, 0])
    try:  # what it refuses it refuses on all processes: too few samples for so many channels
        squares = {name: square.cpu() for name, square in metric.compute().items()}
    except ValueError as why:
        return PairMeasures(first, second, samples, None, str(why))
    return PairMeasures(first, second, samples, squares, "")
