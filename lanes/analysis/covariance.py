"""How strongly the channels of one layer go with those of the next: whitened covariance and correlation of responses.

The responses of two adjacent layers are taken at every pixel of every image, each pixel one sample. Each layer is
whitened before the two are compared: otherwise the covariance inside a layer would show up between the layers. Lanes
that stay apart are seen as bright blocks on the diagonal of the square (`block_ratio` puts a number on them).

Source: Ioannou, "Structural Priors in Deep Neural Networks" (Cambridge, 2017), section "Inter-Layer Covariance".

Shapes: N images, C1 and C2 channels of the two layers, C = C1 + C2, n samples (N H W).

Kept out: drawing the squares, and when to measure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from lanes.analysis.recording import check_layers, evaluating, merging, recorded, replicas, whole_layer
from lanes.mesh import LANE_AXIS, DeviceMesh, axis
from lanes.plans import Plan

Squares = dict[str, Tensor]

BLOCK = 2**22  # numbers of a block of samples, 32 MiB in float64: a whole batch of large maps would be gigabytes
EPSILON = torch.finfo(torch.float64).eps


class LayerCovariance(Metric):
    """Whitened covariance and correlation of two layers' responses, gathered over batches and replicas.

    The state is one symmetric matrix [1 + C, 1 + C] in float64: n, the means, and the sums of products of deviations
    from them, inside and between the layers. Batches and replicas are merged by their means; raw sums would cancel.

    Whitening is ZCA, the inverse square root of a layer's covariance. Directions in which the responses do not vary
    have none (a dead channel, the difference of two equal channels): there it is 0, as in a pseudo-inverse. A direction
    counts as without variance if its eigenvalue is at most

    - n times float64's epsilon times the largest eigenvalue: the error of a sum of n products (Higham, "Accuracy and
      Stability of Numerical Algorithms", section 3.1), so that nothing smaller can be told from 0; or
    - what rounding alone makes of the responses: epsilon squared times the mean square of each channel, epsilon that
      of the data type in which they came (bfloat16: 0.0078), for float64 the square root of its own.

    Args:
        channels: C1 and C2.
        **kwargs: of ``torchmetrics.Metric``; `process_group` should be the replicas, lane devices see the same images.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    moments: Tensor
    rounding: Tensor

    def __init__(self, channels: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        size = 1 + sum(channels)
        self.add_state("moments", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx=merged)
        self.add_state("rounding", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add the responses of both layers to the same images.

        Maps of different size are brought to the larger height and width, each pixel taking its nearest neighbour's
        response (by pixel centres, so that the maps are not shifted against each other).

        Args:
            first: [N, C1, ...] whole, in the plain model's order of channels; vectors [N, C1] are maps of one pixel.
            second: [N, C2, ...].

        Raises:
            ValueError: the shapes do not belong together.
        """
        self._check(first, second)
        self.rounding = self.rounding.clamp_min(max(torch.finfo(x.dtype).eps for x in (first, second)))
        dims = max(first.dim(), second.dim(), 3)
        maps = [x.detach().reshape(*x.shape, *[1] * (dims - x.dim())) for x in (first, second)]
        places = [max(sizes) for sizes in zip(*(x.shape[2:] for x in maps), strict=True)]
        images = max(1, BLOCK // (sum(self.channels) * torch.Size(places).numel()))
        for parts in zip(*(x.split(images) for x in maps), strict=True):
            large = [
                x if list(x.shape[2:]) == places else F.interpolate(x, places, mode="nearest-exact") for x in parts
            ]
            block = torch.cat([x.double().movedim(1, 0).flatten(1) for x in large])
            self.moments = merged(torch.stack([self.moments, _moments(block)]))

    def compute(self) -> Squares:
        """The squares [C1, C2] of magnitudes, 0 to 1, in float64.

        Returns:
            "whitened": Ioannou's |E[(W1 x1) (W2 x2)^T]|; its singular values are the layers' canonical correlations.
            "correlation": Pearson's, of channel with channel; 0 where a channel does not vary.

        Raises:
            ValueError: no more samples than channels (any two layers would look related), or responses not finite.
        """
        samples, total = int(self.moments[0, 0].nan_to_num()), sum(self.channels)
        if not self.moments.isfinite().all():
            raise ValueError("responses are not finite: training has diverged, lower the step size")
        if samples <= total:
            raise ValueError(
                f"{samples} samples (pixels of all images) are too few for {' + '.join(map(str, self.channels))} "
                "channels; give many more images"
            )
        covariance = self.moments[1:, 1:] / (samples - 1)
        variance = covariance.diagonal()
        noise = (self.rounding.square() + EPSILON) * (variance + self.moments[0, 1:].square())
        first, second = slice(self.channels[0]), slice(self.channels[0], None)
        between = covariance[first, second]
        left, right = (_whitening(covariance[own, own], noise[own], samples) for own in (first, second))
        scale = torch.where(variance > noise, variance, torch.inf).rsqrt()
        return {
            "whitened": (left @ between @ right).abs(),
            "correlation": (scale[first, None] * between * scale[second]).abs(),
        }

    def _check(self, first: Tensor, second: Tensor) -> None:
        shapes = tuple(first.shape), tuple(second.shape)
        dims = {x.dim() for x in (first, second)} - {2}  # vectors go with maps of any dimension
        if tuple(shape[1:2] for shape in shapes) != tuple((size,) for size in self.channels) or len(dims) > 1:
            raise ValueError(
                f"responses {shapes[0]} and {shapes[1]} are no maps, alike in dimensions, of {self.channels[0]} and "
                f"{self.channels[1]} channels"
            )
        if len(first) != len(second):
            raise ValueError(f"{len(first)} and {len(second)} images: give both layers' responses to the same ones")


def merged(states: Tensor) -> Tensor:
    """Moments of several sets of samples [K, 1 + C, 1 + C] to those of all of them together.

    Source: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
    """
    counts, means = states[:, 0, 0], states[:, 0, 1:]
    total = counts.sum()
    mean = counts @ means / total.clamp_min(1)
    apart = means - mean
    result = states.sum(0)
    result[1:, 1:] += (counts[:, None] * apart).T @ apart
    result[0, 1:] = result[1:, 0] = mean
    return result


def _moments(block: Tensor) -> Tensor:
    """Of samples [C, n], which are overwritten."""
    mean = block.mean(1)
    apart = block.sub_(mean[:, None])
    result = block.new_empty(len(mean) + 1, len(mean) + 1)
    result[0, 0] = block.shape[1]
    result[0, 1:] = result[1:, 0] = mean
    result[1:, 1:] = apart @ apart.T
    return result


def _whitening(covariance: Tensor, noise: Tensor, samples: int) -> Tensor:
    """[C, C]: the symmetric inverse square root, 0 in directions without variance (see `LayerCovariance`)."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = torch.maximum(samples * EPSILON * values[-1], noise @ vectors.square())
    return vectors * torch.where(values > floor, values, torch.inf).rsqrt() @ vectors.T


def block_ratio(square: Tensor, blocks: int) -> float:
    """How much brighter the diagonal blocks are: mean magnitude inside them over that outside; about 1 without lanes.

    Args:
        square: [C1, C2].
        blocks: number of lanes; lane i owns the i-th of so many equal parts of the rows and of the columns.

    Returns:
        ``inf`` if all outside is 0, ``nan`` if all is.

    Raises:
        ValueError: there is nothing outside of one block, or the channels do not divide.
    """
    if square.dim() != 2 or blocks < 2 or any(size % blocks or not size for size in square.shape):
        raise ValueError(
            f"a square {tuple(square.shape)} does not divide into {blocks} x {blocks} blocks; give 2 or more"
        )
    means = square.abs().double().unflatten(1, (blocks, -1)).unflatten(0, (blocks, -1)).mean((1, 3))
    inside = means.diagonal().mean()
    outside = means[~torch.eye(blocks, dtype=torch.bool, device=means.device)].mean()
    return float(inside / outside)


def layer_covariances(
    net: nn.Module,
    pairs: Sequence[tuple[str, str]],
    batches: Iterable[Tensor],
    *,
    plan: Plan | None = None,
    mesh: DeviceMesh | None = None,
) -> dict[tuple[str, str], Squares]:
    """Measure pairs of layers of a network in evaluation mode, all of them in one forward per batch.

    Args:
        net: plain, or placed: then all processes must call this, the lane devices of a replica with the same images
            and replicas with their own; all get the squares of all replicas' images.
        pairs: names of two layers each, such as ("conv2", "conv3"). As Ioannou, take convolutions: before the
            nonlinearity.
        batches: images [N, ...] as the network reads them.
        plan: of a placed network.
        mesh: of a placed network.

    Returns:
        For each pair what `LayerCovariance.compute` returns.

    Raises:
        ValueError: a layer does not exist or does not run once, no images, or as `LayerCovariance`.
    """
    names = sorted({name for pair in pairs for name in pair})  # sorted: gathered alike on every device
    check_layers(net, names, plan=plan, mesh=mesh)
    metrics: dict[tuple[str, str], LayerCovariance] = {}
    with evaluating(net), torch.no_grad(), recorded(net, names) as made:
        for images in batches:
            net(images)
            seen = {name: _whole(made, name, plan, mesh) for name in names}
            for first, second in pairs:
                left, right = seen[first], seen[second]
                if (first, second) not in metrics:
                    metric = LayerCovariance((left.shape[1], right.shape[1]), **merging(replicas(mesh)))
                    metrics[first, second] = metric.to(left.device)
                metrics[first, second].update(left, right)
    if len(metrics) != len(set(pairs)):
        raise ValueError("no images: give at least one batch to every replica")
    return {pair: metric.compute() for pair, metric in metrics.items()}


def _whole(made: Mapping[str, Tensor], name: str, plan: Plan | None, mesh: DeviceMesh | None) -> Tensor:
    """All channels of what a layer has just made, in plain order."""
    if name not in made:
        raise ValueError(f"{name} does not run in evaluation mode; name a layer that runs once")
    return made[name] if plan is None or mesh is None else whole_layer(made[name], name, plan, axis(mesh, LANE_AXIS))
