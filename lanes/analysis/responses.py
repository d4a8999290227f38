"""What the channels of any layer are selective for, from how they answer to images: colour, and classes.

The measures gather over batches, on the channels that a process holds: lane devices see the same images, so nothing
passes between them until the results are wanted whole (`recording.whole_layer`); replicas see different ones, and are
merged when a measure is computed. Negative responses count as none, as behind a ReLU: so a convolution and the ReLU
behind it measure alike.

Kept out: gratings (gratings.py), filters by their weights (selectivity.py), getting the responses out of a network
(recording.py), which images and when.

Legend: N images, C all channels of a layer, c those that this process holds, ... places (none for a linear layer).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from lanes.analysis.recording import merging
from lanes.mesh import Axis


class Responses(Metric):
    """What all measures of a layer's responses share.

    Those that merge several replicas hold their process group, which Python cannot copy or pickle.

    Args:
        num_channels: c, the channels of the responses; on several lane devices the own ones.
        data: this process's place among the replicas, whose images count together; None: each process by itself.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, num_channels: int, data: Axis | None = None) -> None:
        super().__init__(**merging(data))
        self.num_channels = num_channels

    def maps(self, responses: Tensor) -> Tensor:
        """[N, c, ...] -> [N, c, places], without what is negative.

        Raises:
            ValueError: they are of another number of channels, or of no channels at all.
        """
        if responses.dim() < 2 or responses.shape[1] != self.num_channels or not responses.is_floating_point():
            raise ValueError(
                f"{responses.dtype} responses of shape {tuple(responses.shape)} are none of {self.num_channels} "
                "channels: give [N, channels, ...], on a lane device its own channels, and num_channels to match"
            )
        return responses.detach().reshape(*responses.shape[:2], -1).clamp(min=0)


class ColourSelectivity(Responses):
    """Colour selectivity index: how much of a channel's strongest responses is gone when the images turn grey.

    CSI = 1 - sum_i h'_i / sum_i h_i over the ``num_images`` images with the largest responses h_i, where h'_i is the
    response to the same image turned grey, *at the place* of h_i. 0 (or a little less, where grey excites more) is
    indifferent to colour, 1 answers to no grey image.

    Source: Rafegas and Vanrell, "Color encoding in biologically-inspired convolutional neural networks", Vision
    Research 151 (2018), and their program (CVC-CIC/nefesi, color_index.py). They turn the crop grey that the place can
    see and leave the rest of the image; here all of it turns grey. That is the same wherever a place sees its crop
    only: everywhere but behind layers that look at whole images at once, such as group norm. They normalise responses
    by the largest, which cancels. A channel that no image excites has no index (NaN; they say 0); images that do not
    excite a channel do not count.

    Args:
        num_channels: c, the channels of the responses; on several lane devices the own ones.
        num_images: how many images count, for each channel its own; 100 in the source. If fewer are seen, all count.
        data: this process's place among the replicas, whose images count together; None: each process by itself.
    """

    largest: Tensor  # [2, num_images, c]: h and h'; zeros where there is no image yet

    def __init__(self, num_channels: int, *, num_images: int = 100, data: Axis | None = None) -> None:
        super().__init__(num_channels, data)
        if num_images < 1:
            raise ValueError(f"num_images={num_images} must be at least 1; the source's number is 100")
        nothing = torch.zeros(2, num_images, num_channels, dtype=torch.float64)
        self.add_state("largest", nothing, dist_reduce_fx=_largest_of_replicas)

    def update(self, colour: Tensor, grey: Tensor) -> None:
        """Look at a batch.

        Args:
            colour: responses to images, [N, c, ...].
            grey: responses to the same images turned grey (:func:`turned_grey`), [N, c, ...].

        Raises:
            ValueError: they are not alike, or of another number of channels.
        """
        if colour.shape != grey.shape:
            raise ValueError(
                f"responses of shapes {tuple(colour.shape)} and {tuple(grey.shape)} are not to the same images: "
                "give both in the same batches"
            )
        strongest, places = self.maps(colour).max(2)
        there = self.maps(grey).gather(2, places[..., None]).squeeze(2)
        pairs = torch.stack([strongest, there * (strongest > 0)]).double()
        self.largest = _largest(torch.cat([self.largest, pairs], dim=1), self.largest.shape[1])

    def compute(self) -> Tensor:
        """CSI, float64 [c]; NaN of channels that nothing excites."""
        colour, grey = self.largest.sum(1)
        return 1 - grey / colour


class ClassSelectivity(Responses):
    """Class selectivity index: how far a channel's mean response to its favourite class stands out.

    (mu_max - mu_rest) / (mu_max + mu_rest), where mu_max is the largest of a channel's mean responses to each class and
    mu_rest the mean of those to all other classes: 0 answers to all classes alike, 1 to one only. An image's response
    is the mean over all places. Classes of which there was no image do not count.

    Source: Morcos, Barrett, Rabinowitz and Botvinick, "On the importance of single directions for generalization",
    ICLR 2018, https://arxiv.org/abs/1803.06959, section 2.3.

    Args:
        num_channels: c, the channels of the responses; on several lane devices the own ones.
        num_classes: how many classes there are.
        data: this process's place among the replicas, whose images count together; None: each process by itself.
    """

    sums: Tensor  # [classes, c]
    counts: Tensor  # [classes]

    def __init__(self, num_channels: int, *, num_classes: int, data: Axis | None = None) -> None:
        super().__init__(num_channels, data)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: what is selective among classes needs at least 2")
        self.num_classes = num_classes
        self.add_state("sums", torch.zeros(num_classes, num_channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, responses: Tensor, labels: Tensor) -> None:
        """Look at a batch.

        Args:
            responses: [N, c, ...].
            labels: class of each image, int64 [N].

        Raises:
            ValueError: another number of channels, or labels that are no classes of these images.
        """
        strength = self.maps(responses).mean(2, dtype=torch.float64)
        if labels.shape != strength.shape[:1] or labels.is_floating_point() or not _within(labels, self.num_classes):
            raise ValueError(
                f"labels {labels.dtype} {tuple(labels.shape)} are not the classes 0 to {self.num_classes - 1} of "
                f"{len(strength)} images: give one whole number per image"
            )
        belongs = F.one_hot(labels.long(), self.num_classes).double()
        self.sums = self.sums + belongs.T @ strength
        self.counts = self.counts + belongs.sum(0)

    def compute(self) -> Tensor:
        """The index, float64 [c]; NaN of channels that nothing excites, and of all until two classes were seen."""
        means = self.sums[self.counts > 0] / self.counts[self.counts > 0, None]
        if len(means) < 2:
            return self.sums.new_full((self.num_channels,), math.nan)
        top = means.amax(0)
        rest = (means.sum(0) - top) / (len(means) - 1)
        return (top - rest) / (top + rest)


def turned_grey(images: Tensor, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Tensor:
    """The images without colour: every pixel has the mean of its channels, as on `selectivity.opponent_axes`.

    So the filters that these axes call colourless answer to a pixel and to its grey alike. (The luma of television,
    0.299 R + 0.587 G + 0.114 B, weighs them otherwise; CSIs differ by about 0.01.)

    Args:
        images: [N, 3, H, W].
        mean: by which the images are normalised, so that grey is what is grey in the picture; None: they are not.
        std: the same.

    Returns:
        A new tensor, [N, 3, H, W].

    Raises:
        ValueError: the images have no three channels.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images of shape {tuple(images.shape)} have no colours to lose: give [N, 3, H, W]")
    shift, scale = (images.new_tensor(list(values)).view(3, 1, 1) for values in (mean or (0, 0, 0), std or (1, 1, 1)))
    grey = (images * scale + shift).mean(1, keepdim=True)
    return (grey - shift) / scale


def _within(labels: Tensor, num_classes: int) -> bool:
    return labels.numel() == 0 or bool(((labels >= 0) & (labels < num_classes)).all())


def _largest(pairs: Tensor, number: int) -> Tensor:
    """The pairs with the largest first members, of each channel; of equal ones the earlier. [2, M, c]."""
    order = pairs[0].sort(dim=0, descending=True, stable=True).indices[:number]
    return pairs.gather(1, order.expand(2, -1, -1))


def _largest_of_replicas(states: Tensor) -> Tensor:
    """[replicas, 2, M, c] -> [2, M, c]."""
    return _largest(states.movedim(0, 1).flatten(1, 2), states.shape[2])
