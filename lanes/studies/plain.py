"""One network trained in one process, by a plain loop: what a study repeats over seeds.

Where a network is placed does not change what it learns (docs/parity.md), so that a study of what lanes *learn* needs
no lane devices: the plain network with groups is the network in lanes. In one process on one thread several runs go
side by side, one a core, and none waits for another.

Everything random follows from the seed: initial weights, the order of images, their changes, dropout.

Kept out: which networks and questions (scripts/studies/), what is kept of a run (runs.py).

Legend: N images, C channels, H W pixels.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes.analysis.recording import evaluating
from lanes.data import augment
from lanes.training import ImageData, WarmupCosine

EVALUATED_AT_ONCE = 256  # images


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: the rate rises, then falls along half a cosine (`WarmupCosine`).

    Attributes:
        epochs: times that every training image is seen.
        rate: the largest learning rate.
        weight_decay: of all parameters.
        optimizer: "sgd" with Nesterov's momentum 0.9, or "adamw".
        clip: the largest norm of the gradient.
        label_smoothing: share of a target that is spread over all classes.
    """

    epochs: int
    rate: float
    weight_decay: float = 5e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    clip: float = 1.0
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Score:
    """How a network does on images: the share of them that it tells right, 0 to 1, and the mean cross entropy."""

    top1: float
    loss: float


class DivergedError(ValueError):
    """Training came to numbers that are not finite."""


def train(
    make_net: Callable[[], nn.Module],
    data: ImageData,
    recipe: Recipe,
    seed: int,
    *,
    look: Callable[[int, nn.Module], None] | None = None,
    at: Collection[int] = (),
) -> nn.Module:
    """Train a network; on a GPU, if there is one.

    Args:
        make_net: makes it, drawing its initial weights from torch's default generator.
        data: of which the training images are used; batches that are not full are left out.
        recipe: how.
        seed: of all that is random here.
        look: called at some moments with the number of steps done and the network, which it leaves as it is.
        at: those numbers of steps; 0 is before training.

    Returns:
        The network, in training mode.

    Raises:
        DivergedError: the loss is not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    # Channels innermost: grouped convolutions on a CPU are up to twice as fast so.
    net = make_net().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data.setup("fit")
    steps = steps_per_epoch(data)
    optimizer, schedule, total = _optimizer(net, recipe), WarmupCosine(), recipe.epochs * steps
    done = 0
    if look is not None and 0 in at:
        look(0, net)
    for _ in range(recipe.epochs):
        for images, labels in training_batches(data, device):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * schedule(done, total)
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels, label_smoothing=recipe.label_smoothing)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            optimizer.step()
            done += 1
            if look is not None and done in at:
                look(done, net)
        if not math.isfinite(loss.item()):
            raise DivergedError(f"the loss of step {done} is {loss.item()}: lower the rate, {recipe.rate:g}")
    return net


def steps_per_epoch(data: ImageData) -> int:
    """Full batches of the training images."""
    size: Any = data.train_set
    return len(size) // data.batch_size


def training_batches(data: ImageData, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: images [N, C, H, W], changed and normalised, and labels [N]; in an order drawn anew."""
    source: Any = data.train_set
    order = torch.randperm(len(source))
    mean, std = normal(data, device)
    for start in range(0, steps_per_epoch(data) * data.batch_size, data.batch_size):
        images, labels = source.__getitems__(order[start : start + data.batch_size].tolist())
        images = augment.to_unit(images.to(device))
        for change in data.augment:
            images = change(images)
        images = augment.normalize(images, mean, std)
        yield images.contiguous(memory_format=torch.channels_last), labels.to(device)


def images_of(source: Any, device: torch.device, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as they are stored, brought to 0..1 but not normalised, [N, C, H, W], and labels [N]; in their order.

    Args:
        source: a set of images with ``__getitems__``.
        device: where they are wanted.
        limit: at most so many, evenly spaced.
    """
    count = len(source) if limit is None else min(limit, len(source))
    rows = [index * len(source) // count for index in range(count)]
    for start in range(0, count, EVALUATED_AT_ONCE):
        images, labels = source.__getitems__(rows[start : start + EVALUATED_AT_ONCE])
        yield augment.to_unit(images.to(device)), labels.to(device)


def normal(data: ImageData, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, [C, 1, 1] each."""
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (data.mean, data.std))
    return mean, std


def evaluate(net: nn.Module, source: Any, data: ImageData, limit: int | None = None) -> Score:
    """How a network does on a set of images of ``data``, as they are: not changed but normalised.

    Args:
        net: in any mode.
        source: the set, such as ``data.val_set``.
        data: says how images are normalised.
        limit: look at so many at most, evenly spaced.
    """
    device = next(net.parameters()).device
    mean, std = normal(data, device)
    count, right, loss = 0, 0, 0.0
    with evaluating(net), torch.no_grad():
        for images, labels in images_of(source, device, limit):
            logits = net(augment.normalize(images, mean, std))
            count += len(labels)
            right += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Score(right / count, loss / count)


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        net.parameters(), lr=recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
